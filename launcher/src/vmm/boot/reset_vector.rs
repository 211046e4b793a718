//! What a PC's BIOS has at the reset vector, as far as a guest needs it: a way to reset the machine.
//!
//! Linux restarts "by way of the BIOS" where it has decided so: it leaves for real mode and jumps to FFFF:0000. With
//! nothing there it would run through empty memory for ever.

use vm_memory::{Bytes as _, GuestAddress};

use super::LoadError;
use crate::vmm::legacy::ports;
use crate::vmm::memory::GuestRam;

/// FFFF:0000.
const RESET_VECTOR: u64 = 0xf_fff0;

/// Asks the keyboard controller to pulse the reset line, and waits for it.
#[expect(clippy::cast_possible_truncation, reason = "the port number is one byte")]
const CODE: [u8; 7] = [
    0xb0,
    ports::KEYBOARD_RESET, // mov al, KEYBOARD_RESET
    0xe6,
    ports::KEYBOARD_COMMAND as u8, // out KEYBOARD_COMMAND, al
    0xf4,                          // hlt
    0xeb,
    0xfd, // jmp to the hlt
];

/// Puts the code in place.
pub(super) fn write(ram: &GuestRam) -> Result<(), LoadError> {
    ram.write_slice(&CODE, GuestAddress(RESET_VECTOR))
        .map_err(|source| LoadError::Memory { what: "the reset vector", source })
}
