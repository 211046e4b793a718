//! STATUS of every plugin says whether an ADD could work now: code 50 with what is missing, or nothing.

use std::fs;

use e2e::{CniCall, Sandbox, Snapshot, sh};
use serde_json::{Value, json};

/// A call of the plugin with more members than every configuration has.
fn plugin(kind: &str, more: Value) -> CniCall {
    let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": kind});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    CniCall::new(kind, config)
}

/// STATUS fails with this code, and tells of it by these words.
fn fails(call: &CniCall, expected: u64, words: &[&str]) {
    let answer = call.call("STATUS");
    let said = format!("{} {}", answer.json["msg"], answer.json["details"]);
    let (code, _) = answer.error();
    assert!(code == expected && words.iter().all(|word| said.contains(word)), "{code}: {said}");
}

#[test]
fn without_taps_nothing_can_be_turned_into_one() {
    let _sandbox = Sandbox::enter();
    let before = Snapshot::take(&["/run".as_ref()]);
    let (tap, masquerade) = (plugin("vm-tap", json!({})), plugin("masquerade", json!({})));
    tap.call("STATUS").success();
    masquerade.call("STATUS").success();
    before.assert_unchanged();
    sh("mount -t tmpfs none /dev/net");
    fails(&tap, 50, &["/dev/net/tun", "code 112", "No such file"]);
    fails(&masquerade, 50, &["/dev/net/tun", "code 112", "No such file"]);
    fails(&plugin("vm-tap", json!({"queues": 0})), 7, &["queues: is 0"]);
    fails(&plugin("masquerade", json!({"vmNetworkCIDR": "x"})), 7, &["vmNetworkCIDR"]);
    sh("umount /dev/net");
    tap.call("STATUS").success();
}

#[test]
fn where_nothing_can_be_written_down_nothing_is_changed() {
    let _sandbox = Sandbox::enter();
    fs::write("/run/guestwire", "").unwrap();
    fails(&plugin("vm-tap", json!({})), 50, &["/run/guestwire", "code 112"]);
    fs::write("/run/saved", "").unwrap();
    fails(
        &plugin("cnv-tuning", json!({"mtu": 1400, "dataDir": "/run/saved/here"})),
        50,
        &["/run/saved", "code 112"],
    );
    plugin("cnv-tuning", json!({"mtu": 1400, "dataDir": "/run/a/b/c"})).call("STATUS").success();
    assert!(!fs::exists("/run/a").unwrap(), "asking made a folder");
    fails(&plugin("cnv-tuning", json!({"mtu": 1})), 7, &["mtu"]);
}

#[test]
fn what_a_node_does_not_have_is_named() {
    let _sandbox = Sandbox::enter();
    fails(&plugin("cnv-bridge", json!({"bridge": "br9"})), 51, &["br9", "code 100", "ip link add"]);
    fails(&plugin("sriov", json!({"deviceID": "ffff:1f:1f.7"})), 50, &["ffff:1f:1f.7", "code 120"]);
    fails(&plugin("vhost-user", json!({"control": "/run/absent.sock"})), 51, &["/run/absent.sock"]);
    fails(&plugin("vm-tap", json!({"cniVersion": "1.0.0"})), 1, &["1.1.0"]);
}

#[test]
fn rules_that_the_kernel_would_not_take_are_told_of() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 type bridge");
    fs::create_dir_all("/run/bin").unwrap();
    fs::copy("/bin/true", "/run/bin/none").unwrap();
    let call =
        |more: Value| plugin("cnv-bridge", more).with("bridge", "br1".into()).var("CNI_PATH", "/run/bin");
    let plain = call(json!({"ipam": {"type": "none"}}));
    let (checked, masqueraded) =
        (plain.clone().with("macspoofchk", true.into()), plain.clone().with("ipMasq", true.into()));
    for call in [&plain, &checked, &masqueraded] {
        call.call("STATUS").success();
    }
    let before = Snapshot::take(&[]);
    let unprivileged = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
    plain.by(&unprivileged).call("STATUS").success();
    for call in [checked, masqueraded] {
        fails(&call.by(&unprivileged), 50, &["nf_tables refused", "code 104", "Operation not permitted"]);
    }
    before.assert_unchanged();
}
