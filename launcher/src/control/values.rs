//! The numbers and names of a configuration, each a type that cannot be out of range.

use serde::{Deserialize, Serialize};

/// Why a value of a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Too few or too many CPUs.
    #[error("{0} vCPUs are not supported; 1 to {max} are", max = VcpuCount::MAX)]
    Vcpus(u8),
    /// Too little, too much, or a broken page.
    #[error("a memory size of {0} bytes is not supported; whole pages of 4 KiB from 32 MiB to 1 TiB are")]
    Memory(u64),
    /// Outside of what IPv4 allows and Ethernet can name.
    #[error("an MTU of {0} is not supported; 68 to 65535 are")]
    Mtu(u16),
    /// Not on the guest's bus.
    #[error("PCI slot {0} is not supported; 1 to {max} are", max = PciSlot::MAX)]
    PciSlot(u8),
    /// None, or more than a guest has use for.
    #[error("{0} queue pairs are not supported; 1 to {max} are", max = QueuePairs::MAX)]
    QueuePairs(u16),
    /// Too long, or not printable.
    #[error("{0:?} is no serial number of a disk; up to 20 printable ASCII characters are allowed")]
    DiskSerial(String),
}

/// How many CPUs a guest has: 1 to [`VcpuCount::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct VcpuCount(u8);

impl VcpuCount {
    /// The most CPUs: what 8-bit APIC identifiers can name, less the broadcast and the IOAPIC.
    pub const MAX: u8 = 254;
}

impl TryFrom<u8> for VcpuCount {
    type Error = ValueError;

    fn try_from(count: u8) -> Result<Self, ValueError> {
        if (1..=Self::MAX).contains(&count) { Ok(Self(count)) } else { Err(ValueError::Vcpus(count)) }
    }
}

/// KubeVirt's measure for a NIC of a guest with this many CPUs.
impl From<VcpuCount> for QueuePairs {
    fn from(vcpus: VcpuCount) -> Self {
        Self(vcpus.0.into())
    }
}

impl From<VcpuCount> for u8 {
    fn from(count: VcpuCount) -> Self {
        count.0
    }
}

/// How much memory a guest has, in bytes: whole pages of 4 KiB, from 32 MiB to 1 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct MemorySize(u64);

impl MemorySize {
    const PAGE: u64 = 4096;
    const MIN: u64 = 32 << 20;
    const MAX: u64 = 1 << 40;
}

impl TryFrom<u64> for MemorySize {
    type Error = ValueError;

    fn try_from(bytes: u64) -> Result<Self, ValueError> {
        if (Self::MIN..=Self::MAX).contains(&bytes) && bytes.is_multiple_of(Self::PAGE) {
            Ok(Self(bytes))
        } else {
            Err(ValueError::Memory(bytes))
        }
    }
}

impl From<MemorySize> for u64 {
    fn from(size: MemorySize) -> Self {
        size.0
    }
}

/// The largest packet of a NIC, in bytes without the Ethernet header: 68 (RFC 791) to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Mtu(u16);

impl TryFrom<u16> for Mtu {
    type Error = ValueError;

    fn try_from(bytes: u16) -> Result<Self, ValueError> {
        if bytes >= 68 { Ok(Self(bytes)) } else { Err(ValueError::Mtu(bytes)) }
    }
}

impl From<Mtu> for u16 {
    fn from(mtu: Mtu) -> Self {
        mtu.0
    }
}

/// How many queue pairs a NIC has: 1 to [`QueuePairs::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct QueuePairs(u16);

/// One, as a NIC has unless more are asked for.
impl Default for QueuePairs {
    fn default() -> Self {
        Self::ONE
    }
}

impl QueuePairs {
    /// One.
    pub const ONE: Self = Self(1);
    /// The most: what a tap has queues (MAX_TAP_QUEUES in the kernel's `tun.c`).
    pub const MAX: u16 = 256;

    /// As a number of things in memory.
    pub fn count(self) -> usize {
        self.0.into()
    }
}

impl TryFrom<u16> for QueuePairs {
    type Error = ValueError;

    fn try_from(pairs: u16) -> Result<Self, ValueError> {
        if (1..=Self::MAX).contains(&pairs) { Ok(Self(pairs)) } else { Err(ValueError::QueuePairs(pairs)) }
    }
}

impl From<QueuePairs> for u16 {
    fn from(pairs: QueuePairs) -> Self {
        pairs.0
    }
}

/// Where a device is on the guest's PCI bus: 1 to [`PciSlot::MAX`]. Slot 0 has the host bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct PciSlot(u8);

impl PciSlot {
    /// The last slot of a bus.
    pub const MAX: u8 = 31;

    /// As an index into a bus.
    pub fn index(self) -> usize {
        self.0.into()
    }
}

impl TryFrom<u8> for PciSlot {
    type Error = ValueError;

    fn try_from(slot: u8) -> Result<Self, ValueError> {
        if (1..=Self::MAX).contains(&slot) { Ok(Self(slot)) } else { Err(ValueError::PciSlot(slot)) }
    }
}

impl From<PciSlot> for u8 {
    fn from(slot: PciSlot) -> Self {
        slot.0
    }
}

impl std::fmt::Display for PciSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A disk's serial number: up to 20 printable ASCII characters (VIRTIO_BLK_ID_BYTES, virtio 1.2, 5.2.6).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskSerial(String);

impl DiskSerial {
    /// The most characters.
    pub const MAX: usize = 20;

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for DiskSerial {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        if text.len() <= Self::MAX && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            Ok(Self(text))
        } else {
            Err(ValueError::DiskSerial(text))
        }
    }
}

impl From<DiskSerial> for String {
    fn from(serial: DiskSerial) -> Self {
        serial.0
    }
}
