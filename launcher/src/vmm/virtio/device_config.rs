//! A device's configuration space as its driver reads it, and the interrupt that tells of changes (virtio 1.2, 2.5).

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::common::NO_VECTOR;
use crate::vmm::pci::Msix;

/// The bytes, shared by the device, which may change them, and the transport.
pub(crate) struct DeviceConfig {
    bytes: Mutex<Vec<u8>>,
    generation: AtomicU8,
    interrupts: OnceLock<Arc<Msix>>,
    vector: AtomicU16,
}

impl DeviceConfig {
    /// A configuration of these bytes.
    pub(crate) fn new(bytes: &[u8]) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(bytes.to_vec()),
            generation: AtomicU8::new(0),
            interrupts: OnceLock::new(),
            vector: AtomicU16::new(NO_VECTOR),
        })
    }

    /// Where changes are told; the first call counts.
    pub(super) fn tell_by(&self, interrupts: Arc<Msix>) {
        let _ = self.interrupts.set(interrupts);
    }

    /// The vector by which the driver wants to be told.
    pub(super) fn set_vector(&self, vector: u16) {
        self.vector.store(vector, Ordering::Relaxed);
    }

    /// Counts changes, so that a driver can see whether it has read bytes of one time.
    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Reads at any offset; what is beyond the end is left as it is.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.bytes();
        let rest = bytes.get(start..).unwrap_or_default();
        data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    }

    /// Changes the bytes at `offset`, and tells the driver if they are others than before.
    pub(super) fn change(&self, offset: usize, new: &[u8]) {
        {
            let mut bytes = self.bytes();
            let Some(old) = bytes.get_mut(offset..offset + new.len()) else { return };
            if old == new {
                return;
            }
            old.copy_from_slice(new);
            self.generation.fetch_add(1, Ordering::Release);
        }
        if let Some(interrupts) = self.interrupts.get() {
            interrupts.signal(self.vector.load(Ordering::Relaxed));
        }
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
