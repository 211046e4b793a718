//! Over which of a guest's receive queues the frames of one source queue are spread.
//!
//! With n source queues and m of the guest's, frames of source queue q go to queue q modulo m where m is not more than n, and
//! to queues q, q + n, q + 2n, … where it is: each flow to one of them, so frames of a flow stay in order. TCP's flows are
//! told apart by addresses and ports, other IP by addresses alone: a fragment has no ports, and must not be
//! overtaken by what follows its datagram. All else is one flow.
//!
//! Only a guest's frames are spread: it is the guest's CPUs that then share the work. A NIC's queues and a tap are all
//! served by this one.

use crate::memory::{Readable, read_front};
use crate::offload::{field, network_at};

/// Bytes in front of a frame in which addresses and ports are: Ethernet with two tags, IPv4 with all options.
const HEAD: usize = 14 + 8 + 60 + 4;
const PROTOCOL_TCP: u8 = 6;

/// The queues that one source queue feeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spread {
    first: usize,
    step: usize,
    choices: usize,
}

impl Spread {
    /// Of source queue `queue`, of `sources`, over `sinks`; `None` if all its frames go to one.
    #[inline]
    pub(super) fn new(queue: usize, sources: usize, sinks: usize) -> Option<Self> {
        if sinks <= sources || sources == 0 {
            return None;
        }
        let first = queue % sources;
        let choices = (sinks - first).div_ceil(sources);
        (choices > 1).then_some(Self { first, step: sources, choices })
    }

    /// The queue for a frame.
    pub(super) fn queue_for(&self, pieces: &[Readable<'_>]) -> usize {
        let mut head = [0; HEAD];
        let hash = flow(read_front(pieces, &mut head)).unwrap_or(0);
        // The upper bits of a product depend on all bits of its factors.
        let choice = ((hash >> 32) * self.choices as u64) >> 32;
        self.first + self.step * usize::try_from(choice).unwrap_or(0)
    }
}

/// A number that is the same for all frames of a flow; `None` if it is not IP, or cut short.
fn flow(frame: &[u8]) -> Option<u64> {
    let (at, ethertype) = network_at(frame)?;
    let (mut hash, protocol, ports_at) = match ethertype {
        0x0800 => {
            let hash = mix(0, u64::from_ne_bytes(field(frame, at + 12)?));
            let whole = u16::from_be_bytes(field(frame, at + 6)?) & 0x3fff == 0;
            let protocol = frame.get(at + 9).filter(|_| whole);
            (hash, protocol, at + usize::from(*frame.get(at)? & 0x0f) * 4)
        }
        0x86dd => {
            let addresses: [u8; 32] = field(frame, at + 8)?;
            let words = addresses.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word));
            (words.fold(0, mix), frame.get(at + 6), at + 40)
        }
        _ => return None,
    };
    if protocol == Some(&PROTOCOL_TCP)
        && let Some(ports) = field(frame, ports_at)
    {
        hash = mix(hash, u32::from_ne_bytes(ports).into());
    }
    Some(hash)
}

/// Adds a word to a hash.
fn mix(hash: u64, word: u64) -> u64 {
    // An odd number without a pattern: 2^64 divided by the golden ratio.
    (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// A frame from a port of 192.0.2.`host`, by TCP or UDP.
    fn frame(protocol: u8, host: u8, port: u16, fragment: u16) -> Vec<u8> {
        let mut bytes =
            [[2, 0, 0, 0, 0, 1].as_slice(), &[2, 0, 0, 0, 0, 2], &[8, 0, 0x45, 0, 0, 40, 0, 0]].concat();
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, protocol, 0, 0, 192, 0, 2, host, 198, 51, 100, 1]);
        bytes.extend(port.to_be_bytes());
        bytes.resize(60, 0);
        bytes
    }

    fn queue(spread: Spread, bytes: &[u8]) -> usize {
        spread.queue_for(&[Readable::own(bytes)])
    }

    #[test]
    fn each_of_the_guests_queues_is_fed_by_one_source_queue() {
        for (sources, sinks) in [(1, 2), (1, 64), (2, 3), (2, 4), (3, 7), (5, 6)] {
            let mut fed = BTreeMap::new();
            for source in 0..sources {
                let Some(spread) = Spread::new(source, sources, sinks) else {
                    assert!(fed.insert(source, source).is_none());
                    continue;
                };
                let reached: BTreeSet<_> =
                    (0..4000).map(|port| queue(spread, &frame(6, 1, port, 0))).collect();
                reached.into_iter().for_each(|sink| assert_eq!(fed.insert(sink, source), None));
            }
            assert_eq!(fed.into_keys().collect::<Vec<_>>(), (0..sinks).collect::<Vec<_>>());
        }
        assert_eq!(Spread::new(0, 1, 1), None);
        assert_eq!(Spread::new(0, 4, 2), None);
        assert_eq!(Spread::new(0, 0, 2), None);
    }

    #[test]
    fn what_may_be_one_flow_goes_to_one_queue() {
        let spread = Spread::new(0, 1, 64).unwrap();
        let queues = |frames: Vec<Vec<u8>>| {
            frames.iter().map(|bytes| queue(spread, bytes)).collect::<BTreeSet<_>>().len()
        };
        // A datagram, its fragments, and the next from another port: what has no ports cannot be told apart.
        assert_eq!(queues(vec![frame(17, 1, 7, 0), frame(17, 1, 7, 0x2000), frame(17, 1, 8, 9)]), 1);
        assert_eq!(queues(vec![frame(6, 1, 7, 0x2000), frame(6, 1, 0xabcd, 185)]), 1);
        assert_eq!(queues(vec![[2; 13].to_vec(), vec![0; 60], frame(6, 1, 7, 0)[..33].to_vec()]), 1);
        assert!(queues((0..200).map(|host| frame(17, host, 7, 0)).collect()) > 32);
        assert!(queues((0..200).map(|port| frame(6, 1, port, 0)).collect()) > 32);
        // A tag in front changes nothing, nor do pieces.
        let bytes = frame(6, 1, 7, 0);
        let tagged = [&bytes[..12], &[0x81, 0, 0, 5], &bytes[12..]].concat();
        let (front, back) = bytes.split_at(20);
        let in_pieces = spread.queue_for(&[Readable::own(front), Readable::own(back)]);
        assert_eq!((queue(spread, &tagged), in_pieces), (queue(spread, &bytes), queue(spread, &bytes)));
    }

    #[test]
    fn ipv6_flows_are_told_apart() {
        let spread = Spread::new(0, 1, 64).unwrap();
        let frame = |host: u8, port: u8| {
            let mut bytes = [[2; 12].as_slice(), &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]].concat();
            bytes.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
            bytes.extend([[0x20; 16].as_slice(), &[port; 20]].concat());
            queue(spread, &bytes)
        };
        assert!((0..200).map(|port| frame(1, port)).collect::<BTreeSet<_>>().len() > 32);
        assert!((0..200).map(|host| frame(host, 1)).collect::<BTreeSet<_>>().len() > 32);
    }
}
