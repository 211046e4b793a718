//! `cnv-bridge` with whatever an IPAM plugin answers: it does what the answer says, or says why not and leaves nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::thread;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, sh};
use serde_json::{Value, json};

/// Where this test's own IPAM plugin is, beside Debian's.
pub(crate) const PLUGINS: &str = "/run/bin:/usr/lib/cni";

fn call(pod: &Namespace, more: Value) -> CniCall {
    let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "cnv-bridge", "bridge": "br1"});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    CniCall::new("cnv-bridge", config).netns(pod).container(pod.name()).var("CNI_PATH", PLUGINS)
}

/// Makes a script an IPAM plugin of that name.
fn plugin(name: &str, script: &str) {
    fs::create_dir_all("/run/bin").unwrap();
    let path = Path::new("/run/bin").join(name);
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// An IPAM plugin `fixed` that answers ADD with this, and notes what it is asked in `/run/asked`.
pub(crate) fn answering(answer: &str) {
    let script = format!(
        "#!/bin/sh\ncat > /dev/null\necho $CNI_COMMAND >> /run/asked\n[ $CNI_COMMAND != ADD ] || cat << 'END'\n{answer}\nEND\n"
    );
    plugin("fixed", &script);
}

#[test]
fn an_answer_of_no_use_is_refused_and_taken_back() {
    let _sandbox = Sandbox::enter();
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    let with = |address: &str| json!({"cniVersion": "1.0.0", "ips": [{"address": address}]}).to_string();
    let table = [
        (String::new(), 6, "the result of IPAM plugin fixed cannot be read"),
        ("no JSON".to_owned(), 6, "the result of IPAM plugin fixed cannot be read"),
        ("[]".to_owned(), 6, "cannot be read"),
        (json!({"ips": [["192.0.2.1/24"]]}).to_string(), 6, "ips[0] cannot be read"),
        (with("192.0.2.1/33"), 6, "ips[0].address cannot be read"),
        (with("192.0.2.9"), 6, "192.0.2.9\\\" is no subnet"),
        (with("192.0.2.9/255.255.255.0"), 6, "ips[0].address cannot be read"),
        (json!({"ip4": {"ip": 5}}).to_string(), 6, "ip4.ip cannot be read"),
        ("{}".to_owned(), 107, "assigned no address"),
        (json!({"ips": null}).to_string(), 107, "assigned no address"),
        (with("255.255.255.255/32"), 107, "the subnet has no other address"),
        (with("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"), 107, "the subnet has no other address"),
        (with("224.0.0.1/24"), 104, "cannot add address 224.0.0.1/24"),
    ];
    for (answer, code, message) in table {
        answering(&answer);
        let call = call(&pod, json!({"isDefaultGateway": true, "ipMasq": true, "ipam": {"type": "fixed"}}));
        let refusal = call.call("ADD");
        let text = refusal.json.to_string();
        assert!(
            refusal.error().0 == code && text.contains(message),
            "{answer}: expected {code} {message}: {text}"
        );
        before.assert_unchanged();
        assert_eq!(fs::read_to_string("/run/asked").unwrap(), "ADD\nDEL\n", "{answer}");
        fs::remove_file("/run/asked").unwrap();
    }
}

#[test]
fn addresses_of_the_oldest_shape_are_understood() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    answering(
        r#"{"cniVersion": "0.2.0", "ip4": {"ip": "192.0.2.9/24", "gateway": "192.0.2.1", "routes": [{"dst": "0.0.0.0/0"}]}}"#,
    );
    let result = call(&pod, json!({"ipam": {"type": "fixed"}})).call("ADD").success();
    assert_eq!(result["ips"][0]["address"], "192.0.2.9/24");
    assert!(pod.sh("ip route").contains("default via 192.0.2.1 dev net1"));
}

