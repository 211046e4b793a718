use crate::vmm::virtio::ring::{AVAILABLE, BUFFERS, Driver, END, nonsense, readable, writable};
use crate::vmm::virtio::segments::{BadBuffer, Direction, Segments};

#[test]
fn both_halves_of_a_chain_are_seen_in_order() {
    let (mut driver, mut queue) = Driver::new();
    driver.write(BUFFERS, b"abcdef");
    let chain = [
        readable(BUFFERS, 2),
        readable(BUFFERS + 4, 2),
        writable(BUFFERS + 16, 3),
        writable(BUFFERS + 32, 3),
    ];
    let head = driver.offer(&chain);
    let (mut from, mut to) = (Segments::default(), Segments::default());
    let popped = queue.pop_both(&mut from, &mut to).unwrap();
    let mut read = [0; 4];
    from.read(queue.ram(), 0, &mut read).unwrap();
    assert_eq!(&read, b"abef");
    to.write(queue.ram(), 1, b"12345").unwrap();
    assert_eq!(
        (driver.read(BUFFERS + 16, 3), driver.read(BUFFERS + 32, 3)),
        (b"\x0012".to_vec(), b"345".to_vec())
    );
    queue.push(popped, 6);
    assert_eq!(driver.used(), [(head.into(), 6)]);
}

#[test]
fn a_run_that_is_too_short_or_outside_is_an_error() {
    let (mut driver, mut queue) = Driver::new();
    driver.offer(&[readable(BUFFERS, 4), readable(END - 2, 4)]);
    let mut segments = Segments::default();
    queue.pop(Direction::Readable, &mut segments).unwrap();
    assert_eq!(segments.length(), 8);
    assert_eq!(segments.read(queue.ram(), 0, &mut [0; 6]), Ok(()));
    assert_eq!(segments.read(queue.ram(), 0, &mut [0; 7]), Err(BadBuffer), "beyond memory");
    assert_eq!(segments.read(queue.ram(), 3, &mut [0; 6]), Err(BadBuffer), "beyond the chain");
    assert_eq!(segments.read(queue.ram(), usize::MAX, &mut [0; 1]), Err(BadBuffer));
}

#[test]
fn a_chain_given_back_is_found_again() {
    let (mut driver, mut queue) = Driver::new();
    let heads = [driver.offer(&[writable(BUFFERS, 4)]), driver.offer(&[writable(BUFFERS, 8)])];
    let mut segments = Segments::default();
    let first = queue.pop(Direction::Writable, &mut segments).unwrap();
    queue.pop(Direction::Writable, &mut segments).unwrap();
    queue.unpop(2);
    segments.clear();
    assert_eq!(queue.pop(Direction::Writable, &mut segments), Some(first));
    queue.push(first, 0);
    assert_eq!(driver.used(), [(heads[0].into(), 0)]);
}

#[test]
fn a_ring_of_nonsense_ends_and_takes_nothing_with_it() {
    for (name, write) in nonsense() {
        let (mut driver, mut queue) = Driver::new();
        write(&mut driver);
        let mut segments = Segments::default();
        // Bounded by what a ring can hold, whatever its index claims.
        for _ in 0..100 {
            segments.clear();
            let Some(head) = queue.pop(Direction::Writable, &mut segments) else { break };
            queue.push(head, segments.length());
        }
        assert_eq!(queue.pop(Direction::Writable, &mut segments), None, "{name}");
        queue.flush();
    }
}

#[test]
fn a_broken_ring_stays_alone_until_a_reset() {
    let (mut driver, mut queue) = Driver::new();
    driver.set_available(0x8000);
    let mut segments = Segments::default();
    assert_eq!(queue.pop(Direction::Writable, &mut segments), None);
    driver.write(AVAILABLE + 2, &0_u16.to_le_bytes());
    driver.offer(&[writable(BUFFERS, 4)]);
    assert_eq!(queue.pop(Direction::Writable, &mut segments), None);
    assert!(!queue.wait());
}
