//! `masquerade serve` tells a guest everything it needs, whichever client asks.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use e2e::{Daemon, Namespace, binary, eventually, sh};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;
use tempfile::TempDir;

use crate::masquerade_ground::{CLIENT_V4, CLIENT_V6, Ground, POD_V4, POD_V6, ip, tcp};

const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
/// Datagrams of a flood.
const FLOOD: usize = 100_000;

/// A guest on its wire, with nothing but the pod interface's MAC, and somebody who tells it the rest.
struct Told {
    ground: Ground,
    files: TempDir,
    /// The machine's own configuration, which a client's scripts would write to.
    etc: String,
    server: Daemon,
}

impl Drop for Told {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.etc, e2e::files(Path::new("/etc")), "a client changed the machine's /etc");
        }
    }
}

impl Told {
    fn new(arguments: &[&str]) -> Self {
        let ground = Ground::dual_stack();
        ground.call(json!({"mtu": 1450})).call("ADD").success();
        let pod: serde_json::Value =
            serde_json::from_str(&ground.pod.sh("ip -json link show dev eth0")).unwrap();
        ground.plug_guest();
        ground.guest.sh(&format!("ip link set eth0 address {}", pod[0]["address"].as_str().unwrap()));
        let files = tempfile::tempdir().unwrap();
        let resolv_conf = files.path().join("resolv.conf");
        let domains = "ns.svc.cluster.local svc.cluster.local broken..name cluster.local";
        fs::write(&resolv_conf, format!("search {domains}\nnameserver 10.96.0.10\nnameserver fd00::10\n"))
            .unwrap();
        let mut command = ground.pod.command(binary("masquerade"));
        command.args(["serve", "--host-name", "vm1", "--resolv-conf"]).arg(resolv_conf).args(arguments);
        let server = Daemon::start(&mut command);
        Self { ground, files, etc: e2e::files(Path::new("/etc")), server }
    }

    fn guest(&self) -> &Namespace {
        &self.ground.guest
    }

    /// A hook for a DHCP client: it writes what the client learned into a file named after the event.
    fn hook(&self, event: &str) -> String {
        let hook = self.files.path().join("hook");
        let directory = self.files.path().display();
        fs::write(
            &hook,
            format!("#!/bin/sh\nenv >{directory}/new\nmv {directory}/new {directory}/told.${event}\n"),
        )
        .unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        hook.display().to_string()
    }

    /// What a client learned, once it has.
    fn told(&self, event: &str) -> String {
        let path = self.files.path().join(format!("told.{event}"));
        eventually("the client is told", ANSWERED_WITHIN, || fs::read_to_string(&path).ok())
    }
}

#[track_caller]
fn assert_told(told: &str, expected: &[&str]) {
    for line in expected {
        assert!(told.lines().any(|found| found == *line), "{line} is not in:\n{told}");
    }
}

#[test]
fn udhcpc_gets_what_it_asks_for() {
    let told = Told::new(&["--ntp-server", "10.9.9.9", "--private-option", "240=hello"]);
    let hook = told.hook("1");
    // A round with nobody there yet costs it 3 seconds.
    let more = "-O search -O mtu -O ntpsrv -O 240";
    told.guest().sh(&format!("udhcpc -i eth0 -f -q -n -t 10 -T 3 {more} -s {hook}"));
    assert_told(
        &told.told("bound"),
        &[
            "ip=10.0.2.2",
            "mask=24",
            "router=10.0.2.1",
            "serverid=10.0.2.1",
            "dns=10.96.0.10",
            "mtu=1450",
            "hostname=vm1",
            "ntpsrv=10.9.9.9",
            "search=ns.svc.cluster.local svc.cluster.local cluster.local",
            "opt240=68656c6c6f",
        ],
    );
}

#[test]
fn isc_s_client_gets_ipv4_and_ipv6() {
    let told = Told::new(&[]);
    let hook = told.hook("reason");
    let files = told.files.path().display();
    let client = |family: &str| {
        let line = format!(
            "dhclient {family} -d -sf {hook} -lf {files}/leases{family} -pf {files}/pid{family} eth0"
        );
        let words: Vec<_> = line.split_whitespace().collect();
        Daemon::start(told.guest().command(words[0]).args(&words[1..]))
    };
    let _v4 = client("-4");
    assert_told(
        &told.told("BOUND"),
        &[
            "new_ip_address=10.0.2.2",
            "new_subnet_mask=255.255.255.0",
            "new_routers=10.0.2.1",
            "new_interface_mtu=1450",
            "new_domain_name_servers=10.96.0.10",
            "new_domain_search=ns.svc.cluster.local. svc.cluster.local. cluster.local.",
        ],
    );
    let _v6 = client("-6");
    assert_told(
        &told.told("BOUND6"),
        &[
            "new_ip6_address=fd10:0:2::2",
            "new_dhcp6_name_servers=fd00::10",
            "new_dhcp6_domain_search=ns.svc.cluster.local. svc.cluster.local. cluster.local.",
        ],
    );
}

