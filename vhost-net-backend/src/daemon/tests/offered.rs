//! What is offered is carried out: each protocol feature, by the messages that belong to it.

use std::os::fd::AsRawFd as _;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{VhostUserFrontend as _, VhostUserProtocolFeatures as Protocol};
use vhost::{VhostBackend as _, VhostUserDirtyLogRegion};

use super::super::fake_vm::{BASIC, BUFFERS, MERGEABLE, Vm};
use super::Joined;
use crate::ring::fake::{MIB, frame};

/// `VHOST_F_LOG_ALL`.
const LOG_ALL: u64 = 1 << 26;
/// `VIRTIO_NET_F_MTU`.
const MTU: u64 = 1 << 3;

#[test]
fn no_protocol_feature_is_offered_but_those_shown_here() {
    let joined = Joined::new();
    let mut vm = Vm::connect(&joined.socket("a"), BASIC);
    let shown = Protocol::MQ
        | Protocol::REPLY_ACK
        | Protocol::CONFIG
        | Protocol::CONFIGURE_MEM_SLOTS
        | Protocol::RESET_DEVICE
        | Protocol::LOG_SHMFD;
    assert_eq!(vm.frontend.get_protocol_features().unwrap(), shown);
}

#[test]
fn queues_and_mtu_are_told() {
    let mut joined = Joined::new();
    let [c, d] = ["c", "d"].map(|name| joined.socket(name));
    let (c, d) = (c.display(), d.display());
    let link = format!("vhost-user:{c}?queues=3&mtu=9000,vhost-user:{d}");
    joined.daemon.add(&link.parse().unwrap()).unwrap();
    let mut vm = Vm::connect(&joined.socket("c"), BASIC | MTU);
    assert_eq!(vm.frontend.get_queue_num().unwrap(), 3);
    let flags = VhostUserConfigFlags::empty();
    let (_, config) = vm.frontend.get_config(0, 12, flags, &[0; 12]).unwrap();
    assert_eq!(config, [0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0x28, 0x23]);
    let mut other = Vm::connect(&joined.socket("d"), BASIC);
    assert_eq!(other.frontend.get_queue_num().unwrap(), 1);
    assert_eq!(other.frontend.get_features().unwrap() & MTU, 0, "there is no MTU to tell");
}

#[test]
fn memory_comes_and_goes_in_slots() {
    let joined = Joined::new();
    let (mut alice, mut bob) = joined.vms();
    assert_eq!(alice.frontend.get_max_mem_slots().unwrap(), 32);
    let second = alice.regions()[1];
    alice.frontend.remove_mem_region(&second).unwrap();
    alice.send(1);
    bob.expect(1);
    alice.frontend.add_mem_region(&second).unwrap();
    // From the region that has come.
    alice.guest.write(MIB, &frame(100, 2));
    alice.tx.add(&[(MIB, 112)], 0);
    alice.kick();
    bob.expect(2);
    alice.frontend.remove_mem_region(&second).unwrap();
    assert!(alice.frontend.remove_mem_region(&second).is_err(), "it is gone already");
    alice.await_hangup();
    assert_eq!(joined.faults(), [(0, "message")]);
}

#[test]
fn a_device_that_was_reset_begins_anew() {
    let joined = Joined::new();
    let (mut alice, mut bob) = joined.vms();
    alice.send(1);
    bob.expect(1);
    alice.frontend.reset_device().unwrap();
    assert!(!joined.daemon.report()[0].running[0], "its rings have stopped");
    alice.frontend.set_features(BASIC | MERGEABLE).unwrap();
    alice.share_memory();
    (0..2).for_each(|index| alice.start(index, 0));
    alice.send(2);
    bob.expect(2);
    bob.send(3);
    alice.expect(3);
}

#[test]
fn a_log_that_is_set_while_rings_run_shows_what_is_written() {
    let joined = Joined::new();
    let (mut alice, mut bob) = joined.vms();
    alice.send(1);
    bob.expect(1);
    let file = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 4096).unwrap();
    let log = VhostUserDirtyLogRegion { mmap_size: 4096, mmap_offset: 0, mmap_handle: file.as_raw_fd() };
    bob.frontend.set_log_base(0, Some(log)).unwrap();
    bob.frontend.set_features(BASIC | MERGEABLE | LOG_ALL).unwrap();
    alice.send(2);
    bob.expect(2);
    let mut bits = [0; 4096];
    rustix::io::pread(&file, &mut bits, 0).unwrap();
    let page = usize::try_from(BUFFERS >> 12).unwrap();
    // The second buffer of 2 KiB is in the first page.
    assert_eq!(bits[page / 8] & 1 << (page % 8), 1 << (page % 8));
    // Only while that is negotiated.
    bob.frontend.set_features(BASIC | MERGEABLE).unwrap();
    rustix::io::pwrite(&file, &[0; 4096], 0).unwrap();
    alice.send(3);
    bob.expect(3);
    rustix::io::pread(&file, &mut bits, 0).unwrap();
    assert_eq!(bits, [0; 4096]);
}
