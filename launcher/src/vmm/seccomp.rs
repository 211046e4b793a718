//! The process's last step before the guest runs: give up what it needs no more.
//!
//! From then on the kernel allows the system calls in [`ALLOWED`] and [`ioctls`], and kills the process at any other:
//! a guest that has taken over a thread can use the descriptors at hand, and open, start or connect nothing. One
//! filter for all threads; what differs between them is too little to tell them apart.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::vfio;

/// System calls that are allowed whatever their arguments.
const ALLOWED: [i64; 33] = [
    // Queues, disks, taps, console, control channel, log.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_fdatasync,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_getrandom,
    libc::SYS_close,
    // The standard library's check, in debug builds, that what it closes is open.
    libc::SYS_fcntl,
    // Memory of our own, never executable: see `without_execution`.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Locks, clocks.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    // The end of threads and of the process, by abort() too.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
];

/// Requests that are made while a guest runs (`linux/kvm.h`, `linux/if_tun.h`; `linux/vfio.h` is in [`vfio`]).
mod ioctls {
    pub(super) const KVM_RUN: u64 = 0xae80;
    pub(super) const KVM_SET_GSI_ROUTING: u64 = 0x4008_ae6a;
    pub(super) const KVM_IOEVENTFD: u64 = 0x4040_ae79;
    pub(super) const KVM_IRQFD: u64 = 0x4020_ae76;
    pub(super) const TUNSETOFFLOAD: u64 = 0x4004_54d0;
    /// Lets frames come on more or fewer queues of a tap; only for guests that have several.
    pub(super) const TUNSETQUEUE: u64 = 0x4004_54d9;
    /// Moves device memory about in the guest, tells KVM of a device's group; only for guests
    /// that may have functions of the host.
    pub(super) const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
    pub(super) const KVM_SET_DEVICE_ATTR: u64 = 0x4018_aee1;
}

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    /// PR_SET_NO_NEW_PRIVS failed.
    #[error("cannot give up new privileges")]
    NoNewPrivileges(#[source] io::Error),
    /// The filter is wrong or the kernel refused it.
    #[error("cannot filter system calls")]
    Filter(#[from] seccompiler::Error),
}

/// What a guest has that not every guest has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Extras {
    /// PCI functions of the host.
    pub(crate) host_functions: bool,
    /// NICs with a vhost-user backend.
    pub(crate) backends: bool,
    /// A tap with several queues.
    pub(crate) several_queues: bool,
}

/// Confines all threads of the process, for good. No thread may be starting at that moment.
pub(crate) fn confine(extras: Extras) -> Result<(), ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(|error| ConfineError::NoNewPrivileges(error.into()))?;
    seccompiler::apply_filter_all_threads(&filter(extras)?)?;
    Ok(())
}

fn filter(extras: Extras) -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.into_iter().map(|call| (call, Vec::new())).collect();
    if extras.backends {
        // Waiting for a connection that comes and goes.
        rules.extend([libc::SYS_poll, libc::SYS_ppoll].map(|call| (call, Vec::new())));
    }
    let mut requests = vec![
        ioctls::KVM_RUN,
        ioctls::KVM_SET_GSI_ROUTING,
        ioctls::KVM_IOEVENTFD,
        ioctls::KVM_IRQFD,
        ioctls::TUNSETOFFLOAD,
    ];
    if extras.several_queues {
        requests.push(ioctls::TUNSETQUEUE);
    }
    if extras.host_functions {
        // Not among them: opening another device of a group.
        requests.extend(vfio::REQUESTS_OF_A_VMM);
        requests.extend([ioctls::KVM_SET_USER_MEMORY_REGION, ioctls::KVM_SET_DEVICE_ATTR]);
        rules.insert(libc::SYS_eventfd2, Vec::new());
        rules.insert(libc::SYS_prlimit64, vec![asking_limits()?]);
    }
    rules.insert(libc::SYS_ioctl, requests.into_iter().map(request).collect::<Result<_, _>>()?);
    rules.insert(libc::SYS_mmap, vec![without_execution()?]);
    rules.insert(libc::SYS_mprotect, vec![without_execution()?]);
    let filter =
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

/// An ioctl of this number.
fn request(number: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, number)?;
    SeccompRule::new(vec![condition])
}

/// A prlimit that sets nothing.
fn asking_limits() -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    SeccompRule::new(vec![condition])
}

/// An mmap or mprotect (both have the protection as their third argument) without PROT_EXEC.
fn without_execution() -> Result<SeccompRule, seccompiler::BackendError> {
    const PROT_EXEC: u64 = 0x4;
    let condition = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(PROT_EXEC), 0)?;
    SeccompRule::new(vec![condition])
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, ExitStatus};

    use super::*;

    /// Tells a child process, which is this test program again, what to do once it is confined.
    const ROLE: &str = "CONFINED_TEST_ROLE";

    /// Runs this module's `confined_child` in a process of its own.
    fn child(role: &str) -> ExitStatus {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "vmm::seccomp::tests::confined_child", "--nocapture"])
            .env(ROLE, role)
            .status()
            .unwrap()
    }

    /// The body of the child; without a role, in an ordinary run, there is nothing to confine.
    #[test]
    fn confined_child() {
        let Ok(role) = std::env::var(ROLE) else { return };
        let null = File::open("/dev/null").unwrap();
        confine(Extras::default()).unwrap();
        match role.as_str() {
            "behave" => drop(null),
            "open" => drop(File::open("/dev/null")),
            "exec" => drop(Command::new("/bin/true").status()),
            "connect" => drop(std::net::TcpStream::connect("127.0.0.1:1")),
            "ioctl" => drop(rustix::termios::tcgetattr(&null)),
            other => panic!("no role {other}"),
        }
        std::process::exit(0);
    }

    #[test]
    fn a_confined_process_lives_by_what_it_is_allowed() {
        assert!(child("behave").success());
    }

    #[test]
    fn a_confined_process_dies_at_anything_else() {
        for role in ["open", "exec", "connect", "ioctl"] {
            assert_eq!(child(role).signal(), Some(libc::SIGSYS), "{role}");
        }
    }
}
