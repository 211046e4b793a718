use super::*;
use crate::vmm::machine::tests::machine;
use crate::vmm::virtio::{Cause, Kind, Progress, Rng};

const COMMAND: u16 = 4;
const MEMORY: u16 = 2;

/// An entropy device on a bus of its own, decoding at its first address, and the memory of its guest.
fn bus() -> (PciRoot, Arc<GuestRam>) {
    let machine = machine();
    let mut root = PciRoot::new([]).unwrap();
    let wiring = Arc::new(Wiring::new(machine.vm));
    let ram = Arc::clone(&machine.ram);
    let end = End::new().unwrap();
    let device = Transport::new(Rng::device(), &mut root, machine.ram, wiring, end).unwrap();
    root.add(Box::new(device), None).unwrap();
    root.ecam_write(ecam(COMMAND), &MEMORY.to_le_bytes());
    (root, ram)
}

/// A device of as many queues as one can have, two servers, and a way to see which of them was called.
fn many() -> (PciRoot, std::sync::mpsc::Receiver<(usize, Cause)>) {
    let machine = machine();
    let mut root = PciRoot::new([]).unwrap();
    let wiring = Arc::new(Wiring::new(machine.vm));
    let (tell, called) = std::sync::mpsc::channel();
    let servers = [0..1, 1..QUEUES]
        .map(|queues| -> Box<dyn Server> { Box::new(Teller { queues, tell: tell.clone() }) });
    let device = Device {
        kind: Kind { id: 1, class: 0x02_0000, name: "teller" },
        features: 0,
        ring_features: u64::MAX,
        queue_sizes: vec![256; QUEUES],
        config: DeviceConfig::new(&[]),
        servers: servers.into_iter().collect(),
    };
    let end = End::new().unwrap();
    let device = Transport::new(device, &mut root, machine.ram, wiring, end).unwrap();
    root.add(Box::new(device), None).unwrap();
    root.ecam_write(ecam(COMMAND), &MEMORY.to_le_bytes());
    (root, called)
}

/// Two for each of 254 pairs, and one for commands.
const QUEUES: usize = 509;

struct Teller {
    queues: std::ops::Range<usize>,
    tell: std::sync::mpsc::Sender<(usize, Cause)>,
}

impl Server for Teller {
    fn hears(&self) -> Vec<usize> {
        self.queues.clone().collect()
    }

    fn queues(&self, _features: u64) -> std::ops::Range<usize> {
        self.queues.clone()
    }

    fn serve(&mut self, cause: Cause, queues: &mut Queues) -> Progress {
        if let Cause::Queue(queue) = cause
            && queues.get(queue).is_some()
        {
            let _ = self.tell.send((self.queues.start, cause));
        }
        Progress::Done
    }
}

#[test]
fn the_last_of_many_queues_is_served_by_whom_it_belongs_to() {
    let (mut root, called) = many();
    let last = u16::try_from(QUEUES - 1).unwrap();
    root.memory_write(bar(COMMON, 0x16), &last.to_le_bytes());
    // The last vector but one is the queue's.
    root.memory_write(bar(COMMON, 0x1a), &last.to_le_bytes());
    assert_eq!(read::<2>(&mut root, bar(COMMON, 0x1a)), last.to_le_bytes());
    let entry = u64::from(last) * 16;
    root.memory_write(bar(MSIX_TABLE, entry + 8), &0x1234_u32.to_le_bytes());
    assert_eq!(read::<4>(&mut root, bar(MSIX_TABLE, entry + 8)), 0x1234_u32.to_le_bytes());
    assert_eq!(drive_selected(&mut root, 0x10_0000, 0x11_0000, 0x12_0000), 15);
    let limit = std::time::Duration::from_secs(30);
    let whose = (1, Cause::Queue(QUEUES - 1));
    assert_eq!(called.recv_timeout(limit).unwrap(), whose, "its ring may have been filled before");
    let notify = bar(NOTIFY, u64::from(last) * u64::from(NOTIFY_MULTIPLIER));
    root.memory_write(notify, &last.to_le_bytes());
    assert_eq!(called.recv_timeout(limit).unwrap(), whose);
}

/// A register of slot 1.
fn ecam(register: u16) -> u64 {
    1 << 15 | u64::from(register)
}

fn bar(part: u32, offset: u64) -> u64 {
    crate::vmm::memory::layout::HOLE + u64::from(part) + offset
}

fn read<const N: usize>(root: &mut PciRoot, at: u64) -> [u8; N] {
    let mut data = [0; N];
    root.memory_read(at, &mut data);
    data
}

/// What a driver does up to DRIVER_OK, with the rings where it says.
fn drive(root: &mut PciRoot, descriptors: u64, available: u64, used: u64) -> u8 {
    root.memory_write(bar(COMMON, 0x14), &[0]);
    drive_selected(root, descriptors, available, used)
}

