//! The VMM alone, without a supervisor's help, runs an unmodified Debian kernel: memory on both sides of the hole
//! below 4 GiB, several CPUs, disks, a NIC with its offloads; reboot, power-off and power button end it as they should.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use e2e::{GuestImage, Sandbox, binary, sh};
use launcher::control::{
    self, Channel, Disk, Event, Nic, Passthrough, Place, Received, VmmConfig, exit_code,
};
use netns::NetNs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Guests are emulated twice over here.
const PATIENCE: Duration = Duration::from_secs(100);

/// A guest on its own VMM, with a shell on its console.
pub(crate) struct Guest {
    pub(crate) channel: Channel,
    console: UnixStream,
    process: Child,
}

/// What a test asks for beyond a kernel.
#[derive(Default)]
pub(crate) struct Wish {
    pub(crate) vcpus: u8,
    pub(crate) mebibytes: u64,
    pub(crate) disks: Vec<Disk>,
    pub(crate) nics: Vec<Nic>,
    pub(crate) places: Vec<Place>,
    /// With these the guest is one that has drivers for them.
    pub(crate) passthrough: Option<Passthrough>,
}

impl Guest {
    /// Starts it, and waits until its shell is there.
    pub(crate) fn boot(wish: Wish) -> Self {
        let (channel, theirs) = Channel::pair().unwrap();
        let (console, serial) = UnixStream::pair().unwrap();
        console.set_read_timeout(Some(PATIENCE)).unwrap();
        // The shell puts the channel where the supervisor would.
        let process = Command::new("sh")
            .args(["-c", r#"exec "$0" vmm 3<&0 </dev/null"#])
            .arg(binary("vm-launcher"))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let Wish { vcpus, mebibytes, disks, nics, places, passthrough } = wish;
        let image = if passthrough.is_some() { GuestImage::with_nic_drivers() } else { GuestImage::get() };
        let config = VmmConfig {
            vcpus: vcpus.try_into().unwrap(),
            memory: (mebibytes << 20).try_into().unwrap(),
            command_line: "console=ttyS0 quiet panic=-1".into(),
            kvm: File::options().read(true).write(true).open("/dev/kvm").unwrap().into(),
            kernel: File::open(image.kernel).unwrap().into(),
            initrd: Some(File::open(image.initrd).unwrap().into()),
            serial: serial.into(),
            disks,
            nics,
            places,
            passthrough,
        };
        channel.send_config(&config).unwrap();
        let mut guest = Self { channel, console, process };
        assert_eq!(guest.event(), Event::Running);
        guest.wait_for("guest ready: ");
        guest
    }

    fn event(&self) -> Event {
        let mut ready = [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(PATIENCE).unwrap();
        if poll(&mut ready, limit).unwrap() == 0 {
            let mut heard = vec![0; 65536];
            self.console.set_nonblocking(true).unwrap();
            let length = (&self.console).read(&mut heard).unwrap_or(0);
            panic!("the VMM says nothing; its console: {}", String::from_utf8_lossy(&heard[..length]));
        }
        match self.channel.receive_event().unwrap() {
            Received::Message(event) => event,
            other => panic!("{other:?} instead of an event"),
        }
    }

    /// Reads the console up to and with `text`; returns what came before it.
    fn wait_for(&mut self, text: &str) -> String {
        let mut heard = Vec::new();
        let mut byte = [0];
        while !heard.ends_with(text.as_bytes()) {
            if let Err(error) = self.console.read_exact(&mut byte) {
                panic!("{error} while waiting for {text:?}; heard: {}", String::from_utf8_lossy(&heard));
            }
            heard.push(byte[0]);
        }
        heard.truncate(heard.len() - text.len());
        String::from_utf8_lossy(&heard).into_owned()
    }

    /// Types a command; nothing is waited for.
    fn type_in(&mut self, command: &str) {
        self.console.write_all(format!("{command}\n").as_bytes()).unwrap();
    }

    /// What a command prints. Its end is marked by what the echo of the typed line does not contain.
    pub(crate) fn run(&mut self, command: &str) -> String {
        self.type_in(&format!("echo =$((40+1))=; {command}; echo =$((40+2))="));
        self.wait_for("=41=\r\n");
        self.wait_for("=42=").replace('\r', "")
    }

    /// The last event, and the exit code.
    pub(crate) fn end(mut self) -> (Event, Option<i32>) {
        let event = self.event();
        (event, self.process.wait().unwrap().code())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// A disk with this content.
pub(crate) fn disk(content: &[u8], read_only: bool, serial: &str) -> (Disk, File) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    let ours = file.try_clone().unwrap();
    (Disk { file: file.into(), read_only, serial: serial.to_owned().try_into().unwrap() }, ours)
}

/// A NIC on a new tap of this namespace, which has 10.9.0.1/24.
fn nic() -> Nic {
    let name: net_types::IfName = "tap0".parse().unwrap();
    tap::create(&tap::NewTap { name: name.clone(), owner: None, group: None, multi_queue: false }).unwrap();
    sh("ip address add 10.9.0.1/24 dev tap0");
    sh("ip link set tap0 mtu 1400 up");
    let queue = tap::Queue::open(&name, false).unwrap();
    Nic {
        backend: control::NicBackend::Tap(vec![queue.into()]),
        mac: "02:00:00:00:00:01".parse().unwrap(),
        mtu: 1400.try_into().unwrap(),
        slot: Some(9.try_into().unwrap()),
    }
}

/// Bytes that do not repeat soon.
pub(crate) fn noise(length: u32) -> Vec<u8> {
    (0..length).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

#[test]
fn with_disks_a_nic_and_several_cpus_and_the_power_button_powers_it_off() {
    let _sandbox = Sandbox::enter();
    let content = noise(4 << 20);
    let (seed, _) = disk(&content, true, "read-only-1");
    let (data, mut on_the_host) = disk(&[0; 1 << 20], false, "data-1");
    let mut guest = Guest::boot(Wish {
        vcpus: 2,
        mebibytes: 256,
        disks: vec![seed, data],
        nics: vec![nic()],
        ..Wish::default()
    });

    assert_eq!(guest.run("nproc").trim(), "2");
    assert_eq!(guest.run("cat /sys/block/vd[ab]/serial"), "read-only-1data-1");
    assert_eq!(guest.run("cat /sys/block/vd[ab]/ro"), "1\n0\n");

    guest.run("dd if=/dev/vda of=/dev/vdb bs=64k count=16; sync");
    let mut copied = Vec::new();
    on_the_host.rewind().unwrap();
    on_the_host.read_to_end(&mut copied).unwrap();
    assert!(copied == content[..1 << 20], "what the guest copied from disk to disk differs");

    assert_eq!(
        guest.run("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu"),
        "02:00:00:00:00:01\n1400\n"
    );
    assert!(guest.run("readlink /sys/class/net/eth0").contains("0000:00:09.0"));
    guest.run("ip address add 10.9.0.2/24 dev eth0; ip link set eth0 up");
    sh("ping -c 3 -W 10 10.9.0.2");
    let here = NetNs::current().unwrap();
    tcp_both_ways(&mut guest, &content, &here, "10.9.0.1", "10.9.0.2");

    guest.channel.send_command(&control::Command::PowerButton).unwrap();
    assert_eq!(guest.end(), (Event::Shutdown, Some(exit_code::CLEAN.into())));
}

/// Moves `content` over TCP, which goes in segments of up to 64 KiB, from the guest's vda to `ours` in namespace `here`,
/// and back to the guest, which is `theirs`.
pub(crate) fn tcp_both_ways(guest: &mut Guest, content: &[u8], here: &NetNs, ours: &str, theirs: &str) {
    let listener = here.run(|| TcpListener::bind(format!("{ours}:5000"))).unwrap().unwrap();
    guest.type_in(&format!("nc {ours} 5000 </dev/vda"));
    let (mut from_guest, _) = listener.accept().unwrap();
    from_guest.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut received = Vec::new();
    from_guest.read_to_end(&mut received).unwrap();
    assert!(received == content, "what came from the guest differs");
    // nc ends when both sides have.
    drop(from_guest);

    // Not the console as its input: a shell stops what reads there in the background.
    guest.run("nc -l -p 5001 </dev/null >/run/received & sleep 1");
    let mut to_guest = here.run(|| TcpStream::connect(format!("{theirs}:5001"))).unwrap().unwrap();
    to_guest.write_all(content).unwrap();
    drop(to_guest);
    assert_eq!(
        guest.run("wait; cmp /run/received /dev/vda && echo same").trim().lines().last(),
        Some("same")
    );
}

#[test]
fn with_memory_above_4_gib_and_a_reboot_is_a_reset() {
    let mut guest = Guest::boot(Wish { vcpus: 1, mebibytes: 4096, ..Wish::default() });
    let kibibytes: u64 = guest.run("awk '/MemTotal/ { print $2 }' /proc/meminfo").trim().parse().unwrap();
    assert!(kibibytes > 3_900_000, "{kibibytes} KiB of 4 GiB");
    assert_eq!(guest.run("head -c 64 /dev/hwrng | wc -c").trim(), "64");
    guest.type_in("reboot -f");
    assert_eq!(guest.end(), (Event::Reset, Some(exit_code::RESET.into())));
}
