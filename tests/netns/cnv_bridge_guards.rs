//! The spoof check: no frame leaves a pod that claims another's address, and no honest one is lost.

mod frames;
mod guest;

use std::path::Path;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, sh};
use serde_json::{Value, json};

use frames::{Frame, arp, in_vlan, ipv4_udp, ipv6, ipv6_with_extension, to_reserved};
use guest::Guest;

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 5];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0x66];
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// What messages of neighbour discovery are about, where it does not matter.
const TARGET: &str = "fe80::5";

fn call(pod: &Namespace, more: Value) -> CniCall {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1",
        "args": {"cni": {"mac": "02:00:00:00:00:05"}},
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    CniCall::new("cnv-bridge", config).netns(pod).container(pod.name()).var("CNI_PATH", "/usr/lib/cni")
}

/// A link-layer address option: type, length in units of eight bytes, address.
fn option(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1], &mac[..]].concat()
}

/// A nonce (RFC 3971), as Linux sends with duplicate address detection.
fn nonce() -> Vec<u8> {
    vec![14, 1, 1, 2, 3, 4, 5, 6]
}

/// A message of neighbour discovery about `target`.
fn discovery(source: &str, kind: u8, target: &str, options: &[Vec<u8>]) -> Frame {
    ipv6(OWN, source, ICMPV6, &message(kind, target, options))
}

fn message(kind: u8, target: &str, options: &[Vec<u8>]) -> Vec<u8> {
    let target: std::net::Ipv6Addr = target.parse().unwrap();
    [&[kind, 0, 0, 0, 0, 0, 0, 0], &target.octets()[..], &options.concat()].concat()
}

fn router_solicitation(source: &str, options: &[Vec<u8>]) -> Frame {
    ipv6(OWN, source, ICMPV6, &[&[133, 0, 0, 0, 0, 0, 0, 0], &options.concat()[..]].concat())
}

/// As a router sends it: hop limit, flags, lifetimes, then options.
fn router_advertisement(options: &[Vec<u8>]) -> Frame {
    let fixed = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    ipv6(OWN, "fe80::5", ICMPV6, &[&fixed[..], &options.concat()].concat())
}

/// A prefix that is on the link (RFC 4861, section 4.6.2): 32 bytes.
fn prefix() -> Vec<u8> {
    let lifetimes = [0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0];
    [&[3, 4, 64, 0xc0], &lifetimes[..], &[0x20, 1, 0xd, 0xb8], &[0; 12]].concat()
}

/// "What you send to `TARGET` had better go to whoever has this address."
fn redirect(options: &[Vec<u8>]) -> Frame {
    let destination = vec![0xfe; 16];
    discovery("fe80::5", 137, TARGET, &[&[destination], options].concat())
}

/// A bridge, a listener on it, and the guest of a pod attached with these keys.
fn guest(more: Value) -> (Namespace, Guest) {
    sh("ip link add br1 address 02:00:00:00:0b:01 type bridge");
    sh("ip link set br1 up");
    let pod = Namespace::new("pod");
    call(&pod, more).call("ADD").success();
    let guest = Guest::behind(&pod);
    (pod, guest)
}

