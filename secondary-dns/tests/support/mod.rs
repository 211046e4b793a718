#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    reason = "a helper's failure is the test's failure, and not every test file uses every helper"
)]
//! The real binary on a loopback port, and the real `dig` to ask it.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use vm_api::status_dir::StatusDir;
use vm_api::vmi::Vmi;

/// How long anything awaited may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running `secondary-dns`, killed when dropped.
pub(crate) struct Dns {
    child: Child,
    pub(crate) address: SocketAddr,
    /// Where `/metrics` is, if it was asked for.
    pub(crate) http: Option<SocketAddr>,
}

impl Dns {
    /// Starts the server for `vm.example.com` on `dir` and waits until it answers.
    pub(crate) fn start(dir: &Path, more: &[&str]) -> Self {
        Self::start_on("127.0.0.1:0", dir, more)
    }

    /// The same on another address than 127.0.0.1; `more` may name another domain.
    pub(crate) fn start_on(listen: &str, dir: &Path, more: &[&str]) -> Self {
        let source = format!("dir:{}", dir.display());
        let domain = if more.contains(&"--domain") { &[][..] } else { &["--domain", "example.com"] };
        let mut child = Command::new(env!("CARGO_BIN_EXE_secondary-dns"))
            .args(["--source", &source, "--listen", listen])
            .args(domain)
            .args(["--log-format", "json"])
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .expect("secondary-dns starts");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut http = None;
        let address = lines
            .by_ref()
            .map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).expect("a JSON log line"))
            .find_map(|line| {
                let parse = |field: &str| line["fields"][field].as_str().map(|text| text.parse().unwrap());
                http = http.or(parse("http"));
                parse("address")
            })
            .expect("it says where it answers");
        // Keep reading, or the server blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address, http }
    }

    /// Asks with `dig` and returns its output; that there was an answer is part of the promise.
    pub(crate) fn dig(&self, arguments: &[&str]) -> String {
        let (answered, text) = dig(self.address, arguments);
        assert!(answered, "dig {arguments:?}: {text}");
        text
    }

    /// The answers' data, one a line.
    pub(crate) fn short(&self, name: &str, kind: &str) -> Vec<String> {
        let text = self.dig(&["+short", name, kind]);
        text.lines().map(str::to_owned).collect()
    }

    /// The response code's name and the number of answers.
    pub(crate) fn status(&self, name: &str, kind: &str) -> (String, usize) {
        let text = self.dig(&[name, kind]);
        let after = |key: &str| text.split_once(key).map(|(_, rest)| rest).unwrap_or_default();
        let word = |text: &str| text.chars().take_while(char::is_ascii_alphanumeric).collect::<String>();
        (word(after("status: ")), word(after("ANSWER: ")).parse().unwrap())
    }

    /// The serial in the SOA record.
    pub(crate) fn serial(&self) -> u32 {
        let soa = self.short("vm.example.com", "SOA").remove(0);
        soa.split(' ').nth(2).unwrap().parse().unwrap()
    }

    /// Waits until `name` answers `expected`.
    pub(crate) fn await_short(&self, name: &str, kind: &str, expected: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let got = self.short(name, kind);
            if got == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{name} {kind}: {got:?}, expected {expected:?}");
        }
    }

    /// Asks it to stop and returns whether it ended well.
    pub(crate) fn stop(mut self) -> bool {
        self.signal(Signal::SIGTERM);
        self.child.wait().unwrap().success()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A VMI with NICs on secondary networks.
pub(crate) fn vmi(namespace: &str, name: &str, nics: &[(&str, &[&str])]) -> Vmi {
    let interfaces: Vec<_> = nics
        .iter()
        .map(|(nic, addresses)| serde_json::json!({"name": nic, "ipAddresses": addresses}))
        .collect();
    serde_json::from_value(serde_json::json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"networks": [{"name": "default", "pod": {}}]},
        "status": {"phase": "Running", "interfaces": interfaces},
    }))
    .unwrap()
}

/// Writes a status as the supervisor does.
pub(crate) fn write(dir: &Path, vmi: &Vmi) {
    StatusDir::new(dir).write(vmi).unwrap();
}

/// Asks any server; returns whether it answered, and dig's output.
pub(crate) fn dig(server: SocketAddr, arguments: &[&str]) -> (bool, String) {
    let output = Command::new("dig")
        .args([&format!("@{}", server.ip()), "-p", &server.port().to_string(), "+tries=1", "+time=5"])
        .args(arguments)
        .output()
        .expect("dig is installed (package bind9-dnsutils)");
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

/// Writes many statuses before a server is there to see them one by one: without syncing each.
pub(crate) fn write_many(dir: &Path, count: usize) {
    let namespace = dir.join("many");
    std::fs::create_dir_all(&namespace).unwrap();
    for n in 0..count {
        let address = format!("10.7.{}.{}", n / 250, n % 250 + 1);
        let name = format!("vm{n}");
        let text = serde_json::to_vec(&vmi("many", &name, &[("blue", &[&address])])).unwrap();
        std::fs::write(namespace.join(format!("{name}.json")), text).unwrap();
    }
}