#[test]
fn routes_get_what_they_ask_for_and_check_sees_it_gone() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    answering(
        &json!({
            "cniVersion": "1.1.0",
            "ips": [{"address": "192.0.2.9/24", "gateway": "192.0.2.1"}, {"address": "2001:db8::9/64"}],
            "routes": [
                {"dst": "198.51.100.0/24", "mtu": 1300, "advmss": 1200, "priority": 50},
                {"dst": "0.0.0.0/0", "gw": "192.0.2.254", "table": 1000},
                {"dst": "203.0.113.0/24", "gw": "192.0.2.1"},
                {"dst": "2001:db8:1::/64", "gw": "2001:db8::1", "priority": 7},
            ],
        })
        .to_string(),
    );
    let call = call(&pod, json!({"ipam": {"type": "fixed"}}));
    let result = call.call("ADD").success();
    let check = call.with("prevResult", result);
    check.call("CHECK").success();
    let routes = pod.sh("ip route show table all") + &pod.sh("ip -6 route");
    for route in [
        "198.51.100.0/24 via 192.0.2.1 dev net1 proto static metric 50 mtu 1300 advmss 1200",
        "default via 192.0.2.254 dev net1 table 1000 proto static",
        "2001:db8:1::/64 via 2001:db8::1 dev net1 proto static metric 7",
    ] {
        assert!(routes.contains(route), "{route} is not in {routes}");
    }
    let table = [
        ("ip route del 198.51.100.0/24", "route to 198.51.100.0/24 by net1 is absent"),
        (
            "ip route add 198.51.100.0/24 via 192.0.2.1 dev net1 metric 51",
            "route to 198.51.100.0/24 by net1 is absent",
        ),
        ("ip route add 198.51.100.0/24 via 192.0.2.1 dev net1 metric 50", ""),
        (
            "ip route replace 203.0.113.0/24 via 192.0.2.7 dev net1",
            "is via 192.0.2.7, expected via 192.0.2.1",
        ),
        ("ip route replace 203.0.113.0/24 dev net1 scope link", "is on the link, expected via 192.0.2.1"),
        ("ip route replace 203.0.113.0/24 via 192.0.2.1 dev net1", ""),
        ("ip route replace default via 192.0.2.254 dev net1 table main", ""),
        ("ip route del default table 1000", "route to 0.0.0.0/0 by net1 is absent"),
    ];
    for (change, message) in table {
        pod.sh(change);
        let answer = check.call("CHECK");
        if message.is_empty() {
            answer.success();
        } else {
            let (code, text) = answer.error();
            assert!(code == 105 && text.contains(message), "{change}: {text}");
        }
    }
}

#[test]
fn check_sees_what_the_bridge_is_no_more() {
    let _sandbox = Sandbox::enter();
    let pod = Namespace::new("pod");
    answering(
        r#"{"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.9/24"}, {"address": "2001:db8::9/64"}]}"#,
    );
    let call = call(&pod, json!({"isGateway": true, "promiscMode": true, "ipam": {"type": "fixed"}}));
    let result = call.call("ADD").success();
    let check = call.with("prevResult", result);
    for (change, restore, message) in [
        ("ip link set br1 promisc off", "ip link set br1 promisc on", "promiscuous mode of br1 is false"),
        (
            "ip address del 192.0.2.1/24 dev br1",
            "ip address add 192.0.2.1/24 dev br1",
            "gateway's address 192.0.2.1/24 on br1 is absent",
        ),
        (
            "ip address del 2001:db8::1/64 dev br1",
            "ip address add 2001:db8::1/64 dev br1",
            "gateway's address 2001:db8::1/64 on br1 is absent",
        ),
    ] {
        check.call("CHECK").success();
        sh(change);
        let (code, text) = check.call("CHECK").error();
        assert!(code == 105 && text.contains(message), "{change}: {text}");
        sh(restore);
    }
}

/// An IPAM plugin that notes how many ports the bridge has when it is asked to release an address, and fails at it as long as
/// there is `/run/broken`.
const WITNESS: &str = r#"#!/bin/sh
cat > /dev/null
case $CNI_COMMAND in
ADD) echo '{"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.9/24"}]}' ;;
DEL | GC)
    echo "$CNI_COMMAND with $(ip -o link show master br1 | wc -l)" >> /run/asked
    [ ! -e /run/broken ] || { echo '{"code": 11, "msg": "no"}'; exit 1; }
    ;;
esac
"#;

#[test]
fn an_address_is_released_when_its_pod_can_send_by_it_no_more() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let before = Snapshot::take(&[]);
    let asked = || {
        let asked = fs::read_to_string("/run/asked").unwrap();
        fs::remove_file("/run/asked").unwrap();
        asked
    };
    // The reference plugin `dhcp` tells its server by the port.
    for (name, ports) in [("fixed", 0), ("dhcp", 1)] {
        plugin(name, WITNESS);
        let pod = Namespace::new("pod");
        let call = call(&pod, json!({"ipMasq": true, "macspoofchk": true, "ipam": {"type": name}}));
        call.call("ADD").success();
        fs::write("/run/broken", "").unwrap();
        let (code, message) = call.call("DEL").error();
        assert!(code == 11 && message.contains(&format!("IPAM plugin {name}: no")), "{message}");
        assert_eq!(asked(), format!("DEL with {ports}\n"));
        fs::remove_file("/run/broken").unwrap();
        call.call("DEL").success();
        assert_eq!(asked(), "DEL with 0\n", "{name}: all but the address went with the first DEL");
        call.call("ADD").success();
        call.with("cni.dev/valid-attachments", json!([])).call("GC").success();
        assert_eq!(asked(), format!("DEL with {ports}\nGC with 0\n"), "{name}");
        drop(pod);
        before.assert_unchanged();
    }
}

