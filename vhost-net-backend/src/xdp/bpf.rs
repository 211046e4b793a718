//! The four uses of bpf(2) that an XDP program with a socket map needs.
//!
//! Numbers and layouts: `linux/bpf.h`. Each attribute struct is the front part of the kernel's union, which reads the
//! rest as zeros.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;

const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
/// `BPF_XDP`, an attach type.
const ATTACH_XDP: u32 = 37;

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// A map from queue to AF_XDP socket.
pub(super) fn xsk_map(queues: u32) -> io::Result<OwnedFd> {
    let attribute =
        MapCreate { map_type: MAP_TYPE_XSKMAP, key_size: 4, value_size: 4, max_entries: queues, flags: 0 };
    descriptor(call(MAP_CREATE, &attribute)?)
}

/// Puts a socket into the map.
pub(super) fn update(map: BorrowedFd<'_>, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    let value = number(socket);
    let (key, value) = ((&raw const queue).expose_provenance(), (&raw const value).expose_provenance());
    let attribute =
        MapUpdate { map: number(map), padding: 0, key: key as u64, value: value as u64, flags: 0 };
    call(MAP_UPDATE_ELEM, &attribute).map(drop)
}

/// Loads an XDP program; the kernel checks it.
pub(super) fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let attribute = ProgLoad {
        prog_type: PROG_TYPE_XDP,
        instruction_count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: instructions.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"guestwire_steer\0",
        interface: 0,
        expected_attach_type: ATTACH_XDP,
    };
    descriptor(call(PROG_LOAD, &attribute)?)
}

/// Attaches a program to an interface, as long as the result is open.
pub(super) fn attach(program: BorrowedFd<'_>, interface: NonZeroU32, flags: u32) -> io::Result<OwnedFd> {
    let attribute =
        LinkCreate { program: number(program), interface: interface.get(), attach_type: ATTACH_XDP, flags };
    descriptor(call(LINK_CREATE, &attribute)?)
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn call<T>(command: libc::c_int, attribute: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads size_of::<T>() bytes of the attribute and what its pointers name, all alive here.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attribute), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let number = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: bpf(2) returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
