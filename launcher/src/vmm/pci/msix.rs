//! MSI-X: a table of messages in a BAR, one per vector, that the guest fills and masks (PCI 3.0, 6.8.2).
//!
//! Shared between the vCPU that changes the table and the device's thread that signals a vector. Each vector has an
//! event of its own, bound to an interrupt number whose route follows the table.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::wiring::{Wiring, WiringError};

/// Bytes of one table entry: address (8), data (4), vector control (4).
pub(crate) const ENTRY_SIZE: usize = 16;
/// Message control, in the capability: the whole function is masked, the function uses MSI-X.
const CONTROL_MASK: u16 = 1 << 14;
const CONTROL_ENABLE: u16 = 1 << 15;
/// The bits of message control that a guest may change.
pub(crate) const CONTROL_WRITABLE: u16 = CONTROL_MASK | CONTROL_ENABLE;

/// The vectors of one function.
pub(crate) struct Msix {
    wiring: Arc<Wiring>,
    vectors: Vec<Vector>,
    state: Mutex<State>,
}

struct Vector {
    event: EventFd,
    gsi: u32,
}

struct State {
    entries: Vec<Entry>,
    control: u16,
}

#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    data: u32,
    masked: bool,
    /// Signalled while it was masked.
    pending: bool,
}

impl Msix {
    /// A table of `count` vectors, all masked.
    pub(crate) fn new(wiring: Arc<Wiring>, count: u16) -> Result<Self, WiringError> {
        let vectors = (0..count)
            .map(|_| wiring.interrupt().map(|(event, gsi)| Vector { event, gsi }))
            .collect::<Result<Vec<_>, _>>()?;
        let masked = Entry { address: 0, data: 0, masked: true, pending: false };
        let state = State { entries: vec![masked; vectors.len()], control: 0 };
        Ok(Self { wiring, vectors, state: Mutex::new(state) })
    }

    /// How many vectors there are.
    pub(crate) fn count(&self) -> usize {
        self.vectors.len()
    }

    /// Interrupts the guest by `vector`; one that does not exist (0xffff stands for none) interrupts nobody.
    pub(crate) fn signal(&self, vector: u16) {
        let mut state = self.state();
        let (enabled, masked) = (state.enabled(), state.control & CONTROL_MASK != 0);
        let index = usize::from(vector);
        if let (true, Some(entry), Some(vector)) =
            (enabled, state.entries.get_mut(index), self.vectors.get(index))
        {
            if masked || entry.masked {
                entry.pending = true;
            } else {
                vector.fire();
            }
        }
    }

    /// The guest has written message control.
    pub(crate) fn set_control(&self, control: u16) {
        let mut state = self.state();
        state.control = control;
        self.deliver(&mut state);
    }

    /// Reads the table; beyond it is zero.
    pub(crate) fn read_table(&self, offset: u64, data: &mut [u8]) {
        let state = self.state();
        for (at, byte) in (offset..).zip(data) {
            *byte = state.table_byte(at);
        }
    }

    /// Writes the table: whole, aligned words of 4 or 8 bytes, as the specification wants; others are ignored.
    pub(crate) fn write_table(&self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let Ok(offset) = usize::try_from(offset) else { return };
        let mut state = self.state();
        for (word, bytes) in (offset / 4..).zip(data.chunks_exact(4)) {
            let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if let Some(entry) = state.entries.get_mut(word / 4) {
                entry.write(word % 4, value);
            }
        }
        self.route(&state, offset / ENTRY_SIZE);
        self.deliver(&mut state);
    }

