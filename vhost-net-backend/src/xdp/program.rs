//! The XDP program: which frames go to the guest's socket, in BPF instructions.
//!
//! In words: a frame that is too short, or not to the guest's address, or not in its VLAN, passes on to the kernel; any
//! other is redirected to the socket of the queue it came in by, or passes on if that queue has none.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::Steering;

/// Offsets in `struct xdp_md`.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
const RX_QUEUE_INDEX: i16 = 16;

const XDP_PASS: i32 = 2;
const REDIRECT_MAP: i32 = 51;
/// Marks an immediate as a map's descriptor.
const PSEUDO_MAP_FD: u8 = 1;

/// Operation codes (RFC 9669).
mod op {
    pub(super) const LOAD_WORD: u8 = 0x61;
    pub(super) const LOAD_HALF: u8 = 0x69;
    pub(super) const LOAD_BYTE: u8 = 0x71;
    pub(super) const LOAD_IMMEDIATE_64: u8 = 0x18;
    pub(super) const MOVE: u8 = 0xbf;
    pub(super) const MOVE_IMMEDIATE: u8 = 0xb7;
    pub(super) const ADD_IMMEDIATE: u8 = 0x07;
    pub(super) const AND_IMMEDIATE: u8 = 0x57;
    pub(super) const JUMP_IF_GREATER: u8 = 0x2d;
    /// On the lower 32 bits.
    pub(super) const JUMP_IF_NOT_IMMEDIATE: u8 = 0x56;
    pub(super) const CALL: u8 = 0x85;
    pub(super) const EXIT: u8 = 0x95;
}

/// Registers: result and scratch, arguments of calls, and the saved context.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R6: u8 = 6;

/// One instruction.
fn instruction(operation: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(operation)
        | u64::from(to) << 8
        | u64::from(from) << 12
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(immediate.cast_unsigned()) << 32
}

/// Instructions, with jumps to the end still open.
#[derive(Default)]
struct Assembler {
    code: Vec<u64>,
    /// Instructions that jump to where frames pass on.
    to_pass: Vec<usize>,
}

impl Assembler {
    fn add(&mut self, operation: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        self.code.push(instruction(operation, to, from, offset, immediate));
    }

    fn pass_if(&mut self, operation: u8, to: u8, from: u8, immediate: i32) {
        self.to_pass.push(self.code.len());
        self.add(operation, to, from, 0, immediate);
    }

    /// Loads a field of the frame to R4 and passes unless it is `wanted`, both in network order.
    fn require(&mut self, load: u8, offset: i16, mask: Option<i32>, wanted: i32) {
        self.add(load, R4, R2, offset, 0);
        if let Some(mask) = mask {
            self.add(op::AND_IMMEDIATE, R4, 0, 0, mask);
        }
        self.pass_if(op::JUMP_IF_NOT_IMMEDIATE, R4, 0, wanted);
    }

    /// Lets the open jumps arrive here.
    fn land(&mut self) {
        let end = self.code.len();
        for from in self.to_pass.drain(..) {
            // The program has a few dozen instructions.
            let distance = u64::try_from(end - from - 1).unwrap_or(0);
            if let Some(jump) = self.code.get_mut(from) {
                *jump |= distance << 16;
            }
        }
    }
}

/// The program for a steering, with the map to redirect by.
pub(super) fn steer(steering: &Steering, map: BorrowedFd<'_>) -> Vec<u64> {
    let Steering { mac, groups, vlan } = *steering;
    let mut code = Assembler::default();
    code.add(op::MOVE, R6, R1, 0, 0);
    code.add(op::LOAD_WORD, R2, R1, DATA, 0);
    code.add(op::LOAD_WORD, R3, R1, DATA_END, 0);
    code.add(op::MOVE, R4, R2, 0, 0);
    code.add(op::ADD_IMMEDIATE, R4, 0, 0, if vlan.is_some() { 18 } else { 14 });
    code.pass_if(op::JUMP_IF_GREATER, R4, R3, 0);
    if let Some(mac) = mac {
        let [a, b, c, d, e, f] = mac.octets();
        if groups {
            // A group address skips the four instructions that compare.
            code.add(op::LOAD_BYTE, R4, R2, 0, 0);
            code.add(op::AND_IMMEDIATE, R4, 0, 0, 1);
            code.add(op::JUMP_IF_NOT_IMMEDIATE, R4, 0, 4, 0);
        }
        code.require(op::LOAD_WORD, 0, None, i32::from_ne_bytes([a, b, c, d]));
        code.require(op::LOAD_HALF, 4, None, i32::from(u16::from_ne_bytes([e, f])));
    }
    if let Some(vlan) = vlan {
        let order = |value: u16| i32::from(value.to_be());
        code.require(op::LOAD_HALF, 12, None, order(0x8100));
        code.require(op::LOAD_HALF, 14, Some(order(0x0fff)), order(vlan.get()));
    }
    code.add(op::LOAD_WORD, R2, R6, RX_QUEUE_INDEX, 0);
    code.add(op::LOAD_IMMEDIATE_64, R1, PSEUDO_MAP_FD, 0, map.as_raw_fd());
    code.add(0, 0, 0, 0, 0);
    // What to do for a queue without a socket.
    code.add(op::MOVE_IMMEDIATE, R3, 0, 0, XDP_PASS);
    code.add(op::CALL, 0, 0, 0, REDIRECT_MAP);
    code.add(op::EXIT, 0, 0, 0, 0);
    code.land();
    code.add(op::MOVE_IMMEDIATE, R0, 0, 0, XDP_PASS);
    code.add(op::EXIT, 0, 0, 0, 0);
    code.code
}