#[test]
fn check_and_status_ask_the_ipam_plugin() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    answering(r#"{"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.9/24"}]}"#);
    let call = call(&pod, json!({"ipam": {"type": "fixed"}}));
    let attached = call.clone().with("prevResult", call.call("ADD").success());
    for verb in ["CHECK", "STATUS"] {
        attached.call(verb).success();
        assert!(fs::read_to_string("/run/asked").unwrap().ends_with(&format!("{verb}\n")));
    }
    plugin("fixed", "#!/bin/sh\necho '{\"code\": 99, \"msg\": \"it is not mine\"}'\nexit 1\n");
    for (verb, expected) in [("CHECK", 99), ("STATUS", 50)] {
        let (code, text) = attached.call(verb).error();
        assert!(
            code == expected && text.contains("IPAM plugin fixed: it is not mine"),
            "{verb}: {code} {text}"
        );
    }
}

/// An IPAM plugin that notes of whom it is asked to release an address, and fails at that of `c1`.
const STRICT: &str = r#"#!/bin/sh
grep -q valid-attachments && of=$CNI_COMMAND
case $CNI_COMMAND in
ADD) echo '{"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.9/24"}]}' ;;
DEL) echo "DEL $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS$of" >> /run/asked ;;
GC) echo "GC $CNI_CONTAINERID$CNI_IFNAME of $of" >> /run/asked ;;
esac
[ $CNI_COMMAND$CNI_CONTAINERID != DELc1 ] || { echo '{"code": 11, "msg": "not now"}'; exit 1; }
"#;

#[test]
fn gc_has_the_addresses_released_of_what_it_removes() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    plugin("strict", STRICT);
    let keys = json!({"macspoofchk": true, "ipMasq": true, "ipam": {"type": "strict"}});
    let pods = ["c0", "c1", "c2", "c3"].map(|container| {
        let pod = Namespace::new("pod");
        let call = call(&pod, keys.clone()).container(container);
        call.call("ADD").success();
        (call, pod)
    });
    let valid = json!([{"containerID": "c2", "ifname": "net1"}]);
    let gc = pods[0].0.clone().without("CNI_CONTAINERID").without("CNI_IFNAME").without("CNI_NETNS");
    let [_, _, _, (_, vanished)] = pods;
    drop(vanished);
    // By now the network needs neither check nor masquerading; what it had goes all the same.
    let gc = gc.with("macspoofchk", false.into()).with("ipMasq", false.into());
    let (code, text) = gc.with("cni.dev/valid-attachments", valid).call("GC").error();
    assert!(code == 11 && text.contains("not now"), "{code} {text}");
    let asked = fs::read_to_string("/run/asked").unwrap();
    let [first, second, third, last] = *asked.lines().collect::<Vec<_>>() else { panic!("{asked}") };
    assert_eq!([first, second, third], ["DEL c0 net1 ", "DEL c1 net1 ", "DEL c3 net1 "]);
    assert_eq!(last, "GC  of GC");
    assert_eq!(sh("ip -o link show master br1").lines().count(), 1);
    let rules = sh("nft list ruleset");
    let owners =
        ["net1 c0 net", "net1 c1 net", "net1 c2 net", "net1 c3 net"].map(|owner| rules.contains(owner));
    assert_eq!(owners, [false, false, true, false], "{rules}");
}

/// Both families from Debian's `host-local`, whose files are in the sandbox's own /run.
fn host_local() -> Value {
    let ranges = json!([[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8::/64"}]]);
    json!({"type": "host-local", "dataDir": "/run/ipam", "ranges": ranges})
}

#[test]
fn pods_come_and_go_beside_one_another() {
    let _sandbox = Sandbox::enter();
    let pods: Vec<_> = (0..6).map(|_| Namespace::new("pod")).collect();
    let before = Snapshot::take(&[]);
    let network = json!({
        "cniVersion": "1.0.0", "isDefaultGateway": true, "ipMasq": true, "macspoofchk": true, "ipspoofchk": true,
        "ipam": host_local(),
    });
    // Threads are in the sandbox of the one that starts them.
    thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| {
                let call = call(pod, network.clone());
                for _ in 0..4 {
                    let result = call.call("ADD").success();
                    let attached = call.clone().with("prevResult", result);
                    attached.call("CHECK").success();
                    attached.call("DEL").success();
                }
            });
        }
    });
    before.assert_unchanged();
}

#[test]
fn after_a_reboot_del_releases_what_is_on_disk() {
    let _sandbox = Sandbox::enter();
    let before = Snapshot::take(&[]);
    let pod = Namespace::new("pod");
    let keys = json!({"cniVersion": "1.0.0", "isGateway": true, "ipMasq": true, "macspoofchk": true, "ipam": host_local()});
    let call = call(&pod, keys);
    let result = call.call("ADD").success();
    assert!(Path::new("/run/ipam/net/192.0.2.2").exists());
    // What a reboot leaves of it.
    drop(pod);
    sh("ip link delete br1");
    sh("nft flush ruleset");
    call.with("prevResult", result).call("DEL").success();
    assert!(!Path::new("/run/ipam/net/192.0.2.2").exists());
    before.assert_unchanged();
}
