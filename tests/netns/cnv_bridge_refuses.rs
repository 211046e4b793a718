//! `cnv-bridge` refuses what it cannot do with a clear error, and nothing is left behind.

use e2e::{CniCall, Namespace, Sandbox, Snapshot, sh};
use serde_json::{Value, json};

fn config() -> Value {
    json!({"cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1"})
}

#[test]
fn a_broken_request_gets_the_code_of_the_specification() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    sh("ip link add plain type veth peer name plain-peer");
    let pod = Namespace::new("pod");
    pod.sh("ip link add taken type veth peer name taken-peer");
    let before = Snapshot::take(&[]);
    let call = CniCall::new("cnv-bridge", config()).netns(&pod);
    let table: [(CniCall, u64, &str); 17] = [
        (call.clone().without("CNI_CONTAINERID"), 4, "ADD needs CNI_CONTAINERID"),
        (call.clone().without("CNI_NETNS"), 4, "ADD needs CNI_NETNS"),
        (call.clone().without("CNI_IFNAME"), 4, "ADD needs CNI_IFNAME"),
        (call.clone().without("CNI_PATH"), 4, "ADD needs CNI_PATH"),
        (call.clone().container("../x"), 4, "CNI_CONTAINERID is"),
        (call.clone().ifname("sixteen-bytes-xx"), 4, "CNI_IFNAME"),
        (call.clone().args("MAC"), 4, "CNI_ARGS has"),
        (call.clone().args("COLOUR=red"), 4, "unknown key"),
        (call.clone().var("CNI_NETNS", "/run/netns/nowhere"), 3, "network namespace"),
        (call.clone().var("CNI_NETNS", "/proc/self/status"), 3, "network namespace"),
        (call.clone().var("CNI_NETNS", "/proc/self/ns/net"), 8, "plugin's own network namespace"),
        (call.clone().with("bridge", "br7".into()), 100, "bridge br7 does not exist"),
        (call.clone().with("bridge", "plain".into()), 101, "plain is no bridge but veth"),
        (call.clone().with("vlan", 4095.into()), 7, "vlan: is 4095"),
        (call.clone().with("runtimeConfig", json!({"mac": "01:00:5e:00:00:01"})), 7, "runtimeConfig.mac"),
        (call.clone().with("vlan", 100.into()), 102, "does not filter VLANs"),
        (call.clone().ifname("taken"), 103, "has an interface taken already"),
    ];
    for (call, code, message) in table {
        let error = call.call("ADD").error();
        assert!(error.0 == code && error.1.contains(message), "expected {code} {message}, got {error:?}");
        before.assert_unchanged();
        if code != 4 {
            // What ADD refuses, DEL lets go: else the runtime could never forget the attachment.
            call.call("DEL").success();
            before.assert_unchanged();
        }
    }
    for stdin in ["", "{", "[]", "{\"name\":\"net\"", "null"] {
        assert_eq!(call.call_with_stdin("ADD", stdin.as_bytes()).error().0, 6, "{stdin:?}");
    }
    assert_eq!(call.call("EXPLODE").error().0, 4);
    assert_eq!(call.clone().with("cniVersion", "2.0.0".into()).call("ADD").error().0, 1);
    assert_eq!(call.call("STATUS").error().0, 1, "STATUS came with 1.1.0");
    before.assert_unchanged();
}

#[test]
fn a_megabyte_of_configuration_is_read_and_five_are_refused() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let call = |size: usize| {
        let config =
            config().to_string().replace("\"br1\"", &format!("\"br1\",\"note\":\"{}\"", "x".repeat(size)));
        CniCall::new("cnv-bridge", Value::Null).netns(&pod).call_with_stdin("ADD", config.as_bytes())
    };
    call(1 << 20).success();
    let (code, message) = call(5 << 20).error();
    assert!(code == 6 && message.contains("too long"), "{message}");
}

#[test]
fn an_unknown_key_is_warned_of_with_the_nearest_known_one() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let call = CniCall::new("cnv-bridge", config()).netns(&pod).with("macspoofcheck", true.into());
    let answer = call.call("ADD");
    assert!(answer.stderr.contains("did you mean \"macspoofchk\"?"), "{}", answer.stderr);
    assert!(answer.stderr.contains("container=\"c1\"") && answer.stderr.contains("interface=\"net1\""));
    answer.success();
    call.call("DEL").success();
    let answer = call.with("foo", true.into()).call("ADD");
    assert!(answer.stderr.contains("\"foo\" is not a known key and is ignored\n"), "{}", answer.stderr);
}

#[test]
fn version_lists_what_is_spoken_without_a_configuration() {
    let _sandbox = Sandbox::enter();
    let answer = CniCall::new("cnv-bridge", Value::Null).call_with_stdin("VERSION", b"").success();
    let versions = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    assert_eq!(answer["supportedVersions"], json!(versions));
}

#[test]
fn a_failed_add_leaves_what_was_there_alone() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let call = CniCall::new("cnv-bridge", config()).netns(&pod).with("macspoofchk", true.into());
    call.call("ADD").success();
    let before = Snapshot::take(&[]);
    assert_eq!(call.call("ADD").error().0, 103);
    before.assert_unchanged();
}

#[test]
fn a_default_vlan_that_is_left_open_is_warned_of() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let call = CniCall::new("cnv-bridge", config()).netns(&pod);
    // This kernel filters no VLANs; that the port then stays in VLAN 1 is for the node rung.
    for (key, value) in [("vlan", json!(100)), ("vlanTrunk", json!([{"id": 7}]))] {
        let open = call.clone().with(key, value);
        for (call, is_warned) in [
            (open.clone(), true),
            (open.clone().with("preserveDefaultVlan", Value::Null), true),
            (open.clone().with("preserveDefaultVlan", false.into()), false),
            (open.with("preserveDefaultVlan", true.into()), false),
        ] {
            let answer = call.call("ADD");
            assert_eq!(
                answer.stderr.contains("preserveDefaultVlan is not set"),
                is_warned,
                "{}",
                answer.stderr
            );
            assert_eq!(answer.error().0, 102);
        }
    }
}
