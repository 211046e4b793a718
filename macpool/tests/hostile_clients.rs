//! What clients send that no API server would: it is told so, costs the others nothing, and is forgotten.

#![expect(clippy::unwrap_used, reason = "a helper's failure is the test's failure")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use support::{Macpool, VMS, create};

#[test]
fn bodies_that_are_no_review_for_the_path_are_refused_with_the_reason() {
    let macpool = Macpool::start(&[]);
    let changed = |path: &str, value: Value| {
        let mut review = create("vm", &[("red", "")]);
        *review.pointer_mut(path).unwrap() = value;
        review.to_string()
    };
    for (path, body, status, reason) in [
        (VMS, String::new(), 400, "no AdmissionReview"),
        (VMS, "{".repeat(10_000), 400, "no AdmissionReview"),
        (VMS, "[".repeat(1 << 20), 400, "no AdmissionReview"),
        (VMS, "{}".to_owned(), 400, "missing field `apiVersion`"),
        (VMS, changed("/kind", json!("Pod")), 400, "\"Pod\""),
        (VMS, changed("/apiVersion", json!("admission.k8s.io/v1beta1")), 400, "admission.k8s.io/v1beta1"),
        (VMS, changed("/request", Value::Null), 400, "no request"),
        (VMS, changed("/request/operation", json!("REPLACE")), 400, "REPLACE"),
        (VMS, changed("/request/resource/group", json!("apps")), 400, "virtualmachines.apps"),
        ("/mutate-pods", changed("/request/uid", json!("u")), 400, "this path takes \"pods\""),
        ("/", String::new(), 404, "no such path"),
    ] {
        let (got, text) = macpool.post(path, body.as_bytes());
        assert!(got == status && text.contains(reason), "{path} {body:.60}: {got} {text}");
    }
    assert_eq!(macpool.curl(VMS, &[]).0, 405, "reviews are posted");
    macpool.assert_serves();
}

#[test]
fn a_malformed_object_is_refused_by_a_proper_answer() {
    let macpool = Macpool::start(&[]);
    for (path, value) in [
        ("/request/object", Value::Null),
        ("/request/object/spec", json!("none")),
        ("/request/object/spec/template/spec/networks", json!({"red": {}})),
        ("/request/object/spec/template/spec/domain/devices/interfaces", json!([1])),
        ("/request/object/spec/template/spec/domain/devices/interfaces/0/macAddress", json!({"a": 1})),
    ] {
        let mut review = create("vm", &[("red", "02:00:00:00:00:01")]);
        *review.pointer_mut(path).unwrap() = value;
        let response = macpool.review(&review);
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("u-1"), &json!(false)), "{path}");
        assert_eq!(response["status"]["code"], 422, "{path}: {response}");
        assert!(response["status"]["message"].as_str().unwrap().contains("malformed"), "{path}: {response}");
    }
    let mut nameless = create("", &[("red", "")]);
    nameless["request"]["object"]["metadata"] = json!({"generateName": "web-"});
    let status = &macpool.review(&nameless)["status"];
    assert_eq!(status["code"], 422, "{status}");
    assert!(status["message"].as_str().unwrap().contains("metadata.name is missing"), "{status}");
    macpool.assert_serves();
}

#[test]
fn addresses_that_no_nic_can_have_are_refused_in_every_notation() {
    let macpool = Macpool::start(&[]);
    let refused = |nics: &[(&str, &str)], reason: &str| {
        let response = macpool.review(&create("vm", nics));
        let message = response["status"]["message"].as_str().unwrap_or_default();
        assert!(response["allowed"] == false && message.contains(reason), "{nics:?}: {response}");
    };
    for multicast in
        ["01:00:5e:00:00:01", "01-00-5E-00-00-01", "0100.5e00.0001", "ff:ff:ff:ff:ff:ff", "0000.0000.0000"]
    {
        refused(&[("red", multicast)], "a NIC needs a unicast one");
    }
    for nonsense in
        ["02:00:00:00:00", "02:00:00:00:00:00:01", "02:00:00:00:00:0g", "02:00-00:00-00:01", "x", " "]
    {
        refused(&[("red", nonsense)], "is not an Ethernet address");
    }
    refused(&[("red", "02:00:00:00:00:01"), ("blue", "0200.0000.0001")], "have the same macAddress");
    refused(&[("red", ""), ("red", "")], "two interfaces are called \"red\"");
    let many: Vec<String> = (0..1000).map(|n| format!("n{n}")).collect();
    refused(&many.iter().map(|name| (name.as_str(), "")).collect::<Vec<_>>(), "1000 interfaces");
    macpool.assert_serves();
}

