//! What an operator sees: health, metrics, the zones as text.

#![expect(clippy::unwrap_used, reason = "a helper's failure is the test's failure")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use socket2::{Domain, Socket, Type};
use support::{Dns, vmi, write};

/// Status and body of a page.
fn get(address: SocketAddr, path: &str) -> (u16, String) {
    get_by(TcpStream::connect(address).unwrap(), path)
}

fn get_by(mut stream: TcpStream, path: &str) -> (u16, String) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: dns\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn health_readiness_and_metrics_are_served() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.5"])]));
    let dns = Dns::start(dir.path(), &["--http", "127.0.0.1:0", "--reverse", "10.0.0.0/8"]);
    let http = dns.http.unwrap();
    assert_eq!(get(http, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get(http, "/readyz"), (200, "ok\n".to_owned()));
    assert_eq!(get(http, "/else").0, 404);
    assert_eq!(dns.short("vm1.ns1.vm.example.com", "A"), ["10.1.0.5"]);
    assert_eq!(dns.status("vm2.ns1.vm.example.com", "A").0, "NXDOMAIN");
    assert_eq!(dns.dig(&["+tcp", "+short", "vm1.ns1.vm.example.com"]), "10.1.0.5\n");
    let (status, text) = get(http, "/metrics");
    assert_eq!(status, 200);
    for expected in [
        "secondary_dns_queries_total{transport=\"udp\",type=\"A\",rcode=\"NOERROR\"} 1",
        "secondary_dns_queries_total{transport=\"udp\",type=\"A\",rcode=\"NXDOMAIN\"} 1",
        "secondary_dns_queries_total{transport=\"tcp\",type=\"A\",rcode=\"NOERROR\"} 1",
        "secondary_dns_query_duration_seconds_count{transport=\"udp\"} 2",
        "secondary_dns_names 3",
        "secondary_dns_pointers 1",
        "secondary_dns_source_synced 1",
        "secondary_dns_source_staleness_seconds 0",
    ] {
        assert!(text.lines().any(|line| line == expected), "{expected} in\n{text}");
    }
    assert!(text.contains(&format!("secondary_dns_serial {}", dns.serial())), "{text}");
}

#[test]
fn a_client_that_holds_connections_keeps_nobody_else_from_the_pages() {
    let dir = tempfile::tempdir().unwrap();
    let dns = Dns::start(dir.path(), &["--http", "127.0.0.1:0"]);
    let http = dns.http.unwrap();
    let held: Vec<_> = (0..100).map(|_| TcpStream::connect(http).unwrap()).collect();
    // A connection beyond the limit is closed, which is the sign that those before it were accepted.
    assert_eq!((&held[99]).read(&mut [0]).unwrap(), 0);
    let other = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    other.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    other.connect(&http.into()).unwrap();
    assert_eq!(get_by(other.into(), "/readyz").0, 200);
    assert!(held[0].set_nonblocking(true).and_then(|()| (&held[0]).read(&mut [0])).is_err(), "still held");
}

#[test]
fn the_zones_can_be_printed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.5", "2001:db8::5"])]));
    let output = Command::new(env!("CARGO_BIN_EXE_secondary-dns"))
        .args(["dump", "--source", &format!("dir:{}", dir.path().display()), "--domain", "example.com"])
        .args(["--name-server-ip", "192.0.2.53", "--reverse", "10.1.0.0/16", "--ttl", "60"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains(" SOA ")).collect();
    assert_eq!(
        lines,
        [
            "$ORIGIN vm.example.com.",
            "@ 60 IN NS ns.vm.example.com.",
            "blue.vm1.ns1 60 IN A 10.1.0.5",
            "blue.vm1.ns1 60 IN AAAA 2001:db8::5",
            "ns 60 IN A 192.0.2.53",
            "vm1.ns1 60 IN A 10.1.0.5",
            "vm1.ns1 60 IN AAAA 2001:db8::5",
            "$ORIGIN 1.10.in-addr.arpa.",
            "@ 60 IN NS ns.vm.example.com.",
            "5.0.1.10.in-addr.arpa. 60 IN PTR blue.vm1.ns1.vm.example.com.",
        ]
    );
}

#[test]
fn a_wrong_command_line_is_refused_with_its_reason() {
    for (arguments, reason) in [
        (vec![], "required arguments were not provided"),
        (vec!["--source", "file:x", "--domain", "example.com"], "is not a source"),
        (vec!["--source", "dir:x", "--domain", "exa mple"], "is not a label"),
        (
            vec!["--source", "dir:x", "--domain", "example.com", "--trust", "rumour"],
            "is not a source of addresses",
        ),
        (vec!["--source", "dir:x", "--domain", "example.com", "--reverse", "10.0.0.0/9"], "prefix length"),
        (
            vec![
                "--source",
                "dir:x",
                "--domain",
                "example.com",
                "--reverse",
                "10.1.0.0/16",
                "--reverse",
                "10.0.0.0/8",
            ],
            "overlap",
        ),
        (vec!["--source", "dir:x", "--domain", "example.com", "--secondary", "192.0.2.1,k"], "--tsig-keys"),
        (
            vec!["--source", "dir:x", "--domain", "example.com", "--tsig-keys", "/nonexistent"],
            "read /nonexistent",
        ),
        (vec!["--source", "dir:x", "--domain", "example.com", "--ttl", "90000"], "0..=86400"),
        (vec!["--source", "dir:x", "--domain", "example.com", "--threads", "0"], "from 1 to 1024"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_secondary-dns")).args(&arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(reason), "{arguments:?}: {text}");
        assert!(output.stdout.is_empty(), "stdout is for answers");
    }
}
