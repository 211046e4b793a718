//! The VMM as its supervisor sees it: one process, one guest, one end.

mod common;

use std::os::fd::AsFd as _;

use common::{HALT, Vmm, config, elf, file, out, say};
use launcher::control::{Command, Disk, Event, Nic, NicBackend, exit_code};
use rustix::net::{Shutdown, shutdown};

/// What an exit code of [`exit_code`] is to `ExitStatus`.
fn code(code: u8) -> Option<i32> {
    Some(code.into())
}

#[test]
fn a_guest_is_heard_on_its_console() {
    let mut vmm = Vmm::run(&[say("hello\n"), HALT.to_vec()].concat());
    vmm.hear("hello\n");
}

#[test]
fn a_guest_hears_what_is_typed() {
    // mov dx, 3fd; in al, dx; test al, 1; jz back; mov dx, 3f8; in al, dx; out dx, al; jmp back
    let echo = [
        0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0xeb, 0xef,
    ];
    let mut vmm = Vmm::run(&echo);
    // More than the UART holds: the rest must wait outside and come in order.
    let long: String = ('a'..='z').cycle().take(1000).collect();
    vmm.type_in(&long);
    vmm.hear(&long);
}

#[test]
fn a_reset_ends_the_vmm_as_a_reset() {
    let vmm = Vmm::run(&out(0x64, 0xfe));
    assert_eq!(vmm.event(), Event::Reset);
    assert_eq!(vmm.exit_code(), code(exit_code::RESET));
}

#[test]
fn a_triple_fault_is_a_reset() {
    // ud2, without an interrupt table
    let vmm = Vmm::run(&[0x0f, 0x0b]);
    assert_eq!(vmm.event(), Event::Reset);
    assert_eq!(vmm.exit_code(), code(exit_code::RESET));
}

#[test]
fn the_reset_vector_resets() {
    // mov eax, 0xffff0; jmp rax: the code there is the same in 64-bit mode.
    let vmm = Vmm::run(&[0xb8, 0xf0, 0xff, 0x0f, 0x00, 0xff, 0xe0]);
    assert_eq!(vmm.event(), Event::Reset);
    assert_eq!(vmm.exit_code(), code(exit_code::RESET));
}

#[test]
fn a_power_off_ends_the_vmm_cleanly_and_its_last_words_are_heard() {
    let mut vmm = Vmm::run(&[say("bye"), out(0x600, 0x34)].concat());
    assert_eq!(vmm.event(), Event::Shutdown);
    vmm.hear("bye");
    assert_eq!(vmm.exit_code(), code(exit_code::CLEAN));
}

#[test]
fn stop_ends_a_guest_that_does_nothing() {
    let vmm = Vmm::run(&HALT);
    vmm.channel.send_command(&Command::Stop).unwrap();
    assert_eq!(vmm.event(), Event::Stopped);
    assert_eq!(vmm.exit_code(), code(exit_code::CLEAN));
}

#[test]
fn stop_ends_a_guest_that_never_rests() {
    // jmp self
    let vmm = Vmm::run(&[0xeb, 0xfe]);
    vmm.channel.send_command(&Command::Stop).unwrap();
    assert_eq!(vmm.event(), Event::Stopped);
    assert_eq!(vmm.exit_code(), code(exit_code::CLEAN));
}

#[test]
fn stop_ends_a_guest_that_floods_a_console_nobody_reads() {
    // mov dx, 3f8; out dx, al; jmp back
    let vmm = Vmm::run(&[0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd]);
    vmm.channel.send_command(&Command::Stop).unwrap();
    assert_eq!(vmm.event(), Event::Stopped);
}

#[test]
fn a_power_button_nobody_looks_at_changes_nothing() {
    let vmm = Vmm::run(&HALT);
    vmm.channel.send_command(&Command::PowerButton).unwrap();
    vmm.channel.send_command(&Command::Stop).unwrap();
    assert_eq!(vmm.event(), Event::Stopped);
}

#[test]
fn a_vmm_does_not_outlive_its_supervisor() {
    let vmm = Vmm::run(&HALT);
    // As the kernel does when the supervisor's process goes.
    shutdown(vmm.channel.as_fd(), Shutdown::Both).unwrap();
    assert_eq!(vmm.exit_code(), code(exit_code::CLEAN));
}

#[test]
fn a_running_vmm_is_confined() {
    let vmm = Vmm::run(&HALT);
    let status = std::fs::read_to_string(format!("/proc/{}/status", vmm.process.id())).unwrap();
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    assert!(status.contains("Seccomp:\t2\n"), "{status}");
}

#[test]
fn all_vcpus_can_be_had() {
    let (mut config, console) = config(elf(&say("up")));
    config.vcpus = 8.try_into().unwrap();
    let mut vmm = Vmm::start((config, console));
    assert_eq!(vmm.event(), Event::Running);
    vmm.hear("up");
}

#[test]
fn a_bad_kernel_is_named() {
    for garbage in [&b""[..], b"#!/bin/sh\n", &[0xff; 65536], b"\x7fELF"] {
        let vmm = Vmm::start(config(file(garbage)));
        let message = vmm.error();
        assert!(message.contains("kernel"), "{message}");
        assert_eq!(vmm.exit_code(), code(exit_code::FAILED));
    }
}

#[test]
fn a_bad_initrd_is_named() {
    let (mut config, console) = config(elf(&HALT));
    config.initrd = Some(file(b""));
    let message = Vmm::start((config, console)).error();
    assert!(message.contains("the initrd is empty"), "{message}");
}

#[test]
fn a_descriptor_that_is_not_kvm_is_named() {
    let (mut config, console) = config(elf(&HALT));
    config.kvm = file(b"");
    let message = Vmm::start((config, console)).error();
    assert!(message.contains("the kvm descriptor answers with API version -1"), "{message}");
}

#[test]
fn a_bad_disk_is_named() {
    let (mut config, console) = config(elf(&HALT));
    let serial = String::from("x").try_into().unwrap();
    config.disks.push(Disk { file: file(b"less than a sector"), read_only: true, serial });
    let message = Vmm::start((config, console)).error();
    assert!(message.contains("disks[0] cannot be used: the disk has 18 bytes"), "{message}");
}

#[test]
fn a_nic_that_is_no_tap_is_named() {
    let (mut config, console) = config(elf(&HALT));
    let mac = "02:00:00:00:00:01".parse().unwrap();
    config.nics.push(Nic {
        backend: NicBackend::Tap(vec![file(b"")]),
        mac,
        mtu: 1500.try_into().unwrap(),
        slot: None,
    });
    let message = Vmm::start((config, console)).error();
    assert!(message.contains("nics[0] cannot be used"), "{message}");
    assert!(message.contains("TUNGETIFF"), "{message}");
}

#[test]
fn too_many_devices_are_refused() {
    let (mut config, console) = config(elf(&HALT));
    config.disks = (0..40)
        .map(|_| Disk { file: file(&[0; 512]), read_only: true, serial: String::new().try_into().unwrap() })
        .collect();
    let message = Vmm::start((config, console)).error();
    assert!(message.contains("more than 32 PCI devices"), "{message}");
}

#[test]
fn a_supervisor_that_sends_nothing_is_not_waited_for_in_vain() {
    let (channel, mut process) = Vmm::idle();
    drop(channel);
    assert_eq!(process.wait().unwrap().code(), code(exit_code::FAILED));
}
