//! The table of messages that a guest writes (PCI 3.0, 6.8.2), and message control, which switches it on. Pure state:
//! who owns one makes interrupts of it.

/// Bytes of one table entry: address (8), data (4), vector control (4).
pub(crate) const ENTRY_SIZE: usize = 16;
/// Message control, in the capability: the whole function is masked, the function uses MSI-X.
pub(super) const CONTROL_MASK: u16 = 1 << 14;
pub(super) const CONTROL_ENABLE: u16 = 1 << 15;
/// The bits of message control that a guest may change.
pub(crate) const CONTROL_WRITABLE: u16 = CONTROL_MASK | CONTROL_ENABLE;

/// The messages of one function.
pub(crate) struct MsixTable {
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

impl MsixTable {
    /// A table of `count` vectors, all masked.
    pub(crate) fn new(count: u16) -> Self {
        let masked = Entry { address: 0, data: 0, masked: true, pending: false };
        Self { entries: vec![masked; count.into()], control: 0 }
    }

    /// The guest has written message control.
    pub(crate) fn set_control(&mut self, control: u16) {
        self.control = control;
    }

    /// Whether the function uses MSI-X.
    pub(crate) fn is_enabled(&self) -> bool {
        self.control & CONTROL_ENABLE != 0
    }

    /// Whether `vector` may interrupt the guest now.
    pub(crate) fn is_open(&self, vector: usize) -> bool {
        let masked = self.control & CONTROL_MASK != 0;
        self.is_enabled() && !masked && self.entries.get(vector).is_some_and(|entry| !entry.masked)
    }

    /// Address and data of `vector`'s message, once the guest has unmasked it and so finished writing it.
    pub(crate) fn message(&self, vector: usize) -> Option<(u64, u32)> {
        self.entries.get(vector).filter(|entry| !entry.masked).map(|entry| (entry.address, entry.data))
    }

    /// Notes that `vector` was signalled while it was masked.
    pub(crate) fn set_pending(&mut self, vector: usize) {
        if let Some(entry) = self.entries.get_mut(vector) {
            entry.pending = true;
        }
    }

    /// Whether `vector` was signalled while it was masked; it is no more.
    pub(crate) fn take_pending(&mut self, vector: usize) -> bool {
        self.entries.get_mut(vector).is_some_and(|entry| std::mem::take(&mut entry.pending))
    }

    /// Reads the table; beyond it is zero.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.byte(at);
        }
    }

    fn byte(&self, at: u64) -> u8 {
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

    /// Writes the table: whole, aligned words of 4 or 8 bytes, as the specification wants; others are ignored. Returns
    /// which vector was written.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Option<usize> {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return None;
        }
        let offset = usize::try_from(offset).ok()?;
        for (word, bytes) in (offset / 4..).zip(data.chunks_exact(4)) {
            let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if let Some(entry) = self.entries.get_mut(word / 4) {
                entry.write(word % 4, value);
            }
        }
        Some(offset / ENTRY_SIZE).filter(|vector| *vector < self.entries.len())
    }

    /// Reads the pending bits, one a vector.
    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(8);
            let bits = self.entries.iter().skip(first).take(8).enumerate();
            *byte = bits.map(|(bit, entry)| u8::from(entry.pending) << bit).sum();
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
