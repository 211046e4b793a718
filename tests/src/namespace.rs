//! A named network namespace that goes when the test does: a pod's, a client's, a peer's.

use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use netns::NetNs;

use crate::command::{run, split};

/// A namespace under `/run/netns`, with its loopback up.
#[derive(Debug)]
pub struct Namespace {
    netns: NetNs,
    /// Whether what has the name is a link to somebody else's.
    is_alias: bool,
}

impl Namespace {
    /// Makes one; its name is `prefix`, made unique on the machine.
    ///
    /// # Panics
    /// Without root.
    #[track_caller]
    pub fn new(prefix: &str) -> Self {
        let netns = NetNs::create(unique(prefix)).unwrap_or_else(|error| panic!("{error:?}"));
        let namespace = Self { netns, is_alias: false };
        namespace.sh("ip link set lo up");
        namespace
    }

    /// Another name for the one at `path`, which somebody else made and will remove.
    ///
    /// # Panics
    /// If it is not there.
    #[track_caller]
    pub fn alias(prefix: &str, path: &Path) -> Self {
        let name = unique(prefix);
        std::os::unix::fs::symlink(path, &name).unwrap_or_else(|error| panic!("{}: {error}", name.display()));
        let netns = NetNs::open(name).unwrap_or_else(|error| panic!("{error:?}"));
        Self { netns, is_alias: true }
    }

    /// What CNI_NETNS says.
    pub fn path(&self) -> &Path {
        self.netns.path()
    }

    /// What `ip netns` calls it.
    pub fn name(&self) -> &str {
        self.path().file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The open namespace, to enter it with a thread.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a line of words inside, as [`crate::sh`] does outside.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        let words = split(line);
        run(self.command(words.get_program()).args(words.get_args()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its name is in the test's own /run or at least the test's own: a leftover harms nobody.
        if self.is_alias {
            let _removed = std::fs::remove_file(self.path());
        } else if let Err(error) = NetNs::remove(self.path()) {
            eprintln!("{error:?}");
        }
    }
}

/// A path under `/run/netns` that begins with `prefix` and that nobody else has.
fn unique(prefix: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("{prefix}-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    PathBuf::from("/run/netns").join(name)
}
