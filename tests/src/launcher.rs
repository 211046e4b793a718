//! `vm-launcher` as a person uses it, in directories of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::binaries::binary;
use crate::command::{output, run};
use crate::guest::{GuestImage, HALT_KERNEL};
use crate::namespace::Namespace;
use crate::ssh::SshKey;

/// The launcher, with its run and state directories below the test's folder.
#[derive(Debug)]
pub struct Launcher {
    folder: PathBuf,
}

impl Launcher {
    /// One that keeps everything in `folder`.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Its run directory, which `down` leaves as it was before.
    pub fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// A command line: `launcher.command("down", &["vm1"])`.
    pub fn command(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("vm-launcher"));
        command.arg(verb).args(arguments);
        command.arg("--run").arg(self.run_dir()).arg("--state").arg(self.folder.join("state"));
        command
    }

    /// The VM's network namespace, its pod's.
    #[track_caller]
    pub fn pod(&self, name: &str) -> Namespace {
        Namespace::alias("vm", &self.run_dir().join("netns").join(format!("default_{name}")))
    }

    /// `up` with a kernel that halts at once: a VM whose guest never says a word, on any machine with `/dev/kvm`.
    #[track_caller]
    pub fn up_halted(&self, manifest: &Path, arguments: &[&str]) -> Output {
        let kernel = self.folder.join("halt");
        fs::write(&kernel, HALT_KERNEL).expect("the test's folder is writable");
        let mut command = self.command("up", arguments);
        output(command.arg("--file").arg(manifest).arg("--kernel").arg(&kernel))
    }

    /// A command line that brings up `manifest` with the quick-test guest's kernel.
    pub fn up_command(&self, manifest: &Path, arguments: &[&str]) -> Command {
        self.up_command_of(GuestImage::get(), manifest, arguments)
    }

    /// The same with another guest.
    pub fn up_command_of(&self, guest: GuestImage, manifest: &Path, arguments: &[&str]) -> Command {
        let mut command = self.command("up", arguments);
        command.arg("--file").arg(manifest);
        command.arg("--kernel").arg(guest.kernel).arg("--initrd").arg(guest.initrd);
        command
    }

    /// Brings up `manifest`, whatever the outcome.
    #[track_caller]
    pub fn up(&self, manifest: &Path, arguments: &[&str]) -> Output {
        output(&mut self.up_command(manifest, arguments))
    }

    /// Runs a verb that must succeed, and gives what it prints.
    #[track_caller]
    pub fn run(&self, verb: &str, arguments: &[&str]) -> String {
        run(&mut self.command(verb, arguments))
    }

    /// The VM's VirtualMachineInstance in the default namespace.
    #[track_caller]
    pub fn status(&self, name: &str) -> Value {
        let text = self.run("status", &[name, "--output", "json"]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The addresses that the VM's first NIC is seen to use.
    #[track_caller]
    pub fn addresses(&self, name: &str) -> Vec<String> {
        let status = self.status(name);
        let addresses =
            status["status"]["interfaces"][0]["ipAddresses"].as_array().cloned().unwrap_or_default();
        addresses.iter().filter_map(|address| address.as_str().map(str::to_owned)).collect()
    }

    /// The process that owns the VM: its supervisor.
    #[track_caller]
    pub fn supervisor(&self, name: &str) -> i32 {
        let path = self.run_dir().join("locks").join(format!("default_{name}"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.trim().parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    /// The VM's VMM: its supervisor's only child.
    #[track_caller]
    pub fn vmm(&self, name: &str) -> Option<i32> {
        let supervisor = self.supervisor(name);
        let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Status, log and console of all VMs, for a test that fails.
    pub fn story(&self) -> String {
        let vms = fs::read_dir(self.run_dir().join("vms/default")).into_iter().flatten().flatten();
        vms.map(|vm| {
            let name = vm.file_name().to_string_lossy().into_owned();
            let log = fs::read_to_string(vm.path().join("supervisor.log")).unwrap_or_default();
            let status = output(&mut self.command("status", &[&name]));
            let status = String::from_utf8_lossy(&status.stdout).into_owned();
            let threads = self.vmm(&name).map(threads).unwrap_or_default();
            format!("== {name}\n{status}\n{log}\n{threads}\n{}\n", self.console(&name))
        })
        .collect()
    }

    /// What the guest wrote to its console.
    pub fn console(&self, name: &str) -> String {
        let log = self.run_dir().join("vms/default").join(name).join("console.log");
        fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

/// What each thread of a process is at: its name, and the kernel function or `0` if it runs.
fn threads(pid: i32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    tasks
        .map(|task| format!("{}: {}\n", read(task.path().join("comm")), read(task.path().join("wchan"))))
        .collect()
}

/// A manifest of `docs/examples`, with `key` in it, in `folder`.
///
/// # Panics
/// If there is no such example, or no place for the key in it.
#[track_caller]
pub fn example(name: &str, key: &SshKey, folder: &Path) -> PathBuf {
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples").join(name);
    let text =
        fs::read_to_string(&original).unwrap_or_else(|error| panic!("{}: {error}", original.display()));
    let (before, after) =
        text.split_once("REPLACE-WITH-YOUR-PUBLIC-SSH-KEY").expect("the example has a place for a key");
    let path = folder.join(name);
    fs::write(&path, format!("{before}{}{after}", key.public())).expect("the test's folder is writable");
    path
}
