//! A VMM process under test, its supervisor's end of everything, and guests of a few instructions.
//!
//! The guests are ELF kernels of hand-written machine code, entered in 64-bit mode as Linux is; they need no devices
//! but the serial port and the reset line, so they run wherever there is `/dev/kvm`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure here is a failed test"
)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use launcher::control::{Channel, Event, Received, VmmConfig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long anything may take before a test fails instead of hanging.
const LIMIT: Duration = Duration::from_secs(30);

/// A running `vm-launcher vmm`. Killed when dropped.
pub(crate) struct Vmm {
    pub(crate) channel: Channel,
    pub(crate) console: UnixStream,
    pub(crate) process: Child,
}

/// A configuration for one vCPU and 32 MiB, and the outer end of its console.
pub(crate) fn config(kernel: OwnedFd) -> (VmmConfig, UnixStream) {
    let (console, serial) = UnixStream::pair().unwrap();
    console.set_read_timeout(Some(LIMIT)).unwrap();
    let kvm = File::options().read(true).write(true).open("/dev/kvm").expect("these tests need /dev/kvm");
    let config = VmmConfig {
        vcpus: 1.try_into().unwrap(),
        memory: (32 << 20).try_into().unwrap(),
        command_line: String::new(),
        kvm: kvm.into(),
        kernel,
        initrd: None,
        serial: serial.into(),
        disks: Vec::new(),
        nics: Vec::new(),
        places: Vec::new(),
        passthrough: None,
    };
    (config, console)
}

impl Vmm {
    /// A process that waits for its configuration.
    pub(crate) fn idle() -> (Channel, Child) {
        let (channel, theirs) = Channel::pair().unwrap();
        // The shell puts the channel where the supervisor would.
        let process = Command::new("sh")
            .args(["-c", r#"exec "$0" vmm 3<&0 </dev/null"#, env!("CARGO_BIN_EXE_vm-launcher")])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        (channel, process)
    }

    pub(crate) fn start((config, console): (VmmConfig, UnixStream)) -> Self {
        let (channel, process) = Self::idle();
        channel.send_config(&config).unwrap();
        Self { channel, console, process }
    }

    /// A VMM that runs `code`, and has said so.
    pub(crate) fn run(code: &[u8]) -> Self {
        let vmm = Self::start(config(elf(code)));
        assert_eq!(vmm.event(), Event::Running);
        vmm
    }

    /// The next event.
    pub(crate) fn event(&self) -> Event {
        let limit = Timespec::try_from(LIMIT).unwrap();
        let mut ready = [PollFd::from_borrowed_fd(self.channel.as_fd(), PollFlags::IN)];
        assert_eq!(poll(&mut ready, Some(&limit)).unwrap(), 1, "the VMM says nothing");
        match self.channel.receive_event().unwrap() {
            Received::Message(event) => event,
            other => panic!("{other:?} instead of an event"),
        }
    }

    /// The next event, which must be an error's.
    pub(crate) fn error(&self) -> String {
        match self.event() {
            Event::Error { message } => message,
            other => panic!("{other:?} instead of an error"),
        }
    }

    /// Waits for the console to say `text` and nothing else.
    pub(crate) fn hear(&mut self, text: &str) {
        let mut heard = vec![0; text.len()];
        self.console.read_exact(&mut heard).unwrap();
        assert_eq!(String::from_utf8_lossy(&heard), text);
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        self.console.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for the process's end; a signal's is `None`.
    pub(crate) fn exit_code(mut self) -> Option<i32> {
        self.process.wait().unwrap().code()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An ELF kernel with `code` at 1 MiB.
pub(crate) fn elf(code: &[u8]) -> OwnedFd {
    const ENTRY: u64 = 0x10_0000;
    const HEADERS: u64 = 0x1000;
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    // Executable, x86-64, version, entry point, program headers at 64, no sections.
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    image.extend(ENTRY.to_le_bytes());
    image.extend(64_u64.to_le_bytes());
    image.extend([0; 12]);
    image.extend([64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // One segment to load: readable and executable, and where it goes.
    image.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let length = code.len() as u64;
    for value in [HEADERS, ENTRY, ENTRY, length, length, HEADERS] {
        image.extend(value.to_le_bytes());
    }
    image.resize(usize::try_from(HEADERS).unwrap(), 0);
    image.extend(code);
    file(&image)
}

/// An unnamed file with this content.
pub(crate) fn file(content: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.into()
}

/// Machine code: `mov dx, port; mov al, value; out dx, al`.
pub(crate) fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// Machine code that writes `text` to the serial port.
pub(crate) fn say(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|byte| out(0x3f8, byte)).collect()
}

/// Machine code: `hlt`, for ever.
pub(crate) const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];
