//! A VM whose NIC is bound by `vhostuser`, under load: what passes is right, whoever is killed meanwhile and how often.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use e2e::{Daemon, GuestImage, binary, eventually, iperf3, output, run};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::vm_node::{Node, end};
use crate::vm_on_vhost_user::{ADDRESS, NAME, ctl, daemon, link_is};

/// For what takes seconds, on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(300);
const NAME_SERVER: &str = "127.0.0.1:5353";
/// Where the guest sends back what it gets, and where a shell of its reads.
const ECHO: u16 = 7;
const SHELL: u16 = 8;
/// Datagrams that a guest sends by one call, how long each is, and where to.
const DATAGRAMS: u8 = 40;
const DATAGRAM: usize = 1400;
const SINK: (&str, u16) = ("10.10.10.1", 9999);

/// Numbers without a pattern (Knuth's MMIX generator).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_exact_mut(8) {
            part.copy_from_slice(&self.next().to_be_bytes());
        }
    }
}

/// One TCP connection to the guest and back, on which bytes pass until it is finished.
struct Echo {
    /// How many came back and are right.
    right: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
    threads: [JoinHandle<u64>; 2],
}

impl Echo {
    fn start(node: &Node) -> Self {
        let address = SocketAddr::new(ADDRESS.parse().unwrap(), ECHO);
        let connect = || node.client.netns().run(|| TcpStream::connect(address)).unwrap().ok();
        let mut out = eventually("the guest echoes", LIMIT, connect);
        out.set_write_timeout(Some(LIMIT)).unwrap();
        out.set_read_timeout(Some(LIMIT)).unwrap();
        let mut back = out.try_clone().unwrap();
        let (right, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stop) = (Arc::clone(&right), Arc::clone(&enough));
        let sender = thread::spawn(move || {
            let (mut numbers, mut bytes, mut sent) = (Numbers(1), [0; 8192], 0);
            while !stop.load(Ordering::Relaxed) {
                numbers.fill(&mut bytes);
                out.write_all(&bytes).unwrap();
                sent += bytes.len() as u64;
            }
            out.shutdown(Shutdown::Write).unwrap();
            sent
        });
        let receiver = thread::spawn(move || {
            let (mut numbers, mut expected, mut bytes) = (Numbers(1), [0; 8192], [0; 8192]);
            loop {
                let mut filled = 0;
                while filled < bytes.len() {
                    match back.read(&mut bytes[filled..]).unwrap() {
                        0 => return counted.load(Ordering::Relaxed) + filled as u64,
                        length => filled += length,
                    }
                }
                numbers.fill(&mut expected);
                assert!(bytes == expected, "altered behind byte {}", counted.load(Ordering::Relaxed));
                counted.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
        });
        Self { right, enough, threads: [sender, receiver] }
    }

    /// Waits until so many more bytes came back.
    fn advance(&self, bytes: u64) {
        let goal = self.right.load(Ordering::Relaxed) + bytes;
        eventually("bytes come back", LIMIT, || {
            let ended = self.threads.iter().any(JoinHandle::is_finished);
            assert!(!ended, "the connection ended after {} bytes", self.right.load(Ordering::Relaxed));
            (self.right.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    /// All that was sent has come back.
    fn finish(self) {
        self.enough.store(true, Ordering::Relaxed);
        let [sent, back] = self.threads.map(|thread| thread.join().unwrap());
        assert_eq!(back, sent);
    }
}

/// What dig prints about the name of the VM's NIC.
fn dig(options: &[&str]) -> String {
    let (server, port) = NAME_SERVER.split_once(':').unwrap();
    let mut dig = Command::new("dig");
    dig.arg(format!("@{server}")).args(["-p", port, "+tries=1", "+time=3"]).args(options);
    let answer = output(dig.arg(format!("fast.{NAME}.default.vm.example.com")));
    String::from_utf8(answer.stdout).unwrap()
}

fn name_server(node: &Node) -> Daemon {
    let source = format!("dir:{}", node.launcher.run_dir().join("vmi").display());
    let mut server = Command::new(binary("secondary-dns"));
    Daemon::start(server.args(["--source", &source, "--domain", "example.com", "--listen", NAME_SERVER]))
}

/// The VM of the example, which answers iperf3 and sends back what it gets. All by its seed: a login costs seconds here.
fn manifest(node: &Node) -> PathBuf {
    let path = node.manifest("vm-vhostuser.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let (before, key) = text.trim_end().rsplit_once("- ssh-").unwrap();
    let indent = &before[before.rfind('\n').unwrap() + 1..before.len() - 2];
    // One vCPU: two that spin for one another on a busy machine are many times slower.
    let before = before.replace("cores: 2", "cores: 1");
    let listen = |port, program| format!("nc -ll -p {port} -e {program} >/dev/null 2>&1 &");
    let commands = ["iperf3 --server --daemon".to_owned(), listen(SHELL, "sh"), listen(ECHO, "cat")];
    let commands = commands.map(|command| format!("\n{indent}- {command}")).concat();
    fs::write(&path, format!("{before}- ssh-{key}\n{indent}runcmd:{commands}\n")).unwrap();
    path
}

/// What a command prints in the guest.
fn in_shell(node: &Node, command: &str) -> String {
    let address = SocketAddr::new(ADDRESS.parse().unwrap(), SHELL);
    let mut shell = node.client.netns().run(|| TcpStream::connect(address)).unwrap().unwrap();
    shell.set_read_timeout(Some(LIMIT)).unwrap();
    shell.write_all(format!("{command}; exit\n").as_bytes()).unwrap();
    let mut printed = String::new();
    shell.read_to_string(&mut printed).unwrap();
    printed
}

/// Datagrams that the guest leaves to be cut up, by `UDP_SEGMENT` (linux/udp.h), come one by one, each as it was.
fn udp_is_cut_up(node: &Node) {
    let features = in_shell(node, "cat /sys/bus/virtio/drivers/virtio_net/virtio*/features");
    // VIRTIO_NET_F_GUEST_USO4, GUEST_USO6 and HOST_USO.
    assert_eq!(features.get(54..57), Some("111"), "{features}");
    let bind = || UdpSocket::bind(SocketAddr::new(SINK.0.parse().unwrap(), SINK.1));
    let sink = node.client.netns().run(bind).unwrap().unwrap();
    sink.set_read_timeout(Some(LIMIT)).unwrap();
    let send = format!(
        "socket(S,2,2,0)&&setsockopt(S,17,103,pack(q(i),{DATAGRAM}))||die($!);send(S,join(q(),map{{chr($_)x{DATAGRAM}}}0..{DATAGRAMS}-1),\
         0,pack(q(SnC4x8),2,{},{}))||die($!)",
        SINK.1,
        SINK.0.replace('.', ",")
    );
    let count = "cat /sys/class/net/eth0/statistics/tx_packets";
    let told = in_shell(
        node,
        &format!("ethtool -K eth0 tx-udp-segmentation on; {count}; perl -e '{send}' 2>&1; {count}"),
    );
    for number in 0..DATAGRAMS {
        let mut bytes = [0; 9999];
        let length = sink.recv(&mut bytes).unwrap();
        assert!(bytes[..length] == [number; DATAGRAM], "datagram {number} has {length} bytes");
    }
    let counts: Vec<u64> =
        told.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("{told}"))).collect();
    assert!(counts[1] - counts[0] < 20, "the guest has not left {DATAGRAMS} datagrams whole: {told}");
}

/// Bytes that a process has read and written, whatever it was.
fn moved_by(process: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/io")).unwrap();
    let count = |line: &str| line.split_once("char: ").map(|(_, count)| count.parse::<u64>().unwrap());
    text.lines().filter_map(count).sum()
}

/// TCP and UDP, each both ways, and none of it through the VMM.
fn measured(node: &Node) {
    let vmm = node.launcher.vmm(NAME).unwrap();
    let before = moved_by(vmm);
    for way in ["", " --reverse"] {
        // What is under way when the sender has sent all is not counted; that is no more than the window.
        let bytes = iperf3(&node.client, ADDRESS, &format!("--bytes 2M --window 128K{way}"));
        assert!(bytes > 1 << 20, "{bytes} bytes by TCP{way}");
        let datagrams =
            iperf3(&node.client, ADDRESS, &format!("--udp --bitrate 2M --bytes 140K --length 1400{way}"));
        assert!(datagrams > 0, "none of 100 datagrams arrived by UDP{way}");
    }
    let moved = moved_by(vmm) - before;
    assert!(moved < 1 << 18, "the VMM has read and written {moved} bytes, of some 4 MiB that passed");
}

/// The daemon's links, without what changes.
fn links() -> Vec<(String, Vec<String>)> {
    let list: Value = serde_json::from_str(&run(&mut ctl("list"))).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let links = list["links"].as_array().unwrap().iter();
    links
        .map(|link| {
            let ends = link["ends"].as_array().unwrap();
            (text(&link["name"]), ends.iter().map(|end| text(&end["end"])).collect())
        })
        .collect()
}

/// Kills the backend again and again while bytes pass: some come back later, none is lost or altered.
fn backends_die(node: &Node, mut backend: Daemon) -> Daemon {
    let vmm = node.launcher.vmm(NAME);
    let before = links();
    assert_eq!(before.len(), 1, "{before:?}");
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
    eprintln!("the backend is killed at moments chosen by {seed}");
    let mut numbers = Numbers(seed.into());
    let echo = Echo::start(node);
    for life in 0..5 {
        // The last but one at once: while the guest's rings are handed over.
        if life != 3 {
            echo.advance(numbers.next() >> 46);
        }
        backend.child().kill().unwrap();
        backend.child().wait().unwrap();
        backend = daemon();
        assert_eq!(links(), before, "life {life}");
    }
    echo.advance(1 << 18);
    echo.finish();
    link_is(node, "up");
    assert_eq!(node.launcher.vmm(NAME), vmm, "the guest was never started again");
    backend
}

/// Eventfds and memory files that a process has: its own, and those of guests.
fn held(process: u32) -> (usize, usize) {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let files = maps.lines().filter(|line| line.contains("/memfd:")).count();
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    // Others are closed while we look.
    let links = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    (links.filter(|link| link.as_os_str() == "anon_inode:[eventfd]").count(), files)
}

/// Kills the VMM while packets pass: the backend goes on, keeps nothing of the dead, and has the rings of the guest's next life.
fn vmm_dies(node: &Node, backend: &mut Daemon) {
    let process = backend.child().id();
    let mut ping = node.client.command("ping");
    let ping = ping.args(["-q", "-i", "0.05", "-s", "1000", ADDRESS]).stdout(Stdio::null());
    let _traffic = Daemon::start(ping);
    let before = held(process);
    assert!(before.1 > 0, "guest memory is mapped: {before:?}");
    let vmm = node.launcher.vmm(NAME).unwrap();
    end(vmm, Signal::SIGKILL);
    eventually("another VMM", LIMIT, || node.launcher.vmm(NAME).filter(|now| *now != vmm));
    eventually("the backend has as much as before", LIMIT, || (held(process) == before).then_some(()));
    assert_eq!(backend.child().try_wait().unwrap(), None, "the backend ended");
}

#[test]
fn what_a_guest_sends_and_gets_is_right_whoever_is_killed() {
    let node = Node::new();
    node.client.sh("ethtool -K eth0 tx off");
    let before = node.before();
    let backend = daemon();
    let names = name_server(&node);
    let guest = GuestImage::get().with(&["iperf3", "perl"], node.folder.path());
    run(&mut node.launcher.up_command_of(guest, &manifest(&node), &[]));
    let mut backend = backends_die(&node, backend);
    let short = || dig(&["+short"]).trim().to_owned();
    eventually("its name has its address", LIMIT, || (short() == ADDRESS).then_some(()));
    udp_is_cut_up(&node);
    measured(&node);
    vmm_dies(&node, &mut backend);

    node.launcher.run("down", &[NAME, "--now"]);
    eventually("its name is gone", LIMIT, || dig(&[]).contains("status: NXDOMAIN").then_some(()));
    assert_eq!(links(), []);
    drop((backend, names));
    before.assert_unchanged();
}
