//! A Linux guest in QEMU, whose own driver negotiates all it knows, talks through `vhost-net-backend`: by a tap, where the
//! kernel takes over what the guest leaves undone, and by AF_XDP, where the backend must do it.
//!
//! Emulated without KVM, so that it runs on any machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::{Daemon, GuestImage, Namespace, Sandbox, SshKey, eventually, iperf3, output, seed_disk, sh};

use crate::vhost_guests::{Guest, await_socket, backend};

const BOOT: Duration = Duration::from_secs(200);
pub(crate) const BY_TAP: &str = "192.0.2.2";
pub(crate) const BY_AF_XDP: &str = "198.51.100.2";
/// Bytes that are sent each way: some hundred segments of 64 KiB at most.
const LENGTH: usize = 3_000_000;

/// The node's side of both links: namespaces with an address each.
pub(crate) struct Network {
    pub(crate) tap: Namespace,
    pub(crate) wire: Namespace,
}

impl Network {
    pub(crate) fn new() -> Self {
        let (tap, wire) = (Namespace::new("tap"), Namespace::new("wire"));
        tap.sh("ip tuntap add dev tap0 mode tap vnet_hdr");
        tap.sh("ip link set tap0 mtu 9000 up");
        tap.sh("ip addr add 192.0.2.1/24 dev tap0");
        sh(&format!("ip link add nic type veth peer name wire netns {}", wire.name()));
        sh("ip link set nic up");
        wire.sh("ip addr add 198.51.100.1/24 dev wire");
        wire.sh("ip link set wire up");
        // AF_XDP cannot say that a checksum is missing.
        wire.sh("ethtool -K wire tx off");
        Self { tap, wire }
    }
}

/// The links of a guest at two sockets: to the tap by two queue pairs, and to the NIC by one.
fn links(network: &Network, [tap, nic]: [&Path; 2]) -> [String; 2] {
    let netns = network.tap.path().display();
    [
        format!("vhost-user:{}?mtu=9000&queues=2,tap:tap0?netns={netns}", tap.display()),
        format!("vhost-user:{},af_xdp:nic", nic.display()),
    ]
}

/// A backend with both links of a guest, which listens at these sockets.
pub(crate) fn serve(network: &Network, sockets: &[PathBuf; 2]) -> Daemon {
    let [tap, nic] = sockets;
    let links = links(network, [tap, nic]);
    let daemon = backend(&links.each_ref().map(String::as_str));
    sockets.iter().for_each(|socket| await_socket(socket));
    daemon
}

/// QEMU with the quick-test guest and a NIC at each socket.
pub(crate) fn vm(folder: &Path, sockets: [&Path; 2], key: &SshKey) -> Command {
    let user = format!("#cloud-config\nhostname: vm1\nssh_authorized_keys:\n- {}\n", key.public());
    let network = format!(
        "version: 2\nethernets:\n  a:\n    match: {{macaddress: '02:00:00:00:00:0a'}}\n    mtu: 9000\n    addresses: [{BY_TAP}/24]\n  \
         b:\n    match: {{macaddress: '02:00:00:00:00:0b'}}\n    addresses: [{BY_AF_XDP}/24]\n"
    );
    let meta = "instance-id: i-1\n";
    let seed = seed_disk(folder, &[("meta-data", meta), ("user-data", &user), ("network-config", &network)]);
    let guest = GuestImage::get().with(&["iperf3"], folder);
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-machine", "q35,memory-backend=mem,accel=tcg", "-cpu", "max", "-m", "256"]);
    qemu.args(["-object", "memory-backend-memfd,id=mem,size=256M,share=on"]);
    qemu.args(["-display", "none", "-no-reboot", "-append", "console=ttyS0 quiet"]);
    qemu.arg("-initrd").arg(guest.initrd).arg("-kernel").arg(guest.kernel);
    qemu.arg("-drive").arg(format!("file={},if=virtio,format=raw,readonly=on", seed.display()));
    qemu.arg("-serial").arg(format!("file:{}", folder.join("console").display()));
    for (socket, end) in sockets.iter().zip(["a", "b"]) {
        qemu.arg("-chardev").arg(format!("socket,id=c{end},path={},reconnect=1", socket.display()));
        let (queues, more) = if end == "a" { (2, ",mq=on,vectors=6,host_mtu=9000") } else { (1, "") };
        qemu.arg("-netdev").arg(format!("vhost-user,id=n{end},chardev=c{end},queues={queues}"));
        let mac = format!("02:00:00:00:00:0{end}");
        qemu.arg("-device").arg(format!("virtio-net-pci,netdev=n{end},mac={mac},romfile={more}"));
    }
    qemu
}