/// The same, with the queue that is selected, and without a reset before.
fn drive_selected(root: &mut PciRoot, descriptors: u64, available: u64, used: u64) -> u8 {
    let mut write = |offset, data: &[u8]| root.memory_write(bar(COMMON, offset), data);
    write(0x14, &[3]);
    write(0x08, &1_u32.to_le_bytes());
    write(0x0c, &1_u32.to_le_bytes());
    write(0x14, &[11]);
    for (register, address) in [(0x20, descriptors), (0x28, available), (0x30, used)] {
        let bytes = address.to_le_bytes();
        write(register, &bytes[..4]);
        write(register + 4, &bytes[4..]);
    }
    write(0x1c, &1_u16.to_le_bytes());
    write(0x14, &[15]);
    read::<1>(root, bar(COMMON, 0x14))[0]
}

#[test]
fn a_driver_gets_what_it_asked_for() {
    use vm_memory::{Bytes as _, GuestAddress};
    let (mut root, ram) = bus();
    assert_eq!(drive(&mut root, 0x10_0000, 0x11_0000, 0x12_0000), 15);
    // One writable buffer of 64 bytes.
    ram.write_obj([0x20_0000_u64, 64 | 2 << 32], GuestAddress(0x10_0000)).unwrap();
    ram.write_obj(1_u16, GuestAddress(0x11_0002)).unwrap();
    root.memory_write(bar(NOTIFY, 0), &0_u16.to_le_bytes());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while ram.read_obj::<u16>(GuestAddress(0x12_0002)).unwrap() == 0 {
        assert!(std::time::Instant::now() < deadline, "the device does nothing");
        std::thread::yield_now();
    }
    assert_eq!(ram.read_obj::<[u32; 2]>(GuestAddress(0x12_0004)).unwrap(), [0, 64]);
    assert_ne!(ram.read_obj::<[u64; 8]>(GuestAddress(0x20_0000)).unwrap(), [0; 8]);
}

#[test]
fn rings_that_are_not_wholly_in_memory_are_refused() {
    let end: u64 = 32 << 20;
    let (mut root, _ram) = bus();
    for (descriptors, available, used) in [
        (end, 0x11_0000, 0x12_0000),
        (end - 16, 0x11_0000, 0x12_0000),
        (0x10_0000, end - 2, 0x12_0000),
        (0x10_0000, 0x11_0000, !3),
        (!15, 0x11_0000, 0x12_0000),
        (0x10_0008, 0x11_0000, 0x12_0000),
    ] {
        let status = drive(&mut root, descriptors, available, used);
        assert_eq!(status & 0x44, 0x40, "{descriptors:#x} {available:#x} {used:#x}: needs reset");
    }
    assert_eq!(drive(&mut root, 0x10_0000, 0x11_0000, 0x12_0000), 15, "a reset heals");
}

#[test]
fn a_driver_finds_the_capabilities_by_following_the_list() {
    let (mut root, _ram) = bus();
    let mut byte = [0];
    root.ecam_read(ecam(0x34), &mut byte);
    let mut found = Vec::new();
    while byte[0] != 0 {
        let at = u16::from(byte[0]);
        let mut capability = [0; 4];
        root.ecam_read(ecam(at), &mut capability);
        found.push((capability[0], if capability[0] == CAPABILITY_VENDOR { capability[3] } else { 0 }));
        byte[0] = capability[1];
    }
    assert_eq!(found, [(0x11, 0), (9, CFG_COMMON), (9, CFG_ISR), (9, CFG_DEVICE), (9, CFG_NOTIFY)]);
}

#[test]
fn a_device_follows_its_bar() {
    let (mut root, _ram) = bus();
    root.ecam_write(ecam(0x10), &0xd000_0000_u32.to_le_bytes());
    assert_eq!(read::<2>(&mut root, bar(COMMON, 0x12)), [0xff; 2], "the old place is empty");
    assert_eq!(read::<2>(&mut root, 0xd000_0012), [1, 0], "one queue at the new one");
    root.ecam_write(ecam(COMMAND), &0_u16.to_le_bytes());
    assert_eq!(read::<2>(&mut root, 0xd000_0012), [0xff; 2], "and nowhere without decoding");
}

#[test]
fn accesses_of_any_size_and_place_do_no_harm() {
    let (mut root, _ram) = bus();
    for offset in (0..u64::from(BAR_SIZE)).step_by(3).chain(0..0x80) {
        for size in [1, 2, 4, 8] {
            root.memory_read(bar(0, offset), &mut vec![0; size]);
            root.memory_write(bar(0, offset), &vec![0xff; size]);
        }
    }
    drive(&mut root, 0x10_0000, 0x11_0000, 0x12_0000);
    for offset in (0..256).rev() {
        root.ecam_write(ecam(offset), &[0xa5; 4]);
        root.ecam_read(ecam(offset), &mut [0; 8]);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn no_sequence_of_writes_breaks_a_device(
        writes in proptest::collection::vec((0..0x6000_u64, 0..4_usize, proptest::num::u64::ANY), 1..200)
    ) {
        let (mut root, _ram) = bus();
        for (offset, size, value) in writes {
            // Half of them where most registers are.
            let offset = if value & 1 == 0 { offset % 0x40 } else { offset };
            root.memory_write(bar(COMMON, offset), &value.to_le_bytes()[..1 << size]);
            read::<8>(&mut root, bar(COMMON, offset));
        }
        proptest::prop_assert_eq!(drive(&mut root, 0x10_0000, 0x11_0000, 0x12_0000), 15);
    }
}
