//! A machine of the test's own, as far as networking goes.
//!
//! The kernel throws it away with the last process in it, so tests neither see nor leave anything on the real
//! machine, and run side by side. Nothing in it can write to `/etc`: DHCP clients would replace the machine's own
//! `resolv.conf`. What it does not separate: processes, files elsewhere, devices. Tests of an SR-IOV NIC stay outside: a
//! physical function lives in the machine's first network namespace.

use std::fs;
use std::marker::PhantomData;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::command::sh;

/// Proof that the calling thread, and every process it starts from now on, is on a machine of its own: a network
/// namespace with nothing but a loopback, an empty `/run`, a `/sys` that shows this namespace's links, and an `/etc` that
/// is read-only.
#[derive(Debug)]
pub struct Sandbox {
    /// Another thread of the test is not inside.
    not_send: PhantomData<*const ()>,
}

impl Sandbox {
    /// Moves the calling thread into a new one, for the rest of its life.
    ///
    /// # Panics
    /// Without root: such a test must fail, not pass unseen.
    #[track_caller]
    pub fn enter() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("unshare network and mounts");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .expect("keep mounts to ourselves");
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).expect("an empty /run");
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)
            .expect("a /sys of this namespace");
        mount(Some("/etc"), "/etc", none, MsFlags::MS_BIND, none).expect("an /etc of our own");
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, "/etc", none, read_only, none).expect("an /etc that nobody writes to");
        fs::create_dir("/run/netns").expect("/run is empty and writable");
        sh("ip link set lo up");
        Self { not_send: PhantomData }
    }
}