#[test]
fn dhcpcd_configures_a_guest_that_then_reaches_the_world_and_is_reached() {
    let told = Told::new(&[]);
    // Its leases go where a test may write.
    fs::create_dir_all("/var/lib/dhcpcd").unwrap();
    sh("mount -t tmpfs tmpfs /var/lib/dhcpcd");
    let mut client = told.guest().command("dhcpcd");
    let _client = Daemon::start(client.args([
        "--config",
        "/dev/null",
        "--nobackground",
        "--script",
        "/bin/true",
        "eth0",
    ]));
    let Ground { client, guest, .. } = &told.ground;
    for (version, parts) in [
        ("-4", ["10.0.2.2/24", "default via 10.0.2.1"]),
        ("-6", ["fd10:0:2::2/128", "default via fe80::ff:fe00:0"]),
    ] {
        eventually("the guest is configured", ANSWERED_WITHIN, || {
            let state = guest.sh(&format!("ip {version} address show dev eth0"))
                + &guest.sh(&format!("ip {version} route show"));
            (parts.iter().all(|part| state.contains(part)) && !state.contains("tentative")).then_some(())
        });
    }
    assert_eq!(tcp(guest, CLIENT_V4, 80, client), ip(POD_V4));
    assert_eq!(tcp(guest, CLIENT_V6, 80, client), ip(POD_V6));
    assert_eq!(tcp(client, POD_V4, 80, guest), ip(CLIENT_V4));
    assert_eq!(tcp(client, POD_V6, 80, guest), ip(CLIENT_V6));
    assert!(guest.sh("ip -6 route get 2001:db8::1").contains("mtu 1450"));
    // It has helpers of its own, which only it can end.
    guest.sh("dhcpcd --exit eth0");
}

#[test]
fn a_router_is_there_for_who_solicits_one() {
    let told = Told::new(&[]);
    let answer = eventually("a router answers", ANSWERED_WITHIN, || {
        let output = e2e::output(told.guest().command("rdisc6").args(["-1", "-r", "1", "eth0"]));
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    });
    let squeezed: Vec<_> =
        answer.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for expected in [
        "Stateful address conf. : Yes",
        "Stateful other conf. : Yes",
        "Router lifetime : 9000 (0x00002328) seconds",
        "Source link-layer address: 02:00:00:00:00:00",
        "MTU : 1450 bytes (valid)",
        "Prefix : fd10:0:2::/120",
        "On-link : Yes",
        "Autonomous address conf.: No",
        "Recursive DNS server : fd00::10",
        "DNS search list : ns.svc.cluster.local svc.cluster.local cluster.local",
        "from fe80::ff:fe00:0",
    ] {
        assert!(squeezed.iter().any(|line| line == expected), "{expected} is not in:\n{answer}");
    }
}

#[test]
fn a_guest_with_a_lease_from_elsewhere_gets_the_right_one() {
    let told = Told::new(&[]);
    let hook = told.hook("reason");
    let files = told.files.path().display();
    let leases = told.files.path().join("leases");
    fs::write(&leases, stale_lease()).unwrap();
    let line = format!("dhclient -4 -d -sf {hook} -lf {} -pf {files}/pid eth0", leases.display());
    let words: Vec<_> = line.split_whitespace().collect();
    let _client = Daemon::start(told.guest().command(words[0]).args(&words[1..]));
    assert_told(&told.told("BOUND"), &["new_ip_address=10.0.2.2"]);
    assert!(told.told("EXPIRE").contains("old_ip_address=192.168.7.7"), "the stale lease was not refused");
}

/// A lease of another network, good for years.
fn stale_lease() -> &'static str {
    "lease {\n  interface \"eth0\";\n  fixed-address 192.168.7.7;\n  option subnet-mask 255.255.255.0;\n  \
     option dhcp-lease-time 86400;\n  option dhcp-message-type 5;\n  option dhcp-server-identifier 192.168.7.1;\n  \
     renew never;\n  rebind never;\n  expire never;\n}\n"
}

#[test]
fn nobody_but_the_guest_is_answered() {
    let told = Told::new(&["--guest-mac", "02:00:00:00:00:66"]);
    let hook = told.hook("1");
    let arguments = ["-i", "eth0", "-f", "-q", "-n", "-t", "2", "-T", "1", "-s", &hook];
    let ask = || e2e::output(told.guest().command("udhcpc").args(arguments)).status.success();
    assert!(!ask(), "a stranger was answered");
    told.guest().sh("ip link set eth0 address 02:00:00:00:00:66");
    eventually("the guest is answered", ANSWERED_WITHIN, || ask().then_some(()));
}

#[test]
fn a_guest_that_floods_is_still_told_and_costs_no_memory() {
    let mut told = Told::new(&[]);
    let hook = told.hook("1");
    told.guest().sh(&format!("udhcpc -i eth0 -f -q -n -t 10 -T 3 -s {hook}"));
    let server = told.server.child().id();
    let peak = || {
        let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = peak();
    let socket = told.guest().netns().run(|| UdpSocket::bind("0.0.0.0:68")).unwrap().unwrap();
    socket.set_broadcast(true).unwrap();
    setsockopt(&socket, sockopt::BindToDevice, &"eth0".into()).unwrap();
    for length in (0..1400).cycle().take(FLOOD) {
        // What does not fit into the queue is lost, as on any wire.
        let _sent = socket.send_to(&[0x01; 1400][..length], "255.255.255.255:67");
    }
    drop(socket);
    fs::remove_file(told.files.path().join("told.bound")).unwrap();
    told.guest().sh(&format!("udhcpc -i eth0 -f -q -n -t 10 -T 3 -s {hook}"));
    assert_told(&told.told("bound"), &["ip=10.0.2.2"]);
    assert!(peak() - before < 2048, "{before} KiB before, {} KiB after", peak());
}

#[test]
fn a_bridge_that_is_not_ours_is_not_served() {
    let ground = Ground::dual_stack();
    ground.pod.sh("ip link add foreign type bridge");
    for bridge in ["foreign", "missing"] {
        let serve = binary("masquerade");
        let output = e2e::output(ground.pod.command(Path::new(&serve)).args(["serve", "--bridge", bridge]));
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(&format!("{bridge} is not a bridge that masquerade made")), "{said}");
    }
}