fn forged_link_layer() -> Vec<(&'static str, Frame)> {
    vec![
        ("another sender", ipv4_udp(OTHER, "192.0.2.7", 1, 2)),
        ("ARP", arp(OWN, OTHER, [192, 0, 2, 7])),
        ("tagged ARP", in_vlan(0x8100, &arp(OWN, OTHER, [192, 0, 2, 7]))),
        ("solicitation", discovery("fe80::5", 135, TARGET, &[option(1, OTHER)])),
        ("solicitation, tagged", in_vlan(0x8100, &discovery("fe80::5", 135, TARGET, &[option(1, OTHER)]))),
        ("solicitation, second option", discovery("fe80::5", 135, TARGET, &[nonce(), option(1, OTHER)])),
        (
            "solicitation, one after its own",
            discovery("::", 135, TARGET, &[option(1, OWN), option(1, OTHER)]),
        ),
        ("solicitation, third option", discovery("::", 135, TARGET, &[nonce(), nonce(), option(1, OTHER)])),
        ("advertisement", discovery("fe80::5", 136, TARGET, &[option(2, OTHER)])),
        (
            "advertisement, second option",
            discovery("fe80::5", 136, TARGET, &[option(2, OWN), option(2, OTHER)]),
        ),
        ("router solicitation", router_solicitation("fe80::5", &[option(1, OTHER)])),
        ("router advertisement", router_advertisement(&[option(1, OTHER)])),
        ("router advertisement, behind a prefix", router_advertisement(&[prefix(), option(1, OTHER)])),
        (
            "router advertisement, in the last place",
            router_advertisement(&[vec![prefix(); 5].concat(), vec![nonce(); 3].concat(), option(1, OTHER)]),
        ),
        ("router advertisement, too long", router_advertisement(&[vec![prefix(); 6].concat(), nonce()])),
        ("tagged router advertisement", in_vlan(0x8100, &router_advertisement(&[option(1, OTHER)]))),
        ("redirect", redirect(&[option(2, OTHER)])),
        ("redirect, second option", redirect(&[nonce(), option(2, OTHER)])),
        ("redirect, third option", redirect(&[nonce(), nonce(), option(2, OTHER)])),
        (
            "redirect behind an extension header",
            ipv6_with_extension(OWN, "fe80::5", &message(137, TARGET, &[vec![0xfe; 16], option(2, OTHER)])),
        ),
        (
            "behind an extension header",
            ipv6_with_extension(OWN, "fe80::5", &message(136, TARGET, &[option(2, OTHER)])),
        ),
    ]
}

fn forged_ip() -> Vec<(&'static str, Frame)> {
    let (own, other) = ("2001:db8::7", "2001:db8::8");
    vec![
        ("IPv4", ipv4_udp(OWN, "192.0.2.8", 1, 2)),
        ("IPv4, tagged", in_vlan(0x8100, &ipv4_udp(OWN, "192.0.2.8", 1, 2))),
        ("IPv4, tagged twice", in_vlan(0x88a8, &in_vlan(0x8100, &ipv4_udp(OWN, "192.0.2.8", 1, 2)))),
        ("link-local IPv4", ipv4_udp(OWN, "169.254.169.254", 1, 2)),
        ("IPv4 from nobody", ipv4_udp(OWN, "0.0.0.0", 68, 53)),
        ("ARP", arp(OWN, OWN, [192, 0, 2, 8])),
        ("IPv6", ipv6(OWN, other, UDP, &[0; 8])),
        ("IPv6 from nobody", ipv6(OWN, "::", UDP, &[0; 8])),
        ("advertisement", discovery(own, 136, other, &[option(2, OWN)])),
        ("duplicate address detection", discovery("::", 135, other, &[])),
        ("router advertisement from nobody", discovery("::", 134, "::", &[])),
        (
            "advertisement behind an extension header",
            ipv6_with_extension(OWN, own, &message(136, other, &[])),
        ),
    ]
}

#[test]
fn no_frame_claims_another_s_link_layer_address() {
    let _sandbox = Sandbox::enter();
    let (_pod, guest) = guest(json!({"macspoofchk": true}));
    let honest = [
        ("ARP", arp(OWN, OWN, [192, 0, 2, 7])),
        ("ARP about any address", arp(OWN, OWN, [198, 51, 100, 9])),
        ("tagged ARP", in_vlan(0x8100, &arp(OWN, OWN, [192, 0, 2, 7]))),
        ("solicitation", discovery("fe80::5", 135, TARGET, &[option(1, OWN)])),
        ("solicitation with a nonce", discovery("fe80::5", 135, TARGET, &[option(1, OWN), nonce()])),
        ("duplicate address detection", discovery("::", 135, TARGET, &[])),
        ("the same with a nonce", discovery("::", 135, TARGET, &[nonce()])),
        ("advertisement", discovery("fe80::5", 136, TARGET, &[option(2, OWN)])),
        ("advertisement without option", discovery("fe80::5", 136, TARGET, &[])),
        ("router solicitation", router_solicitation("fe80::5", &[option(1, OWN)])),
        ("router solicitation from nobody", router_solicitation("::", &[])),
        ("router advertisement", router_advertisement(&[option(1, OWN), vec![prefix(); 5].concat()])),
        ("router advertisement, address last", router_advertisement(&[prefix(), nonce(), option(1, OWN)])),
        ("redirect", redirect(&[option(2, OWN)])),
        ("redirect without option", redirect(&[])),
        ("IPv4", ipv4_udp(OWN, "192.0.2.7", 1, 2)),
        ("IPv6", ipv6(OWN, "2001:db8::7", UDP, &[0; 8])),
    ];
    guest.expect(&honest, &forged_link_layer());
}

