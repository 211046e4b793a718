//! Whatever a runtime gets wrong, each plugin of the bridge family answers with a code of the specification and changes
//! nothing.

use e2e::{CniCall, Namespace, Sandbox, Snapshot, sh};
use serde_json::{Value, json};

const PLUGINS: [&str; 3] = ["cnv-bridge", "cnv-tuning", "vm-tap"];

fn config(plugin: &str) -> Value {
    let previous = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "net1"}]});
    json!({"cniVersion": "1.0.0", "name": "net", "type": plugin, "bridge": "br1", "prevResult": previous})
}

#[test]
fn a_broken_call_gets_its_code_from_each_plugin() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    for plugin in PLUGINS {
        let call = CniCall::new(plugin, config(plugin)).netns(&pod);
        for variable in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"] {
            let (code, message) = call.clone().without(variable).call("ADD").error();
            assert_eq!((code, message), (4, format!("ADD needs {variable}")), "{plugin}");
        }
        for (verb, variables) in [
            ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"][..]),
            ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"]),
            ("STATUS", &["CNI_PATH"]),
            ("GC", &["CNI_PATH"]),
        ] {
            for variable in variables {
                let (code, message) = call.clone().without(variable).call(verb).error();
                assert_eq!((code, message), (4, format!("{verb} needs {variable}")), "{plugin}");
            }
        }
        let table = [
            (call.clone().ifname("sixteen-bytes-xx"), 4),
            (call.clone().ifname("a/b"), 4),
            (call.clone().container("-c"), 4),
            (call.clone().args("=;="), 4),
            (call.clone().var("CNI_NETNS", "/run/netns/nowhere"), 3),
            (call.clone().var("CNI_NETNS", "/proc/self/ns/net"), 8),
            (call.clone().var("CNI_NETNS", "/proc/self/ns/net").var("CNI_NETNS_OVERRIDE", "0"), 8),
            (call.clone().ifname("net%d"), 4),
            (call.clone().ifname("all"), 4),
            (call.clone().with("args", json!({"cni": [null, "02:00:00:00:00:01"]})), 6),
            (call.clone().with("prevResult", json!({"interfaces": [["net1"]]})), 6),
            (call.clone().with("cniVersion", "7.0.0".into()), 1),
            (call.clone().with("name", "a\0b".into()), 7),
            (call.clone().with("name", Value::Null), 7),
            (call.clone().with("prevResult", json!({"ips": "none"})), 6),
        ];
        for (call, code) in table {
            let error = call.call("ADD").error();
            assert_eq!(error.0, code, "{plugin}: {error:?}");
        }
        if plugin != "vm-tap" {
            let listed = call.clone().with("runtimeConfig", json!(["02:00:00:00:00:01"]));
            assert_eq!(listed.call("ADD").error().0, 6, "{plugin}");
        }
        let padded = |size: usize| {
            let mut config = config(plugin);
            config["note"] = "x".repeat(size).into();
            config.to_string().into_bytes()
        };
        let deep = format!(r#"{{"name":"net","x":{}"#, "[".repeat(1 << 20));
        for stdin in
            [&b""[..], b"\0", b"{\"name\":\"net\",\0}", b"\xff\xfe", deep.as_bytes(), &padded(5 << 20)]
        {
            assert_eq!(call.call_with_stdin("ADD", stdin).error().0, 6, "{plugin}");
        }
        // A megabyte is read: only that net1 is not there is wrong.
        if plugin != "cnv-bridge" {
            assert_eq!(call.call_with_stdin("ADD", &padded(1 << 20)).error().0, 110, "{plugin}");
        }
        before.assert_unchanged();
    }
}

#[test]
fn del_lets_go_of_an_attachment_whatever_came_of_its_namespace_and_result() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    // The host has an interface of the same name, which is not the container's.
    sh("ip link add net1 type veth peer name far");
    let before = Snapshot::take(&[]);
    for plugin in PLUGINS {
        let call = CniCall::new(plugin, config(plugin));
        for call in [
            call.clone().var("CNI_NETNS", "/proc/self/ns/net"),
            call.clone().var("CNI_NETNS", "/proc/self/ns/net").with("prevResult", json!({"ips": "none"})),
            call.clone().var("CNI_NETNS", "/proc/4194304/ns/net"),
            call.clone().var("CNI_NETNS", "").with("prevResult", json!([])),
        ] {
            call.call("DEL").success();
            before.assert_unchanged();
        }
    }
}

#[test]
fn a_configuration_written_for_go_is_read_as_go_reads_it() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "Bridge": "br1", "macSpoofChk": true, "MTU": 1400,
        "vlanTrunk": null, "isGateway": null, "args": null, "runtimeConfig": {"mac": null}, "dns": null, "ipam": null,
    });
    let call = CniCall::new("cnv-bridge", config).netns(&pod);
    let answer = call.call("ADD");
    assert!(!answer.stderr.contains("WARN"), "{}", answer.stderr);
    let result = answer.success();
    assert!(pod.sh("ip link show net1").contains("mtu 1400"));
    assert!(
        sh("nft list set bridge cnv-bridge macs").contains(result["interfaces"][2]["mac"].as_str().unwrap())
    );
    call.with("prevResult", result).call("CHECK").success();
}

