//! `cnv-tuning` changes what it is asked to, puts it back, and keeps a spoof check working.

use std::fs;
use std::path::Path;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, output, sh};
use serde_json::{Value, json};

struct Chain {
    pod: Namespace,
    bridge: CniCall,
    result: Value,
}

fn attached() -> Chain {
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let config = json!({"cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1", "macspoofchk": true});
    let bridge = CniCall::new("cnv-bridge", config).netns(&pod);
    let result = bridge.call("ADD").success();
    Chain { pod, bridge, result }
}

impl Chain {
    fn tuning(&self, more: Value) -> CniCall {
        let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "cnv-tuning"});
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        CniCall::new("cnv-tuning", config).netns(&self.pod).with("prevResult", self.result.clone())
    }
}

#[test]
fn the_interface_is_tuned_checked_and_put_back() {
    let _sandbox = Sandbox::enter();
    let chain = attached();
    let before = chain.pod.netns().run(|| Snapshot::take(&[Path::new("/run/cni")])).unwrap();
    let tuning = chain.tuning(json!({
        "mac": "02:00:00:00:00:77", "mtu": 1300, "promisc": true, "allmulti": true, "txQLen": 77,
    }));
    let result = tuning.call("ADD").success();
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:77");
    let link = chain.pod.sh("ip -o link show net1");
    for part in ["02:00:00:00:00:77", "mtu 1300", "PROMISC", "ALLMULTI", "qlen 77"] {
        assert!(link.contains(part), "{part} is not in {link}");
    }
    tuning.call("CHECK").success();
    for (change, restore, message) in [
        (
            "ip link set net1 address 02:00:00:00:00:66",
            "ip link set net1 address 02:00:00:00:00:77",
            "address of net1 is 02:00:00:00:00:66, expected 02:00:00:00:00:77",
        ),
        ("ip link set net1 mtu 1400", "ip link set net1 mtu 1300", "MTU of net1"),
        ("ip link set net1 promisc off", "ip link set net1 promisc on", "promiscuous mode"),
        ("ip link set net1 allmulticast off", "ip link set net1 allmulticast on", "all-multicast"),
        ("ip link set net1 txqueuelen 5", "ip link set net1 txqueuelen 77", "queue length"),
    ] {
        chain.pod.sh(change);
        let (code, text) = tuning.call("CHECK").error();
        assert!(code == 105 && text.contains(message), "{change}: {text}");
        chain.pod.sh(restore);
    }
    tuning.call("DEL").success();
    tuning.call("DEL").success();
    chain.pod.netns().run(|| before.assert_unchanged()).unwrap();
}

#[test]
fn a_tuned_address_passes_the_spoof_check_and_the_old_one_no_longer() {
    let _sandbox = Sandbox::enter();
    let chain = attached();
    let host = Namespace::new("host");
    sh(&format!("ip link add uplink type veth peer name eth0 netns {}", host.name()));
    sh("ip link set uplink up master br1");
    host.sh("ip address add 192.0.2.1/24 dev eth0");
    host.sh("ip link set eth0 up");
    let old = chain.result["interfaces"][2]["mac"].as_str().unwrap();
    let result = chain.tuning(json!({"args": {"cni": {"mac": "02:00:00:00:00:77"}}})).call("ADD").success();
    chain.pod.sh("ip address add 192.0.2.2/24 dev net1");
    chain.pod.sh("ping -c 1 -W 5 192.0.2.1");
    chain.bridge.clone().with("prevResult", result).call("CHECK").success();
    chain.pod.sh(&format!("ip link set net1 address {old}"));
    assert!(!output(chain.pod.command("ping").args(["-c", "1", "-W", "1", "192.0.2.1"])).status.success());
}

#[test]
fn sysctls_are_set_in_the_pod_only() {
    let _sandbox = Sandbox::enter();
    let chain = attached();
    let read = |path: &str| fs::read_to_string(path).unwrap().trim().to_owned();
    let (some, other) = ("/proc/sys/net/ipv4/conf/net1/arp_filter", "/proc/sys/net/ipv4/ip_local_port_range");
    let host = read(other);
    let tuning = chain.tuning(json!({
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
        "args": {"cni": {"sysctl": {"net/ipv4/ip_local_port_range": "2000 3000"}}},
    }));
    tuning.call("ADD").success();
    let inside = chain.pod.netns().run(|| (read(some), read(other))).unwrap();
    assert_eq!(inside, ("1".to_owned(), "2000\t3000".to_owned()));
    assert_eq!(read(other), host);
    tuning.call("CHECK").success();
    chain.pod.netns().run(|| fs::write(some, "0").unwrap()).unwrap();
    assert!(tuning.call("CHECK").error().1.contains("sysctl net.ipv4.conf.net1.arp_filter"));
}

