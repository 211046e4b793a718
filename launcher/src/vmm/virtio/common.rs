//! The common configuration structure of virtio-pci (virtio 1.2, 4.1.4.3) and the device status behind it.
//!
//! Holds what the driver writes until the device is activated with it. Pure state: no I/O, no guest memory.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT as _};

/// Bytes of the structure.
pub(super) const SIZE: usize = 0x38;
/// No interrupt.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// What every device offers.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

#[expect(clippy::cast_possible_truncation, reason = "status bits are one byte")]
mod status {
    use super::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET};

    pub(super) const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
    pub(super) const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
    pub(super) const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
}

/// What a write asks the transport to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing more.
    None,
    /// The driver is ready: start the device.
    Activate,
    /// The driver wants a fresh device.
    Reset,
}

/// The driver's choices for one queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueSetup {
    max_size: u16,
    size: u16,
    pub(super) vector: u16,
    pub(super) enabled: bool,
    /// Guest-physical addresses of the ring's three parts.
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        let (size, vector) = (max_size, NO_VECTOR);
        Self { max_size, size, vector, enabled: false, descriptors: 0, driver: 0, device: 0 }
    }

    /// The live queue, not yet checked against memory; `None` if its numbers cannot be a queue's.
    pub(super) fn build(&self, event_idx: bool) -> Option<Queue> {
        let mut queue = Queue::new(self.max_size).ok()?;
        queue.try_set_size(self.size).ok()?;
        queue.try_set_desc_table_address(vm_memory::GuestAddress(self.descriptors)).ok()?;
        queue.try_set_avail_ring_address(vm_memory::GuestAddress(self.driver)).ok()?;
        queue.try_set_used_ring_address(vm_memory::GuestAddress(self.device)).ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Some(queue)
    }
}

/// The registers.
pub(super) struct CommonConfig {
    offered: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    pub(super) config_vector: u16,
    pub(super) status: u8,
    queue_select: u16,
    pub(super) queues: Vec<QueueSetup>,
}

impl CommonConfig {
    /// A device that offers `features`, and those of the transport that are in `rings`.
    pub(super) fn new(features: u64, rings: u64, queue_sizes: &[u16]) -> Self {
        Self {
            offered: features | TRANSPORT_FEATURES & (rings | 1 << VIRTIO_F_VERSION_1),
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(|size| QueueSetup::new(*size)).collect(),
        }
    }

    /// The features both sides agreed on.
    pub(super) fn features(&self) -> u64 {
        self.accepted
    }

    /// Whether both sides agreed on event indexes.
    pub(super) fn event_idx(&self) -> bool {
        self.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0
    }

    /// Tells the driver that its device cannot work like this.
    pub(super) fn refuse(&mut self) {
        self.status |= status::NEEDS_RESET;
        self.status &= !status::DRIVER_OK;
    }

    /// Reads at any offset; beyond the end is zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        let start = usize::try_from(offset).unwrap_or(SIZE);
        for (at, byte) in (start..).zip(data) {
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    /// The structure as a driver sees it.
    fn image(&self) -> [u8; SIZE] {
        let mut image = [0; SIZE];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.device_feature_select.to_le_bytes());
        put(0x04, &half(self.offered, self.device_feature_select).to_le_bytes());
        put(0x08, &self.driver_feature_select.to_le_bytes());
        put(0x0c, &half(self.accepted, self.driver_feature_select).to_le_bytes());
        put(0x10, &self.config_vector.to_le_bytes());
        // A device has a handful of queues.
        put(0x12, &u16::try_from(self.queues.len()).unwrap_or(u16::MAX).to_le_bytes());
        put(0x14, &[self.status]);
        put(0x16, &self.queue_select.to_le_bytes());
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(0x18, &queue.size.to_le_bytes());
            put(0x1a, &queue.vector.to_le_bytes());
            put(0x1c, &u16::from(queue.enabled).to_le_bytes());
            put(0x1e, &self.queue_select.to_le_bytes());
            put(0x20, &queue.descriptors.to_le_bytes());
            put(0x28, &queue.driver.to_le_bytes());
            put(0x30, &queue.device.to_le_bytes());
        }
        image
    }

    /// Writes one register in its own width (64-bit ones in halves); any other write is ignored. A vector that the
    /// table of `vectors` does not have reads back as none, which tells the driver.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], vectors: usize) -> Action {
        match *data {
            [value] if offset == 0x14 => return self.write_status(value),
            [a, b] => self.write16(offset, u16::from_le_bytes([a, b]), vectors),
            [a, b, c, d] => self.write32(offset, u32::from_le_bytes([a, b, c, d])),
            _ => {}
        }
        Action::None
    }

    fn write_status(&mut self, value: u8) -> Action {
        if value == 0 {
            let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
            *self = Self::new(self.offered, 0, &sizes);
            return Action::Reset;
        }
        let new = value & !self.status;
        // Bits are only ever set; the device's own are not the driver's to set.
        self.status |= value & !(status::FEATURES_OK | status::DRIVER_OK | status::NEEDS_RESET);
        if new & status::FEATURES_OK != 0 && self.features_are_fine() {
            self.status |= status::FEATURES_OK;
        }
        if new & status::DRIVER_OK != 0 && self.status & status::FEATURES_OK != 0 {
            self.status |= status::DRIVER_OK;
            return Action::Activate;
        }
        Action::None
    }

    fn features_are_fine(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn write16(&mut self, offset: u64, value: u16, vectors: usize) {
        let vector = if usize::from(value) < vectors { value } else { NO_VECTOR };
        match offset {
            0x10 => self.config_vector = vector,
            0x16 => self.queue_select = value,
            _ => {
                if let Some(queue) = self.selected() {
                    match offset {
                        0x18 => queue.size = value,
                        0x1a => queue.vector = vector,
                        0x1c => queue.enabled = value == 1,
                        _ => {}
                    }
                }
            }
        }
    }

    fn write32(&mut self, offset: u64, value: u32) {
        let negotiating = self.status & status::FEATURES_OK == 0;
        match offset {
            0x00 => self.device_feature_select = value,
            0x08 => self.driver_feature_select = value,
            0x0c if negotiating => set_half(&mut self.accepted, self.driver_feature_select, value),
            _ => {
                if let Some(queue) = self.selected() {
                    match offset {
                        0x20 | 0x24 => set_half(&mut queue.descriptors, u32::from(offset == 0x24), value),
                        0x28 | 0x2c => set_half(&mut queue.driver, u32::from(offset == 0x2c), value),
                        0x30 | 0x34 => set_half(&mut queue.device, u32::from(offset == 0x34), value),
                        _ => {}
                    }
                }
            }
        }
    }

    /// The queue whose registers are shown, while they may be changed: not once it is enabled.
    fn selected(&mut self) -> Option<&mut QueueSetup> {
        let running = self.status & status::DRIVER_OK != 0;
        self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| !running && !queue.enabled)
    }
}

