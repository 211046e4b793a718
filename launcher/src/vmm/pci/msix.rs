//! MSI-X of a device that lives in this process, or whose queues a backend serves: [`MsixTable`] with an event per
//! vector.
//!
//! Who writes a vector's event (the device's thread, or a backend to which it was lent) need not know the table: while
//! the vector is open, the event is bound to KVM (irqfd) and interrupts the guest; while it is masked, the event holds
//! the interrupt, and KVM takes it when the event is bound again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::msix_table::MsixTable;
use super::wiring::{Wiring, WiringError};

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
    table: MsixTable,
    /// Which vectors' events are bound.
    bound: Vec<bool>,
}

impl Msix {
    /// A table of `count` vectors, all masked.
    pub(crate) fn new(wiring: Arc<Wiring>, count: u16) -> Result<Self, WiringError> {
        let vectors = (0..count)
            .map(|_| wiring.held_interrupt().map(|(event, gsi)| Vector { event, gsi }))
            .collect::<Result<_, _>>()?;
        let state = State { table: MsixTable::new(count), bound: vec![false; count.into()] };
        Ok(Self { wiring, vectors, state: Mutex::new(state) })
    }

    /// How many vectors there are.
    pub(crate) fn count(&self) -> usize {
        self.vectors.len()
    }

    /// Interrupts the guest by `vector`; one that does not exist (0xffff stands for none) interrupts nobody.
    pub(crate) fn signal(&self, vector: u16) {
        if let Some(vector) = self.vectors.get(usize::from(vector)) {
            // A full counter means that the interrupt is on its way already.
            let _ = vector.event.write(1);
        }
    }

    /// The event of `vector`, for another process to signal; if there is no such vector, one that nobody hears.
    pub(crate) fn event(&self, vector: u16) -> std::io::Result<EventFd> {
        match self.vectors.get(usize::from(vector)) {
            Some(vector) => vector.event.try_clone(),
            None => EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK),
        }
    }

    /// The guest has written message control.
    pub(crate) fn set_control(&self, control: u16) {
        let mut state = self.state();
        state.table.set_control(control);
        (0..self.vectors.len()).for_each(|vector| self.follow(&mut state, vector));
    }

    /// Reads the table; beyond it is zero.
    pub(crate) fn read_table(&self, offset: u64, data: &mut [u8]) {
        self.state().table.read(offset, data);
    }

    /// Writes the table.
    pub(crate) fn write_table(&self, offset: u64, data: &[u8]) {
        let mut state = self.state();
        if let Some(index) = state.table.write(offset, data) {
            self.follow(&mut state, index);
        }
    }

    /// Reads the pending bits, one a vector.
    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let State { table, bound } = &mut *self.state();
        for (index, vector) in self.vectors.iter().enumerate() {
            if bound.get(index) == Some(&false) && vector.event.read().is_ok() {
                table.set_pending(index);
            }
        }
        table.read_pending(offset, data);
    }

    /// Does for a vector what the table says of it.
    fn follow(&self, State { table, bound }: &mut State, index: usize) {
        let (Some(vector), Some(bound)) = (self.vectors.get(index), bound.get_mut(index)) else { return };
        if let Some((address, data)) = table.message(index)
            && let Err(error) = self.wiring.route(vector.gsi, address, data)
        {
            // The guest loses its own interrupt; nothing else depends on it.
            tracing::debug!("vector {index} is not routed: {error}");
        }
        let open = table.is_open(index);
        if open == *bound {
            return;
        }
        if open && table.take_pending(index) {
            // What the pending bits showed: back to where KVM finds it.
            let _ = vector.event.write(1);
        }
        let change = if open { Wiring::bind } else { Wiring::unbind };
        match change(&self.wiring, &vector.event, vector.gsi) {
            Ok(()) => *bound = open,
            Err(error) => tracing::debug!("vector {index}: {error}"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::msix_table::{CONTROL_ENABLE, CONTROL_MASK};
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