/// The guest's driver has taken all that is offered to it, so that what follows is a test of that.
pub(crate) fn all_is_negotiated(key: &SshKey, from: &Namespace) {
    // Virtio 1.2, 5.1.3 and 6. QEMU 10 offers UDP segmentation (54 to 56) for taps only, whatever a backend has.
    const OFFERED: [(&str, usize); 12] = [
        ("CSUM", 0),
        ("GUEST_CSUM", 1),
        ("GUEST_TSO4", 7),
        ("GUEST_TSO6", 8),
        ("GUEST_ECN", 9),
        ("HOST_TSO4", 11),
        ("HOST_TSO6", 12),
        ("HOST_ECN", 13),
        ("MRG_RXBUF", 15),
        ("INDIRECT_DESC", 28),
        ("EVENT_IDX", 29),
        ("VERSION_1", 32),
    ];
    let bits =
        output(&mut key.login(from, BY_TAP, "cat /sys/bus/virtio/drivers/virtio_net/virtio*/features"));
    let bits = String::from_utf8(bits.stdout).unwrap();
    assert_eq!(bits.lines().count(), 2, "{bits}");
    for nic in bits.lines() {
        let missing = OFFERED.iter().filter(|(_, bit)| nic.as_bytes().get(*bit) != Some(&b'1'));
        let missing: Vec<_> = missing.map(|(name, _)| *name).collect();
        assert!(missing.is_empty(), "{missing:?} of {nic}");
    }
}

/// Bytes in which any two places differ soon.
fn payload() -> Vec<u8> {
    let mut state = 1_u64;
    let next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(LENGTH).collect()
}

/// Sends a file to the guest and back, over one TCP connection each; SSH notices any altered byte.
fn exchange(key: &SshKey, from: &Namespace, guest: &str, folder: &Path) {
    let file = folder.join("payload");
    fs::write(&file, payload()).unwrap();
    let mut upload = key.login(from, guest, "cat > /tmp/payload; wc -c < /tmp/payload");
    let told = upload.stdin(fs::File::open(&file).unwrap()).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert_eq!(told.trim(), LENGTH.to_string(), "sent to {guest}");
    let back = output(&mut key.login(from, guest, "cat /tmp/payload"));
    assert!(back.status.success() && back.stdout == payload(), "sent by {guest}");
}

/// TCP, and UDP of tiny datagrams and of some that fill `mtu`, each both ways.
fn load(from: &Namespace, guest: &str, mtu: u32) {
    let full = format!("--udp --bitrate 20M --bytes 400K --length {}", mtu - 28);
    for way in ["", " --reverse"] {
        for options in ["--bytes 4M", "--udp --bitrate 1M --bytes 16K --length 16", &full] {
            let arrived = iperf3(from, guest, &format!("{options}{way}"));
            assert!(arrived > 0, "nothing arrived: {options}{way}");
        }
    }
}

/// Boots a VM of [`vm`].
pub(crate) fn boot(folder: &Path, machine: &mut Command) -> Daemon {
    let console = folder.join("console");
    // Of the life before.
    let _none_before = fs::remove_file(&console);
    let mut qemu = Daemon::start(machine);
    let printed = || fs::read_to_string(&console).unwrap_or_default();
    eventually("the guest is ready", BOOT, || {
        assert_eq!(qemu.child().try_wait().unwrap(), None, "QEMU ended: {}", printed());
        printed().contains("guest ready: vm1").then_some(())
    });
    qemu
}

