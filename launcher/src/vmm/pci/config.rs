//! PCI configuration space of one function: a type 0 header and a list of capabilities (PCI 3.0, 6.1).
//!
//! Registers are bytes with a mask of what the guest may change. Devices add BARs and capabilities when they are
//! made, and look at what was written when they are told of a write.

/// Bytes of configuration space. Beyond them, PCIe's extended space reads as "no capability".
const SIZE: usize = 256;
/// Memory BARs in a type 0 header.
const BAR_COUNT: usize = 6;

const VENDOR: usize = 0x00;
const DEVICE: usize = 0x02;
pub(crate) const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const BARS: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_NO_INTX: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Who a function says it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    /// The device's vendor.
    pub(crate) vendor: u16,
    /// The device's number.
    pub(crate) device: u16,
    /// Its revision.
    pub(crate) revision: u8,
    /// Class, subclass and programming interface, in 24 bits.
    pub(crate) class: u32,
    /// The subsystem's vendor.
    pub(crate) subsystem_vendor: u16,
    /// The subsystem's number.
    pub(crate) subsystem: u16,
}

/// The registers.
pub(crate) struct ConfigSpace {
    bytes: [u8; SIZE],
    /// Which bits the guest may change.
    writable: [u8; SIZE],
    bar_sizes: [u32; BAR_COUNT],
    next_capability: usize,
    /// Where the number of the next capability is to be noted.
    last_link: usize,
}

impl ConfigSpace {
    /// A header without BARs and capabilities.
    pub(crate) fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bar_sizes: [0; BAR_COUNT],
            next_capability: FIRST_CAPABILITY,
            last_link: CAPABILITIES,
        };
        let Identity { vendor, device, revision, class, subsystem_vendor, subsystem } = *identity;
        space.set(VENDOR, &vendor.to_le_bytes());
        space.set(DEVICE, &device.to_le_bytes());
        space.set(REVISION, &(class << 8 | u32::from(revision)).to_le_bytes());
        space.set(SUBSYSTEM_VENDOR, &subsystem_vendor.to_le_bytes());
        space.set(SUBSYSTEM, &subsystem.to_le_bytes());
        let writable = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_NO_INTX;
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&writable.to_le_bytes());
        space
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn get32(&self, at: usize) -> u32 {
        let bytes = &self.bytes[at..at + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// Adds a 32-bit memory BAR of `size` bytes, a power of two of at least 16, at `address`.
    pub(crate) fn add_bar(&mut self, bar: usize, size: u32, address: u32) {
        let at = BARS + bar * 4;
        self.bar_sizes[bar] = size;
        self.set(at, &address.to_le_bytes());
        // Address bits below the size stay zero: that is how a guest finds out about it.
        self.writable[at..at + 4].copy_from_slice(&(!(size - 1)).to_le_bytes());
    }

    /// Adds a capability, whose first two bytes (number and link) are filled in here; returns where it begins.
    /// `writable` has the mask for `body`.
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        // Offsets into 256 bytes.
        self.bytes[self.last_link] = u8::try_from(at).unwrap_or(0);
        self.last_link = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        at
    }

    /// Reads registers; beyond the end is zero.
    pub(crate) fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes what may be written; the rest is ignored.
    pub(crate) fn write(&mut self, offset: u16, data: &[u8]) {
        let range = usize::from(offset)..;
        for (at, new) in range.zip(data) {
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | new & mask;
            }
        }
    }

    /// The two bytes at `offset`, which is inside a capability the caller has added.
    pub(crate) fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// The command register: what the guest lets the function do.
    pub(crate) fn command(&self) -> u16 {
        self.word(COMMAND)
    }

    /// Where BAR `bar` is, if the guest has switched memory decoding on: its first address.
    pub(crate) fn bar(&self, bar: usize) -> Option<u64> {
        let decoding = self.word(COMMAND) & COMMAND_MEMORY != 0;
        (decoding && self.bar_sizes[bar] > 0).then(|| u64::from(self.get32(BARS + bar * 4) & !0xf))
    }

    /// Which BAR has `address`, and where in it.
    pub(crate) fn decode(&self, address: u64) -> Option<super::BarOffset> {
        (0..BAR_COUNT).find_map(|bar| {
            let offset = address.checked_sub(self.bar(bar)?)?;
            (offset < self.bar_sizes[bar].into()).then_some(super::BarOffset { bar, offset })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: 0x02_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
        };
        let mut space = ConfigSpace::new(&identity);
        space.add_bar(0, 0x8000, 0xc000_0000);
        space
    }

    fn read32(space: &ConfigSpace, at: u16) -> u32 {
        let mut data = [0; 4];
        space.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_guest_learns_a_bars_size_by_writing_ones() {
        let mut space = space();
        space.write(0x10, &[0xff; 4]);
        assert_eq!(read32(&space, 0x10), 0xffff_8000);
        space.write(0x14, &[0xff; 4]);
        assert_eq!(read32(&space, 0x14), 0, "there is no second BAR");
    }

    #[test]
    fn a_bar_decodes_only_while_memory_is_enabled() {
        let mut space = space();
        assert_eq!(space.decode(0xc000_0010), None);
        space.write(0x04, &COMMAND_MEMORY.to_le_bytes());
        assert_eq!(space.decode(0xc000_0010), Some(super::super::BarOffset { bar: 0, offset: 0x10 }));
        assert_eq!(space.decode(0xc000_8000), None);
        assert_eq!(space.decode(0xbfff_ffff), None);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let first = space.add_capability(0x11, &[0; 10], &[]);
        let second = space.add_capability(0x09, &[1, 2, 3], &[]);
        assert_eq!((first, second), (0x40, 0x4c));
        assert_eq!(read32(&space, 0x34) & 0xff, 0x40);
        assert_eq!(read32(&space, 0x40) & 0xffff, 0x4c11);
        assert_eq!(read32(&space, 0x4c), 0x0201_0009);
    }

    #[test]
    fn what_is_read_only_stays() {
        let mut space = space();
        for at in 0..300 {
            space.write(at, &[0xff; 8]);
        }
        assert_eq!(read32(&space, 0), 0x1041_1af4);
        assert_eq!(read32(&space, 0xfe) & 0xffff_0000, 0, "beyond the end");
        assert_eq!(read32(&space, 0x04) & 0xffff, 0x0406);
    }
}