#[test]
fn no_frame_claims_another_s_ip_address() {
    let _sandbox = Sandbox::enter();
    let (_pod, guest) = guest(json!({"ipspoofchk": ["192.0.2.7", "2001:db8::7"], "macspoofchk": true}));
    let (own, link_local, other) = ("2001:db8::7", "fe80::1234", "2001:db8::8");
    let honest = [
        ("IPv4", ipv4_udp(OWN, "192.0.2.7", 1, 2)),
        ("DHCP", ipv4_udp(OWN, "0.0.0.0", 68, 67)),
        ("ARP", arp(OWN, OWN, [192, 0, 2, 7])),
        ("ARP probe", arp(OWN, OWN, [0; 4])),
        ("IPv6", ipv6(OWN, own, UDP, &[0; 8])),
        ("link-local IPv6", ipv6(OWN, link_local, UDP, &[0; 8])),
        ("duplicate address detection", discovery("::", 135, own, &[nonce()])),
        ("the same for a link-local address", discovery("::", 135, link_local, &[])),
        ("solicitation of another", discovery(own, 135, other, &[option(1, OWN)])),
        ("advertisement", discovery(own, 136, own, &[option(2, OWN)])),
        ("advertisement of a link-local address", discovery(link_local, 136, link_local, &[option(2, OWN)])),
        ("router solicitation from nobody", router_solicitation("::", &[])),
        ("listener report from nobody", ipv6_with_extension(OWN, "::", &[143, 0, 0, 0, 0, 0, 0, 0])),
        ("neither IP nor ARP", Frame::new(OWN, 0x88cc, &[0; 46])),
    ];
    guest.expect(&honest, &forged_ip());
}

/// A bridge takes frames to its own addresses in before the packet filter sees them, and learns their source.
fn learns_from_reserved(guarded: bool) -> bool {
    let (_pod, guest) = guest(json!({"macspoofchk": guarded}));
    for digit in [0, 2, 3, 8, 0xe, 0xf] {
        guest.passes(&to_reserved(digit, OTHER));
        assert!(
            !guarded || !guest.passes(&to_reserved(digit, OWN)),
            "a frame to address {digit} was passed on"
        );
    }
    sh("bridge fdb show br br1").contains("02:00:00:00:00:66")
}

#[test]
fn nothing_is_learned_from_a_forged_frame_to_the_bridge_itself() {
    let _sandbox = Sandbox::enter();
    assert!(!learns_from_reserved(true));
}

#[test]
fn without_a_check_it_is_learned() {
    let _sandbox = Sandbox::enter();
    assert!(learns_from_reserved(false));
}

#[test]
fn ports_that_come_and_go_at_once_are_each_guarded() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    std::thread::scope(|scope| {
        for number in 0..6 {
            scope.spawn(move || {
                let pod = Namespace::new("pod");
                let call = call(&pod, json!({"macspoofchk": true, "ipspoofchk": ["192.0.2.7"]}));
                let call = call.container(&format!("c{number}"));
                for _ in 0..5 {
                    let result = call.call("ADD").success();
                    call.clone().with("prevResult", result).call("CHECK").success();
                    call.call("DEL").success();
                }
            });
        }
    });
    assert_eq!(sh("nft list ruleset"), "");
}