#[test]
fn a_sysctl_written_in_two_ways_has_one_value_and_args_go_before_the_network() {
    let _sandbox = Sandbox::enter();
    let chain = attached();
    let (dots, slashes) = ("net.ipv4.conf.net1.arp_filter", "net/ipv4/conf/net1/arp_filter");
    let named = "net.ipv4.conf.IFNAME.arp_filter";
    for both in [json!({dots: "1", slashes: "0"}), json!({named: "1", dots: "0"})] {
        for more in [json!({"sysctl": both}), json!({"args": {"cni": {"sysctl": both}}})] {
            let (code, message) = chain.tuning(more.clone()).call("ADD").error();
            let names_both =
                both.as_object().unwrap().keys().all(|key| message.contains(&format!("{key:?} is")));
            assert!(code == 7 && names_both && message.contains("one setting"), "{more}: {message}");
        }
    }
    let arp_filter = || {
        let read = || fs::read_to_string("/proc/sys/net/ipv4/conf/net1/arp_filter").unwrap();
        chain.pod.netns().run(read).unwrap().trim().to_owned()
    };
    let twice = r#"{"cniVersion": "1.0.0", "name": "net", "type": "cnv-tuning", "sysctl": {"net.x": "1", "net.x": "0"}}"#;
    let refusal = chain.tuning(json!({})).call_with_stdin("ADD", twice.as_bytes()).json.to_string();
    assert!(refusal.contains(r#"\"net.x\" stands twice"#), "{refusal}");
    assert_eq!(arp_filter(), "0", "a refused ADD sets nothing");
    let agreed = chain.tuning(json!({"sysctl": {dots: "1", slashes: "1 ", named: "1"}}));
    agreed.call("ADD").success();
    agreed.call("CHECK").success();
    assert_eq!(arp_filter(), "1");
    let by_args = chain.tuning(json!({"sysctl": {dots: "1"}, "args": {"cni": {"sysctl": {slashes: "0"}}}}));
    by_args.call("ADD").success();
    by_args.call("CHECK").success();
    assert_eq!(arp_filter(), "0");
}

#[test]
fn promiscuous_mode_is_never_switched_off_as_in_the_reference_plugin() {
    let _sandbox = Sandbox::enter();
    let chain = attached();
    chain.pod.sh("ip link set net1 promisc on");
    let before = chain.pod.netns().run(|| Snapshot::take(&[Path::new("/run/cni")])).unwrap();
    for more in [json!({"promisc": false}), json!({"promisc": true, "args": {"cni": {"promisc": false}}})] {
        let tuning = chain.tuning(more);
        tuning.call("ADD").success();
        tuning.call("CHECK").success();
        chain.pod.netns().run(|| before.assert_unchanged()).unwrap();
    }
}

#[test]
fn gc_forgets_only_its_own_network_s_attachments() {
    let _sandbox = Sandbox::enter();
    let chain = attached();
    let files = || e2e::files(Path::new("/run/cni/tuning"));
    let tuning = chain.tuning(json!({"cniVersion": "1.1.0", "mtu": 1300}));
    tuning.call("ADD").success();
    let kept = files();
    let gc = |network: &str, valid: Value| {
        let gc = tuning.clone().with("name", network.into()).with("cni.dev/valid-attachments", valid);
        gc.call("GC").success();
    };
    gc("other", json!([]));
    gc("net", json!([{"containerID": "c1", "ifname": "net1"}]));
    assert_eq!(files(), kept, "values that are still needed were forgotten");
    gc("net", json!([]));
    assert_eq!(files(), "");
}

#[test]
fn what_was_kept_need_not_be_legible_once_the_pod_is_gone() {
    let _sandbox = Sandbox::enter();
    let chain = attached();
    let tuning = chain.tuning(json!({"mtu": 1300}));
    tuning.call("ADD").success();
    fs::write("/run/cni/tuning/c1:net1.json", "{").unwrap();
    let (code, message) = tuning.call("DEL").error();
    assert!(code == 114 && message.contains("/run/cni/tuning/c1:net1.json"), "{message}");
    drop(chain);
    tuning.call("DEL").success();
    assert!(!Path::new("/run/cni/tuning").exists());
}

#[test]
fn the_allowlist_decides_about_sysctls() {
    let _sandbox = Sandbox::enter();
    // The machine's own /etc stays as it is: what is written goes to the sandbox's /run.
    fs::create_dir_all("/run/etc/work").unwrap();
    fs::create_dir_all("/run/etc/upper").unwrap();
    sh("mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work /etc");
    let chain = attached();
    fs::create_dir_all("/etc/cni/tuning").unwrap();
    let tuning = chain.tuning(json!({"sysctl": {"net.ipv4.conf.all.arp_filter": "1"}}));
    fs::write("/etc/cni/tuning/allowlist.conf", "^net\\.ipv6\\.\n").unwrap();
    let (code, message) = tuning.call("ADD").error();
    assert!(code == 113 && message.contains("net.ipv4.conf.all.arp_filter"), "{message}");
    fs::write("/etc/cni/tuning/allowlist.conf", "^net\\.ipv6\\.\n^net\\.ipv4\\.conf\\..*\\.arp_filter$\n")
        .unwrap();
    tuning.call("ADD").success();
    fs::write("/etc/cni/tuning/allowlist.conf", "(\n").unwrap();
    assert_eq!(tuning.call("ADD").error().0, 113);

    // As clusters have it: of any pod's interface, by the name that configurations have for it.
    fs::write("/etc/cni/tuning/allowlist.conf", "^net.ipv4.conf.IFNAME.arp_filter$\n").unwrap();
    let of_interface =
        chain.tuning(json!({"cniVersion": "1.1.0", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}));
    for verb in ["ADD", "CHECK", "STATUS"] {
        of_interface.call(verb).success();
    }
    assert_eq!(tuning.call("ADD").error().0, 113);
    assert_eq!(tuning.with("cniVersion", "1.1.0".into()).call("STATUS").error().0, 50);
}

#[test]
fn what_was_kept_in_a_folder_of_the_network_s_is_put_back_from_there() {
    let _sandbox = Sandbox::enter();
    let chain = attached();
    let before =
        chain.pod.netns().run(|| Snapshot::take(&[Path::new("/run/cni"), Path::new("/run/kept")])).unwrap();
    for folder in [json!({"datadir": "/run/kept"}), json!({"dataDir": "/run/kept"}), json!({"dataDir": ""})] {
        let tuning = chain.tuning(json!({"mtu": 1300}));
        let (key, path) = folder.as_object().unwrap().iter().next().unwrap();
        let tuning = tuning.with(key, path.clone());
        tuning.call("ADD").success();
        let written = if path == "" { "/run/cni/tuning" } else { "/run/kept" };
        assert!(e2e::files(Path::new(written)).contains("c1:net1.json"), "{folder}");
        tuning.call("DEL").success();
        chain.pod.netns().run(|| before.assert_unchanged()).unwrap();
    }
}

#[test]
fn the_address_of_args_goes_before_the_capability_s_as_in_the_reference_plugin() {
    let _sandbox = Sandbox::enter();
    let chain = attached();
    let tuning = chain.tuning(json!({
        "mac": "02:00:00:00:00:01",
        "runtimeConfig": {"mac": "02:00:00:00:00:02"},
        "args": {"cni": {"mac": "02:00:00:00:00:03"}},
    }));
    let address = |call: &CniCall| call.call("ADD").success()["interfaces"][2]["mac"].clone();
    assert_eq!(address(&tuning), "02:00:00:00:00:03");
    let tuning = tuning.without_field("args");
    assert_eq!(address(&tuning), "02:00:00:00:00:02");
    let tuning = tuning.without_field("runtimeConfig");
    assert_eq!(address(&tuning.clone().args("MAC=02:00:00:00:00:04")), "02:00:00:00:00:04");
    assert_eq!(address(&tuning), "02:00:00:00:00:01");
}

#[test]
fn what_is_wrong_is_refused_and_nothing_is_touched() {
    let _sandbox = Sandbox::enter();
    let chain = attached();
    let before = chain.pod.netns().run(|| Snapshot::take(&[Path::new("/run/cni")])).unwrap();
    let table = [
        (json!({"sysctl": {"kernel.core_pattern": "x"}}), 7, "is not below net"),
        (json!({"sysctl": {"net/../kernel/core_pattern": "x"}}), 7, "has an empty part"),
        (
            json!({"sysctl": {"net.ipv4.no_such_setting": "1"}}),
            112,
            "cannot write /proc/sys/net/ipv4/no_such_setting",
        ),
        (json!({"sysctl": 5}), 6, "sysctl"),
        (json!({"args": {"cni": {"sysctl": {"net.x": 5}}}}), 6, "args"),
        (json!({"mac": "01:00:5e:00:00:01"}), 7, "mac: is"),
        (json!({"mtu": 10}), 7, "mtu: is 10"),
        (json!({"txQLen": -1}), 7, "txQLen: is -1"),
        (json!({"promisc": "yes"}), 6, "promisc"),
        (json!({"dataDir": "tuning"}), 7, "dataDir: is \"tuning\"; allowed: an absolute path"),
        (json!({"mac": "02:00:00:00:00:77", "mtu": 65535, "dataDir": "/proc/nowhere"}), 112, "cannot create"),
        (json!({"prevResult": null}), 7, "prevResult is missing"),
    ];
    for (more, code, message) in table {
        let error = chain.tuning(more.clone()).with("name", "net".into());
        let error =
            if more.get("prevResult").is_some() { error.with("prevResult", Value::Null) } else { error };
        let error = error.call("ADD").error();
        assert!(error.0 == code && error.1.contains(message), "{more}: {error:?}");
        chain.pod.netns().run(|| before.assert_unchanged()).unwrap();
    }
    let late = chain.tuning(json!({"mtu": 1300, "sysctl": {}})).ifname("absent").call("ADD").error();
    assert_eq!(late.0, 110);
}

#[test]
fn what_a_crash_left_is_put_back_by_del() {
    let _sandbox = Sandbox::enter();
    let chain = attached();
    let before = chain.pod.netns().run(|| Snapshot::take(&[Path::new("/run/cni")])).unwrap();
    let tuning =
        chain.tuning(json!({"mac": "02:00:00:00:00:77", "mtu": 1300, "promisc": true, "txQLen": 77}));
    let crashes = tuning.cut_off_add(|| chain.pod.netns().run(|| before.assert_unchanged()).unwrap());
    assert_eq!(crashes, 7, "one crash for each change that ADD makes");
    tuning.cut_off_del(|| chain.pod.netns().run(|| before.assert_unchanged()).unwrap());
}

#[test]
fn an_add_that_is_repeated_keeps_what_the_interface_was_before_the_first() {
    let _sandbox = Sandbox::enter();
    let chain = attached();
    let before = chain.pod.netns().run(|| Snapshot::take(&[Path::new("/run/cni")])).unwrap();
    let tuning = chain.tuning(json!({"mac": "02:00:00:00:00:77", "mtu": 1300}));
    tuning.call("ADD").success();
    tuning.call("ADD").success();
    tuning.call("DEL").success();
    chain.pod.netns().run(|| before.assert_unchanged()).unwrap();
}

#[test]
fn the_result_tells_of_the_pod_s_interface_and_not_of_one_of_the_node_with_its_name() {
    let _sandbox = Sandbox::enter();
    let chain = attached();
    let mut previous = chain.result.clone();
    previous["cniVersion"] = "1.1.0".into();
    let of_node = json!({"name": "net1", "mac": "02:00:00:00:00:01", "mtu": 9000});
    previous["interfaces"].as_array_mut().unwrap().push(of_node.clone());
    let tuning = chain.tuning(json!({"cniVersion": "1.1.0", "mac": "02:00:00:00:00:77", "mtu": 1300}));
    let interfaces = tuning.with("prevResult", previous).call("ADD").success()["interfaces"].clone();
    assert_eq!((&interfaces[2]["mac"], &interfaces[2]["mtu"]), (&json!("02:00:00:00:00:77"), &json!(1300)));
    assert_eq!(interfaces[3], of_node);
}