/// Packets to the guest by both its NICs, each answered as soon as it can, until dropped.
fn flood(network: &Network) -> [Daemon; 2] {
    [(&network.tap, BY_TAP), (&network.wire, BY_AF_XDP)].map(|(from, guest)| {
        let mut ping = from.command("ping");
        Daemon::start(ping.args(["-q", "-f", "-s", "1000", "-w", "300", guest]).stdout(Stdio::null()))
    })
}

/// Waits until the guest answers by both its NICs.
fn await_answers(network: &Network) {
    network.tap.sh(&format!("ping -c 3 -i 0.2 -w 60 {BY_TAP}"));
    network.wire.sh(&format!("ping -c 3 -i 0.2 -w 60 {BY_AF_XDP}"));
}

#[test]
fn qemu_killed_in_full_traffic_comes_back_and_takes_no_other_link_along() {
    let _sandbox = Sandbox::enter();
    let folder = tempfile::tempdir().unwrap();
    let network = Network::new();
    let sockets = ["a", "b", "c", "d"].map(|name| folder.path().join(name));
    let [a, b, c, d] = &sockets;
    let [tap, nic] = &links(&network, [a, b]);
    let third = format!("vhost-user:{},vhost-user:{}", c.display(), d.display());
    let mut daemon = backend(&[tap, nic, &third]);
    sockets.iter().for_each(|socket| await_socket(socket));
    let [a, b, c, d] = sockets;
    let others = [c, d].map(|socket| format!("path={},queue_size=256", socket.display()));
    let mut machine = vm(folder.path(), [&a, &b], &SshKey::generate(folder.path()));
    for life in 0..3 {
        let qemu = boot(folder.path(), &mut machine);
        await_answers(&network);
        let mut other = Guest::start(folder.path(), &format!("other{life}.log"), "flowgen", &others);
        other.say("start");
        other.await_frames(2, 1000);
        let _load = flood(&network);
        await_answers(&network);
        // By SIGKILL, with frames in all its rings.
        drop(qemu);
        other.await_frames(2, 1000);
        assert_eq!(daemon.child().try_wait().unwrap(), None, "the backend ended");
    }
}

#[test]
fn linux_talks_through_the_backend_and_goes_on_when_that_is_killed() {
    let _sandbox = Sandbox::enter();
    let folder = tempfile::tempdir().unwrap();
    let network = Network::new();
    let sockets = ["a", "b"].map(|name| folder.path().join(name));
    let mut daemon = serve(&network, &sockets);
    let key = SshKey::generate(folder.path());
    let [a, b] = &sockets;
    let _qemu = boot(folder.path(), &mut vm(folder.path(), [a, b], &key));
    all_is_negotiated(&key, &network.tap);
    let served = output(&mut key.login(&network.tap, BY_TAP, "iperf3 --server --daemon"));
    assert!(served.status.success(), "{}", String::from_utf8_lossy(&served.stderr));
    for life in 0..3 {
        for (from, guest) in [(&network.tap, BY_TAP), (&network.wire, BY_AF_XDP)] {
            from.sh(&format!("ping -c 2 -i 0.2 -w 30 {guest}"));
            from.sh(&format!("ping -c 1 -w 30 -s 0 {guest}"));
            from.sh(&format!("ping -c 1 -w 30 -M do -s 1472 {guest}"));
        }
        network.tap.sh(&format!("ping -c 1 -w 30 -M do -s 8972 {BY_TAP}"));
        if life == 0 {
            exchange(&key, &network.tap, BY_TAP, folder.path());
            exchange(&key, &network.wire, BY_AF_XDP, folder.path());
            load(&network.tap, BY_TAP, 9000);
            load(&network.wire, BY_AF_XDP, 1500);
        }
        if life < 2 {
            let _load = flood(&network);
            await_answers(&network);
            // By SIGKILL, with frames in all rings; QEMU connects again.
            drop(daemon);
            sockets.iter().for_each(|socket| fs::remove_file(socket).unwrap());
            daemon = serve(&network, &sockets);
        }
    }
    drop(daemon);
}