#[test]
fn the_table_goes_with_last_ports_that_go_at_once() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    for _ in 0..10 {
        let pods: Vec<_> = (0..3)
            .map(|number| {
                let pod = Namespace::new("pod");
                let call = call(&pod, json!({"macspoofchk": true})).container(&format!("c{number}"));
                call.call("ADD").success();
                (pod, call)
            })
            .collect();
        std::thread::scope(|scope| {
            for (_pod, call) in &pods {
                scope.spawn(|| call.call("DEL").success());
            }
        });
        assert_eq!(sh("nft list ruleset"), "");
    }
}

#[test]
fn more_addresses_than_a_comment_holds_go_with_the_port() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pods = ["2001:db8:1111:2222:3333:4444:5555:0", "2001:db8:1111:2222:3333:4444:6666:0"].map(|prefix| {
        let pod = Namespace::new("pod");
        let addresses: Vec<_> = (1..=32).map(|number| format!("{prefix}{number:03}")).collect();
        let call = call(&pod, json!({"ipspoofchk": addresses}));
        let check = call.clone().with("prevResult", call.call("ADD").success());
        (pod, call, check)
    });
    let [(_first, first, _), (_second, second, check)] = &pods;
    first.call("DEL").success();
    check.call("CHECK").success();
    assert!(!sh("nft list ruleset").contains("5555"));
    second.call("DEL").success();
    assert_eq!(sh("nft list ruleset"), "");
}

#[test]
fn without_a_check_each_of_these_passes() {
    let _sandbox = Sandbox::enter();
    let (_pod, guest) = guest(json!({}));
    guest.expect(&[forged_link_layer(), forged_ip()].concat(), &[]);
}

#[test]
fn the_addresses_of_ipam_are_checked_and_go_with_the_port() {
    let _sandbox = Sandbox::enter();
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    let ranges = json!([[{"subnet": "2001:db8::/64"}], [{"subnet": "192.0.2.0/24"}]]);
    let call = call(
        &pod,
        json!({
            "isDefaultGateway": true, "ipspoofchk": true, "macspoofchk": true,
            "ipam": {"type": "host-local", "dataDir": "/run/ipam", "ranges": ranges},
        }),
    );
    let result = call.call("ADD").success();
    for gateway in ["192.0.2.1", "2001:db8::1"] {
        pod.sh(&format!("ping -c 1 -W 20 {gateway}"));
    }
    let check = call.clone().with("prevResult", result.clone());
    check.call("CHECK").success();
    // Other addresses than IPAM's are of no use to the pod.
    pod.sh("ip address add 192.0.2.99/24 dev net1");
    let ping = ["-c", "1", "-W", "1", "-I", "192.0.2.99", "192.0.2.1"];
    assert!(!e2e::output(pod.command("ping").args(ping)).status.success(), "192.0.2.99 passed the check");

    let port = result["interfaces"][1]["name"].as_str().unwrap();
    sh("nft insert rule bridge cnv-bridge ip-check accept");
    let (code, text) = check.call("CHECK").error();
    assert!(code == 105 && text.contains(&format!("spoof check of {port} is not ours")), "{text}");
    // A MAC address that a later plugin gives keeps the check of IP addresses.
    call.call("DEL").success();
    before.assert_unchanged();
    let result = call.call("ADD").success();
    let tuning =
        json!({"cniVersion": "1.0.0", "name": "net", "type": "cnv-tuning", "mac": "02:00:00:00:00:77"});
    let tuning = CniCall::new("cnv-tuning", tuning).netns(&pod).container(pod.name());
    let tuned = tuning.with("prevResult", result).call("ADD").success();
    call.clone().with("prevResult", tuned).call("CHECK").success();
    pod.sh("ping -c 1 -W 20 192.0.2.1");
    call.without("CNI_NETNS").call("DEL").success();
    before.assert_unchanged();
}

#[test]
fn what_a_crash_left_is_gone_after_del() {
    let _sandbox = Sandbox::enter();
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[Path::new("/run/cni")]);
    let ipam =
        json!({"type": "host-local", "dataDir": "/run/ipam", "ranges": [[{"subnet": "192.0.2.0/24"}]]});
    let call = call(&pod, json!({"ipspoofchk": true, "ipam": ipam}));
    let crashes = call.cut_off_add(|| before.assert_unchanged());
    assert!(crashes >= 10, "one crash for each change that ADD makes, but there were {crashes}");
}