/// The low (0) or high (1) half of a 64-bit value; others are zero.
#[expect(clippy::cast_possible_truncation, reason = "a half is what is asked for")]
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, part: u32) {
    match select {
        0 => *value = *value >> 32 << 32 | u64::from(part),
        1 => *value = *value & 0xffff_ffff | u64::from(part) << 32,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
    const ACKNOWLEDGE_AND_DRIVER: u8 = 3;

    fn config() -> CommonConfig {
        CommonConfig::new(1 << 5, u64::MAX, &[256, 256])
    }

    fn accept(config: &mut CommonConfig, features: u64) -> u8 {
        for select in 0..2 {
            config.write(0x08, &u32::to_le_bytes(select), 0);
            config.write(0x0c, &half(features, select).to_le_bytes(), 0);
        }
        config.write(0x14, &[ACKNOWLEDGE_AND_DRIVER], 0);
        config.write(0x14, &[ACKNOWLEDGE_AND_DRIVER | status::FEATURES_OK], 0);
        config.status
    }

    #[test]
    fn features_are_agreed_on_only_within_what_was_offered() {
        assert_ne!(accept(&mut config(), VERSION_1 | 1 << 5) & status::FEATURES_OK, 0);
        assert_eq!(accept(&mut config(), VERSION_1 | 1 << 6) & status::FEATURES_OK, 0, "not offered");
        assert_eq!(accept(&mut config(), 1 << 5) & status::FEATURES_OK, 0, "a legacy driver");
    }

    #[test]
    fn agreed_features_stay() {
        let mut config = config();
        accept(&mut config, VERSION_1);
        config.write(0x08, &0_u32.to_le_bytes(), 0);
        config.write(0x0c, &u32::MAX.to_le_bytes(), 0);
        assert_eq!(config.features(), VERSION_1);
    }

    #[test]
    fn a_driver_is_ready_only_after_the_features() {
        let mut config = config();
        assert_eq!(config.write(0x14, &[status::DRIVER_OK], 0), Action::None);
        accept(&mut config, VERSION_1);
        let ready = ACKNOWLEDGE_AND_DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        assert_eq!(config.write(0x14, &[ready], 0), Action::Activate);
        assert_eq!(config.write(0x14, &[ready], 0), Action::None, "once");
        assert_eq!(config.write(0x14, &[0], 0), Action::Reset);
        assert_eq!((config.status, config.features()), (0, 0));
    }

    #[test]
    fn an_enabled_queue_cannot_be_moved() {
        let mut config = config();
        config.write(0x20, &0x1000_u32.to_le_bytes(), 3);
        config.write(0x1a, &2_u16.to_le_bytes(), 3);
        config.write(0x1c, &1_u16.to_le_bytes(), 3);
        config.write(0x20, &0x2000_u32.to_le_bytes(), 3);
        assert_eq!(config.queues[0].descriptors, 0x1000);
        assert_eq!(config.queues[0].vector, 2);
    }

    #[test]
    fn a_vector_that_does_not_exist_reads_back_as_none() {
        let mut config = config();
        config.write(0x1a, &3_u16.to_le_bytes(), 3);
        let mut vector = [0; 2];
        config.read(0x1a, &mut vector);
        assert_eq!(u16::from_le_bytes(vector), NO_VECTOR);
    }

    #[test]
    fn accesses_of_any_size_and_place_do_no_harm() {
        let mut config = config();
        for select in [0_u16, 1, 2, 0xffff] {
            for offset in 0..0x100_u64 {
                for size in [0, 1, 2, 3, 4, 8] {
                    config.write(0x16, &select.to_le_bytes(), 3);
                    config.write(offset, &vec![0xff; size], 3);
                    config.read(offset, &mut vec![0; size]);
                }
            }
        }
    }

    #[test]
    fn queue_numbers_that_make_no_queue_are_seen() {
        let setup = |change: fn(&mut QueueSetup)| {
            let mut setup = QueueSetup::new(256);
            change(&mut setup);
            setup.build(false)
        };
        assert!(setup(|_| ()).is_some());
        assert!(setup(|queue| queue.size = 0).is_none());
        assert!(setup(|queue| queue.size = 3).is_none());
        assert!(setup(|queue| queue.size = 512).is_none());
        assert!(setup(|queue| queue.descriptors = 8).is_none());
        assert!(setup(|queue| queue.device = 2).is_none());
    }
}
