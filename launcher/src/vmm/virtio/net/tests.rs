use std::collections::VecDeque;
use std::io::{self, Read, Write};

use super::*;
use crate::vmm::virtio::queue::VirtQueue;
use crate::vmm::virtio::ring::{BUFFERS, Driver, END, nonsense, readable, writable};

/// A tap's end: frames to read, frames written, and whether it takes any.
#[derive(Default)]
struct Wire {
    coming: VecDeque<Vec<u8>>,
    gone: Vec<Vec<u8>>,
    full: bool,
}

impl Read for &mut Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let frame = self.coming.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        buffer[..frame.len()].copy_from_slice(&frame);
        Ok(frame.len())
    }
}

impl Write for &mut Wire {
    fn write(&mut self, frame: &[u8]) -> io::Result<usize> {
        if self.full {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if frame.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.gone.push(frame.to_vec());
        Ok(frame.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A frame of `length` bytes with its header.
fn frame(length: usize) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend((0..length).map(|byte| u8::try_from(byte % 251).unwrap()));
    frame
}

fn receiver(mergeable: bool) -> (Driver, VirtQueue, Receive, Wire) {
    let (driver, queue) = Driver::new();
    let mut receive = Receive::new();
    receive.activate(mergeable);
    (driver, queue, receive, Wire::default())
}

#[test]
fn a_frame_is_spread_over_as_many_buffers_as_it_needs() {
    let (mut driver, mut queue, mut receive, mut wire) = receiver(true);
    let heads = [0, 1, 2].map(|n| u32::from(driver.offer(&[writable(BUFFERS + n * 0x1000, 100)])));
    wire.coming.push_back(frame(150));
    assert_eq!(receive.serve(&mut wire, &mut queue), Progress::Done);
    assert_eq!(driver.used(), [(heads[0], 100), (heads[1], 62)]);
    let mut expected = frame(150);
    expected[10] = 2;
    assert_eq!([driver.read(BUFFERS, 100), driver.read(BUFFERS + 0x1000, 62)].concat(), expected);
}

#[test]
fn a_frame_waits_for_the_buffers_it_needs() {
    let (mut driver, mut queue, mut receive, mut wire) = receiver(true);
    driver.offer(&[writable(BUFFERS, 100)]);
    wire.coming.push_back(frame(150));
    assert_eq!(receive.serve(&mut wire, &mut queue), Progress::Done);
    assert_eq!(driver.used(), []);
    driver.offer(&[writable(BUFFERS + 0x1000, 100)]);
    receive.serve(&mut wire, &mut queue);
    assert_eq!(driver.used().iter().map(|used| used.1).collect::<Vec<_>>(), [100, 62]);
}

#[test]
fn nothing_is_read_for_a_guest_without_buffers() {
    let (_driver, mut queue, mut receive, mut wire) = receiver(true);
    wire.coming.push_back(frame(60));
    assert_eq!(receive.serve(&mut wire, &mut queue), Progress::Done);
    assert_eq!(wire.coming.len(), 1);
}

#[test]
fn without_merging_a_frame_that_is_too_long_is_lost_and_its_buffer_is_not() {
    let (mut driver, mut queue, mut receive, mut wire) = receiver(false);
    let heads = [0, 1].map(|n| u32::from(driver.offer(&[writable(BUFFERS + n * 0x1000, 100)])));
    wire.coming.extend([frame(150), frame(80)]);
    receive.serve(&mut wire, &mut queue);
    assert_eq!(driver.used(), [(heads[0], 0), (heads[1], 92)]);
    assert_eq!(driver.read(BUFFERS + 0x1000 + 10, 2), [1, 0], "num_buffers is 1");
}

#[test]
fn a_flood_is_served_in_turns() {
    let (mut driver, mut queue, mut receive, mut wire) = receiver(true);
    wire.coming.extend(std::iter::repeat_n(frame(60), 200));
    let mut received = 0;
    for _ in 0..200 {
        driver.offer(&[writable(BUFFERS, 1500)]);
        receive.serve(&mut wire, &mut queue);
        received += driver.used().len();
    }
    assert_eq!((received, wire.coming.len()), (200, 0));
}

#[test]
fn a_frame_of_the_guests_goes_out_as_it_is() {
    let (mut driver, mut queue) = Driver::new();
    let (mut transmit, mut wire) = (Transmit::new(), Wire::default());
    let sent = frame(100);
    driver.write(BUFFERS, &sent);
    let head = driver.offer(&[readable(BUFFERS, 12), readable(BUFFERS + 12, 100)]);
    assert_eq!(transmit.serve(&mut wire, &mut queue), Progress::Done);
    assert_eq!((wire.gone, driver.used()), (vec![sent], vec![(head.into(), 0)]));
}

#[test]
fn a_full_tap_holds_the_guest_back_and_loses_nothing() {
    let (mut driver, mut queue) = Driver::new();
    let (mut transmit, mut wire) = (Transmit::new(), Wire { full: true, ..Wire::default() });
    for length in [60, 70] {
        driver.write(BUFFERS + length * 16, &frame(usize::try_from(length).unwrap()));
        driver.offer(&[readable(BUFFERS + length * 16, u32::try_from(length).unwrap() + 12)]);
    }
    assert_eq!(transmit.serve(&mut wire, &mut queue), Progress::Done);
    assert_eq!((wire.gone.len(), driver.used().len()), (0, 0));
    wire.full = false;
    transmit.serve(&mut wire, &mut queue);
    assert_eq!((wire.gone, driver.used().len()), (vec![frame(60), frame(70)], 2));
}

#[test]
fn what_is_no_frame_is_dropped_and_handed_back() {
    let (mut driver, mut queue) = Driver::new();
    let (mut transmit, mut wire) = (Transmit::new(), Wire::default());
    driver.offer(&[readable(BUFFERS, 1 << 20)]);
    driver.offer(&[readable(END - 10, 100)]);
    driver.offer(&[writable(BUFFERS, 100)]);
    transmit.serve(&mut wire, &mut queue);
    assert_eq!((wire.gone.len(), driver.used().len()), (0, 3));
}

#[test]
fn nonsense_does_no_harm_in_either_direction() {
    for (_name, write) in nonsense() {
        let (mut driver, mut queue, mut receive, mut wire) = receiver(true);
        write(&mut driver);
        wire.coming.extend([frame(60), frame(1000)]);
        for _ in 0..10 {
            receive.serve(&mut wire, &mut queue);
        }

        let (mut driver, mut queue) = Driver::new();
        let (mut transmit, mut wire) = (Transmit::new(), Wire::default());
        write(&mut driver);
        for _ in 0..10 {
            transmit.serve(&mut wire, &mut queue);
        }
    }
}

#[test]
fn offloads_follow_what_both_sides_agreed_on() {
    let all = offered(true);
    assert_eq!(offloads(all), Offloads { checksum: true, tso4: true, tso6: true, uso: true });
    let without_checksum = all & !(1 << VIRTIO_NET_F_GUEST_CSUM);
    assert_eq!(offloads(without_checksum), Offloads::default());
    assert!(!offloads(all & !(1 << VIRTIO_NET_F_GUEST_USO6)).uso);
}