#[test]
fn nft_and_path_need_not_be_there() {
    let _sandbox = Sandbox::enter();
    let pod = Namespace::new("pod");
    let ranges = json!([[{"subnet": "192.0.2.0/24"}]]);
    let mut config = config("cnv-bridge");
    config["ipam"] = json!({"type": "host-local", "dataDir": "/run/ipam", "ranges": ranges});
    for key in ["isGateway", "ipMasq", "macspoofchk", "ipspoofchk"] {
        config[key] = true.into();
    }
    let call = CniCall::new("cnv-bridge", config).netns(&pod).var("CNI_PATH", "/usr/lib/cni");
    let call = call.var("PATH", "/nonexistent");
    let result = call.call("ADD").success();
    call.clone().with("prevResult", result).call("CHECK").success();
    call.call("DEL").success();
    assert_eq!(sh("nft list ruleset"), "");
}

#[test]
fn every_line_of_a_log_says_whose_call_it_was() {
    let _sandbox = Sandbox::enter();
    let pod = Namespace::new("pod");
    for plugin in PLUGINS {
        let call = CniCall::new(plugin, config(plugin)).netns(&pod).with("colour", "red".into());
        let unread = call.call_with_stdin("ADD", b"{");
        let (refused, unclear) =
            (call.clone().with("bridge", "br9".into()).call("ADD"), call.args("=;=").call("ADD"));
        assert!(refused.stderr.lines().count() > 1, "a warning and an error: {}", refused.stderr);
        for answer in [unread, refused, unclear] {
            let is_told = |line: &str| line.contains(r#"command="ADD" container="c1" interface="net1""#);
            assert!(answer.stderr.lines().all(is_told), "{plugin}: {}", answer.stderr);
            answer.error();
        }
    }
}

/// Runs a program that gets this errno whenever it wants to talk to nf_tables: it says so in a filter of its system calls
/// (`linux/seccomp.h`), which lets pass all but socket(AF_NETLINK, _, NETLINK_NETFILTER).
const WITHOUT_NF_TABLES: &str = r#"
import ctypes, os, struct, sys
load, equal, give = 0x20, 0x15, 0x06
rules = [(load, 0, 0, 0), (equal, 0, 5, 41), (load, 0, 0, 16), (equal, 0, 3, 16), (load, 0, 0, 32), (equal, 0, 1, 12),
         (give, 0, 0, 0x50000 | int(sys.argv[1])), (give, 0, 0, 0x7fff0000)]
rules = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 8, ctypes.addressof(rules)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
"#;

#[test]
fn without_nf_tables_a_check_is_refused_and_all_else_works() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    // EPERM, where it is forbidden; EPROTONOSUPPORT, where the kernel has none, and so there can be no rules either.
    for (errno, is_there) in [("1", true), ("93", false)] {
        let by = ["/usr/bin/python3", "-c", WITHOUT_NF_TABLES, errno];
        let call = |plugin: &str| {
            CniCall::new(plugin, config(plugin)).netns(&pod).by(&by).with("cniVersion", "1.1.0".into())
        };
        let plain = call("cnv-bridge").without_field("prevResult");
        let checked = plain.clone().with("macspoofchk", true.into());
        let refused = checked.call("ADD");
        let said = "not all of the failed ADD could be taken back: cannot talk to nf_tables: Operation not permitted";
        assert_eq!(refused.stderr.contains(said), is_there, "{}", refused.stderr);
        let (code, message) = refused.error();
        assert!(code == 104 && message == "cannot talk to nf_tables", "{code} {message}");
        before.assert_unchanged();
        assert_eq!(checked.call("STATUS").error().0, 50);
        for verb in ["DEL", "GC"] {
            let answer = checked.clone().with("cni.dev/valid-attachments", json!([])).call(verb);
            assert_eq!(answer.code, Some(i32::from(is_there)), "{verb}: {}", answer.stderr);
        }
        let result = plain.call("ADD").success();
        let tuning =
            call("cnv-tuning").with("mac", "02:00:00:00:00:77".into()).with("prevResult", result.clone());
        let tuned = tuning.call("ADD");
        if is_there {
            assert_eq!(tuned.error().0, 104);
            // What was changed before it failed is as it was.
            plain.clone().with("prevResult", result.clone()).call("CHECK").success();
        } else {
            tuned.success();
        }
        tuning.call("DEL").success();
        plain.clone().with("prevResult", result).call("CHECK").success();
        plain.call("DEL").success();
        before.assert_unchanged();
    }
}