#[test]
fn megabytes_of_annotations_pass_and_more_than_any_object_has_does_not() {
    let macpool = Macpool::start(&[]);
    let annotated = |size: usize| {
        let mut review = create("vm", &[("red", "")]);
        review["request"]["object"]["metadata"]["annotations"] = json!({"a\"b": "x\\".repeat(size / 3)});
        review
    };
    let response = macpool.review(&annotated(6 << 20));
    assert!(response["allowed"] == true && response["patch"].is_string(), "{response}");
    let (status, text) = macpool.post(VMS, annotated(9 << 20).to_string().as_bytes());
    // Refused before it was sent whole: curl may see the answer, or only the end of the connection.
    assert!(status == 413 || status == 0, "{status} {text}");
    macpool.assert_serves();
}

#[test]
fn only_tls_1_3_is_spoken() {
    let macpool = Macpool::start(&[]);
    let old = macpool.curl_with(&macpool.ca(), VMS, &["--tls-max", "1.2"]);
    assert_eq!(old.status.code(), Some(35), "a handshake that fails: {old:?}");
    let nobody = macpool.curl_with("/etc/hostname".as_ref(), VMS, &[]);
    assert!(!nobody.status.success(), "its certificate is its own: {nobody:?}");
    let plain = Command::new("curl")
        .args(["-s", "--max-time", "20"])
        .arg(format!("http://{}/", macpool.reviews))
        .output();
    assert!(!plain.unwrap().status.success());
    macpool.assert_serves();
}

/// A connection from another client than curl is.
fn stranger(server: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    socket.connect(&server.into()).unwrap();
    socket.into()
}

/// It is closed by the server. A limit on what a read waits, far beyond the server's patience: an error would be a timeout.
fn await_end(mut stream: TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let end = stream.read_to_end(&mut Vec::new());
    let reset = matches!(&end, Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset);
    assert!(end.is_ok() || reset, "{end:?}");
}

#[test]
fn clients_that_say_nothing_keep_nobody_out_and_are_let_go() {
    let macpool = Macpool::start(&[]);
    let mut silent: Vec<TcpStream> = (0..300).map(|_| stranger(macpool.reviews)).collect();
    silent.iter_mut().step_by(2).for_each(|stream| {
        // Those beyond the limit are closed already.
        let _refused = stream.write_all(&[22, 3, 1, 0]);
    });
    macpool.assert_serves();
    silent.into_iter().for_each(await_end);
}

#[test]
fn a_client_that_holds_connections_keeps_nobody_else_from_reviews_or_metrics() {
    let macpool = Macpool::start(&[]);
    for (server, more_than_all) in [(macpool.reviews, 520), (macpool.metrics, 70)] {
        let held: Vec<TcpStream> = (0..more_than_all).map(|_| stranger(server)).collect();
        macpool.assert_serves();
        assert_eq!(macpool.readyz(), 200);
        drop(held);
    }
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
    let macpool = Macpool::start(&[]);
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &macpool.reviews.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    write!(stdin, "POST {VMS} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{").unwrap();
    macpool.assert_serves();
    let mut reply = String::new();
    client.stdout.take().unwrap().read_to_string(&mut reply).unwrap();
    client.wait().unwrap();
    assert!(reply.starts_with("HTTP/1.1 408 "), "{reply}");
}
