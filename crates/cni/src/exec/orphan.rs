//! A plugin must not outlive its caller.
//!
//! A runtime that is killed releases its locks, and whoever cleans up after it calls DEL. An ADD that went on meanwhile
//! would make again what DEL has removed, and nobody would ever know.
#![expect(unsafe_code, reason = "what happens between fork and exec has no safe wrapper")]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};

/// Has the kernel kill the child of `command` when the thread that starts it ends.
pub(super) fn forbid(command: &mut Command) -> &mut Command {
    let caller = getpid();
    let in_child = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // Had the caller died before the signal was armed, nobody would ever send it.
        if getppid() == caller { Ok(()) } else { Err(io::Error::from(Errno::ESRCH)) }
    };
    // SAFETY: the closure makes two system calls, which are async-signal-safe, and neither allocates nor locks.
    unsafe { command.pre_exec(in_child) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::time::Duration;

    use nix::sys::signal::kill;
    use nix::unistd::Pid;

    use super::*;
    use crate::exec::{Call, call};

    /// Tells a child process, which is this test program again, where its plugin is.
    const ROLE: &str = "ORPHAN_TEST_FOLDER";

    /// The body of the child; without a role, in an ordinary run, there is nobody to be killed.
    #[test]
    fn caller() {
        let Ok(folder) = std::env::var(ROLE) else { return };
        let path = [folder.into()];
        let (command, timeout) = (crate::Command::Status, Duration::from_secs(600));
        let _ended =
            call(&Call { command, attachment: None, args: &[], path: &path, timeout }, "slow", b"{}");
    }

    #[test]
    fn a_plugin_dies_with_its_caller() {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("pid");
        let plugin = folder.path().join("slow");
        // What it became is renamed, so that it is read whole or not at all.
        let script = format!(
            "#!/bin/sh\necho $$ >{0}.new && mv {0}.new {0}\nexec sleep 600\n",
            told.to_str().unwrap()
        );
        fs::write(&plugin, script).unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        let mut caller = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "exec::orphan::tests::caller"])
            .env(ROLE, folder.path())
            .spawn()
            .unwrap();
        let pid = wait(|| fs::read_to_string(&told).ok()).trim().parse().unwrap();
        assert_eq!(kill(Pid::from_raw(pid), None), Ok(()));
        caller.kill().unwrap();
        caller.wait().unwrap();
        wait(|| ended(pid).then_some(()));
    }

    /// Whether a process is gone, or is only waiting for somebody to notice.
    fn ended(pid: i32) -> bool {
        let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
    }

    fn wait<T>(mut probe: impl FnMut() -> Option<T>) -> T {
        for _attempt in 0..3000 {
            if let Some(answer) = probe() {
                return answer;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("waited for 30 s");
    }
}