    /// Reads the pending bits, one a vector.
    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = self.state();
        for (at, byte) in (offset..).zip(data) {
            let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(8);
            let bits = state.entries.iter().skip(first).take(8).enumerate();
            *byte = bits.map(|(bit, entry)| u8::from(entry.pending) << bit).sum();
        }
    }

    /// Takes a route to KVM once the guest has unmasked the vector, and so finished writing it.
    fn route(&self, state: &State, index: usize) {
        if let (Some(entry), Some(vector)) = (state.entries.get(index), self.vectors.get(index))
            && !entry.masked
            && let Err(error) = self.wiring.route(vector.gsi, entry.address, entry.data)
        {
            // The guest loses its own interrupt; nothing else depends on it.
            tracing::debug!("vector {index} is not routed: {error}");
        }
    }

    /// Fires what became unmasked while pending.
    fn deliver(&self, state: &mut State) {
        if !state.enabled() || state.control & CONTROL_MASK != 0 {
            return;
        }
        for (entry, vector) in state.entries.iter_mut().zip(&self.vectors) {
            if entry.pending && !entry.masked {
                entry.pending = false;
                vector.fire();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vector {
    fn fire(&self) {
        // A full counter means that the interrupt is on its way already.
        let _ = self.event.write(1);
    }
}

impl State {
    fn enabled(&self) -> bool {
        self.control & CONTROL_ENABLE != 0
    }

    fn table_byte(&self, at: u64) -> u8 {
        let Ok(at) = usize::try_from(at) else { return 0 };
        let Some(entry) = self.entries.get(at / ENTRY_SIZE) else { return 0 };
        let (address, data) = (entry.address.to_le_bytes(), entry.data.to_le_bytes());
        match at % ENTRY_SIZE {
            byte @ 0..8 => address[byte],
            byte @ 8..12 => data[byte - 8],
            12 => entry.masked.into(),
            _ => 0,
        }
    }
}

impl Entry {
    fn write(&mut self, word: usize, value: u32) {
        match word {
            0 => self.address = self.address >> 32 << 32 | u64::from(value & !3),
            1 => self.address = self.address & 0xffff_ffff | u64::from(value) << 32,
            2 => self.data = value,
            _ => self.masked = value & 1 != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::machine::tests::machine;

    const LAPIC: u32 = 0xfee0_0000;

    fn msix(count: u16) -> Msix {
        Msix::new(Arc::new(Wiring::new(machine().vm)), count).unwrap()
    }

    /// How often the vector's event was signalled since the last time, if KVM has not taken it.
    fn pending(msix: &Msix, vector: u16) -> bool {
        let mut bits = [0];
        msix.read_pending(u64::from(vector / 8), &mut bits);
        bits[0] >> (vector % 8) & 1 != 0
    }

    fn write(msix: &Msix, vector: u64, words: [u32; 4]) {
        for (word, value) in (0..).zip(words) {
            msix.write_table(vector * 16 + word * 4, &value.to_le_bytes());
        }
    }

    #[test]
    fn a_masked_vector_waits_until_it_is_unmasked() {
        let msix = msix(3);
        msix.set_control(CONTROL_ENABLE);
        msix.signal(1);
        assert!(pending(&msix, 1));
        write(&msix, 1, [LAPIC, 0, 0x41, 0]);
        assert!(!pending(&msix, 1));
    }

    #[test]
    fn a_masked_function_holds_all_vectors() {
        let msix = msix(2);
        write(&msix, 0, [LAPIC, 0, 0x41, 0]);
        msix.set_control(CONTROL_ENABLE | CONTROL_MASK);
        msix.signal(0);
        assert!(pending(&msix, 0));
        msix.set_control(CONTROL_ENABLE);
        assert!(!pending(&msix, 0));
    }

    #[test]
    fn what_was_written_is_read_back() {
        let msix = msix(2);
        msix.write_table(16, &0x1_fee0_0007_u64.to_le_bytes());
        msix.write_table(24, &0x4321_u32.to_le_bytes());
        let mut entry = [0; 16];
        msix.read_table(16, &mut entry);
        assert_eq!(entry[..8], 0x1_fee0_0004_u64.to_le_bytes());
        assert_eq!(entry[8..], [0x21, 0x43, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn nonsense_in_the_table_and_vectors_that_do_not_exist_do_no_harm() {
        let msix = msix(2);
        msix.set_control(!CONTROL_MASK);
        for offset in (0..64).chain([u64::from(u32::MAX) - 3, u32::MAX.into()]) {
            for size in [1, 2, 3, 4, 8] {
                msix.write_table(offset, &vec![0xff; size]);
                msix.read_table(offset, &mut vec![0; size]);
                msix.read_pending(offset, &mut vec![0; size]);
            }
        }
        for words in [[u32::MAX; 4], [u32::MAX, u32::MAX, u32::MAX, 0], [0, 0, 0, 0], [1, 2, 3, 4]] {
            write(&msix, 0, words);
            write(&msix, 7, words);
        }
        [0, 1, 2, 99, 0xffff].into_iter().for_each(|vector| msix.signal(vector));
    }
}
