//! Starts a VMM with nothing but what it needs.
//!
//! Between fork and exec the child gives up everything: it gets a user and group of its own with no supplementary
//! groups (and so no capabilities), an empty network namespace, `no_new_privs`, limits, and no descriptor but the
//! control channel. It dies with the supervisor. Its own seccomp filter comes on top, once it runs.
#![expect(unsafe_code, reason = "what happens between fork and exec has no safe wrapper")]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::io::fcntl_dupfd_cloexec;

use crate::control::VMM_CHANNEL_FD;

/// The program: the supervisor's own, whatever has become of its path. It can be executed by every user.
const PROGRAM: &str = "/proc/self/exe";

/// How a VMM is confined.
#[derive(Debug, Clone, Copy)]
pub(super) struct Confinement {
    /// Its user and group.
    pub(super) owner: u32,
    /// How many descriptors it may have open.
    pub(super) descriptors: u32,
    /// How many threads it may have.
    pub(super) threads: u32,
}

/// A command that runs `arguments` of this program, confined, with `channel` as [`VMM_CHANNEL_FD`]. Standard error
/// is a pipe; the other two are nothing. The caller must spawn it on the thread that lives as long as the supervisor
/// does: the child dies with that thread.
pub(super) fn confined(
    arguments: &[&str],
    channel: BorrowedFd<'_>,
    confinement: Confinement,
) -> io::Result<Command> {
    // With this open no other descriptor that spawn needs can be at that number and be overwritten in the child.
    let channel: OwnedFd = fcntl_dupfd_cloexec(channel, VMM_CHANNEL_FD)?;
    let supervisor = std::process::id();
    let mut command = Command::new(PROGRAM);
    command
        .arg0("vm-launcher")
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: `confine` only makes system calls; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(move || confine(channel.as_raw_fd(), confinement, supervisor)) };
    Ok(command)
}

fn confine(channel: RawFd, confinement: Confinement, supervisor: u32) -> io::Result<()> {
    let Confinement { owner, descriptors, threads } = confinement;
    if channel == VMM_CHANNEL_FD {
        // SAFETY: no memory is involved; the descriptor is open.
        check(unsafe { libc::fcntl(channel, libc::F_SETFD, 0) })?;
    } else {
        // SAFETY: as above. The copy is not closed on exec.
        check(unsafe { libc::dup2(channel, VMM_CHANNEL_FD) })?;
    }
    // SAFETY: only flags of descriptors change. Marked, not closed: the pipe on which spawn reports is among them.
    check(unsafe { libc::close_range(4, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as c_int) })?;
    // SAFETY: the child is alone in its process; no memory is involved.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWIPC) })?;
    limit(libc::RLIMIT_CORE, 0)?;
    limit(libc::RLIMIT_NOFILE, descriptors.into())?;
    limit(libc::RLIMIT_NPROC, threads.into())?;
    // SAFETY: a count of zero reads no memory.
    check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: numbers only. Leaving user 0 in all three ids clears all capabilities (capabilities(7)).
    check(unsafe { libc::setresgid(owner, owner, owner) })?;
    // SAFETY: as above.
    check(unsafe { libc::setresuid(owner, owner, owner) })?;
    // SAFETY: numbers only. After the change of user, which would clear it.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: no arguments. Had the supervisor died before the signal was armed, nobody would ever send it.
    if u32::try_from(unsafe { libc::getppid() }) != Ok(supervisor) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

fn limit(resource: libc::__rlimit_resource_t, value: libc::rlim_t) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: limit is valid for reads.
    check(unsafe { libc::setrlimit(resource, &raw const limit) })
}

fn check(answer: c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;

    use super::*;
    use crate::control::Channel;

    /// The library's test program takes no part in this: the child is a shell that shows what it was left.
    #[test]
    fn a_confined_process_has_nothing_left() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = OwnedFd::from(theirs);
        let _noise: Vec<_> = (0..20).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let confinement = Confinement { owner: 0x7000_0001, descriptors: 512, threads: 34 };
        use std::os::fd::AsFd as _;
        let channel = fcntl_dupfd_cloexec(theirs.as_fd(), VMM_CHANNEL_FD).unwrap();
        let supervisor = std::process::id();
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "cat /proc/self/status; ls /proc/$$/fd; cat /proc/self/net/dev; ulimit -n; ulimit -c",
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // SAFETY: as in `confined`.
        unsafe { command.pre_exec(move || confine(channel.as_raw_fd(), confinement, supervisor)) };
        let mut child = command.spawn().unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success(), "{text}");
        for line in [
            "Uid:\t1879048193\t1879048193\t1879048193\t1879048193",
            "Gid:\t1879048193\t1879048193\t1879048193\t1879048193",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Groups:\t ",
            "512",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is missing in {text}");
        }
        let descriptors: Vec<_> =
            text.lines().filter(|line| line.len() <= 2 && line.parse::<u8>().is_ok()).collect();
        assert_eq!(descriptors, ["0", "1", "2", "3", "0"], "descriptors, and the core limit: {text}");
        assert_eq!(
            text.matches(':').count() - text.split("Inter-|").next().unwrap().matches(':').count(),
            1,
            "lo only"
        );
        drop(ours);
    }
}
