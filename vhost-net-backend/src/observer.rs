//! Which addresses guests use, seen in the frames they send.
//!
//! A [`Sentinel`] looks at one end's frames in its worker, and reports ARP and neighbour discovery to the daemon's one
//! [`Observer`] thread, which keeps the book. Nothing is asked of the guest and nothing is taken from a manifest; what a
//! guest sends is checked as far as a frame can be (`sightings`), and a guest that claims many addresses is cut short.
//!
//! Deliberately absent: answers on the way to the guest (DHCP), and asking whether an address is still used. The time
//! at which each was last seen is told instead.

#![expect(
    clippy::disallowed_types,
    reason = "the book is the observer thread's; a sentinel only sends to it"
)]

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use net_types::Mac;
use sightings::Sighting;

use crate::frame::Batch;
use crate::memory::{Readable, read_front};

/// The most addresses remembered of one end; the one seen longest ago makes room.
const MOST: usize = 32;
/// The same address is reported so often at most.
const AGAIN: Duration = Duration::from_secs(1);
/// Reports on their way to the observer.
const QUEUE: usize = 256;
/// The longest frame of interest: Ethernet, IPv6, neighbour advertisement.
const FRONT: usize = 14 + 40 + 24;
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;

/// An end of a link, by numbers that are not used again.
pub type EndId = (u64, usize);

/// An address that an end has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// The address.
    pub address: IpAddr,
    /// Whose it is.
    pub mac: Mac,
    /// When it was last seen, to a second.
    pub seen: SystemTime,
}

type Book = Arc<Mutex<HashMap<EndId, Vec<Observed>>>>;
type Report = (EndId, Mac, IpAddr);

/// Keeps the book; its thread ends when the observer and all sentinels are gone.
#[derive(Debug)]
pub struct Observer {
    reports: SyncSender<Report>,
    book: Book,
}

/// Looks at the frames from one end.
#[derive(Debug)]
pub struct Sentinel {
    end: EndId,
    reports: SyncSender<Report>,
    last: Option<(IpAddr, Instant)>,
    /// When the first was reported of those that count together, and how many.
    recent: Option<(Instant, usize)>,
}

impl Observer {
    /// Starts one.
    ///
    /// # Errors
    /// What starting a thread says.
    pub fn start() -> std::io::Result<Self> {
        let (reports, inbox) = sync_channel(QUEUE);
        let book = Book::default();
        let kept = Arc::clone(&book);
        std::thread::Builder::new().name("observer".to_owned()).spawn(move || keep(&inbox, &kept))?;
        Ok(Self { reports, book })
    }

    /// A sentinel for an end.
    pub fn sentinel(&self, end: EndId) -> Sentinel {
        lock(&self.book).insert(end, Vec::new());
        Sentinel::new(end, self.reports.clone())
    }

    /// What an end has shown, the latest first.
    pub fn addresses(&self, end: EndId) -> Vec<Observed> {
        let mut addresses = lock(&self.book).get(&end).cloned().unwrap_or_default();
        addresses.sort_by_key(|observed| std::cmp::Reverse(observed.seen));
        addresses
    }

    /// An end is gone.
    pub fn forget(&self, end: EndId) {
        lock(&self.book).remove(&end);
    }
}

fn lock(book: &Book) -> MutexGuard<'_, HashMap<EndId, Vec<Observed>>> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep(inbox: &Receiver<Report>, book: &Book) {
    for (end, mac, address) in inbox {
        if let Some(known) = lock(book).get_mut(&end) {
            note(known, Observed { address, mac, seen: SystemTime::now() });
        }
    }
}

fn note(known: &mut Vec<Observed>, new: Observed) {
    let same = known.iter().position(|old| (old.address, old.mac) == (new.address, new.mac));
    let oldest =
        || (known.len() >= MOST).then(|| (0..known.len()).min_by_key(|at| known[*at].seen)).flatten();
    match same.or_else(oldest) {
        Some(place) => known[place] = new,
        None => known.push(new),
    }
}

impl Sentinel {
    fn new(end: EndId, reports: SyncSender<Report>) -> Self {
        Self { end, reports, last: None, recent: None }
    }

    /// Looks at the first `taken` frames of a batch.
    #[inline]
    pub(crate) fn look(&mut self, batch: &Batch<'_>, taken: usize) {
        for (_, pieces) in batch.iter().take(taken) {
            let mut front = [0; 21];
            let front = read_front(pieces, &mut front);
            let interesting = match front.get(12..14) {
                Some(kind) if kind == ARP => true,
                Some(kind) if kind == IPV6 => front.get(20) == Some(&ICMPV6),
                _ => false,
            };
            if interesting {
                self.report(pieces);
            }
        }
    }

    #[cold]
    fn report(&mut self, pieces: &[Readable<'_>]) {
        let mut front = [0; FRONT];
        let front = read_front(pieces, &mut front);
        let Some(mac) = front.get(6..12).and_then(|mac| mac.try_into().ok()).map(Mac) else { return };
        let Some(Sighting::Uses(address)) = sightings::from_guest(front, mac) else { return };
        let now = Instant::now();
        if self.last.is_some_and(|(last, when)| last == address && now - when < AGAIN) {
            return;
        }
        // All ends report by one queue: a guest that claims more addresses than are remembered must not fill it.
        let (since, count) = self.recent.filter(|(since, _)| now - *since < AGAIN).unwrap_or((now, 0));
        // A full queue loses a report of many; the guest will show its address again.
        if count < MOST && mac.is_unicast() && self.reports.try_send((self.end, mac, address)).is_ok() {
            self.last = Some((address, now));
            self.recent = Some((since, count + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Header, Offloads};

    fn arp(mac: u8, address: [u8; 4]) -> Vec<u8> {
        let own = [2, 0, 0, 0, 0, mac];
        let ethernet = [[0xff; 6].as_slice(), &own, &ARP].concat();
        [&ethernet, [0, 1, 8, 0, 6, 4, 0, 1].as_slice(), &own, &address, &[0; 6], &[192, 0, 2, 99]].concat()
    }

    fn show(sentinel: &mut Sentinel, bytes: &[u8], taken: usize) {
        let mut batch = Batch::new();
        // Cut where it hurts most.
        let (front, rest) = bytes.split_at(13);
        let length = u32::try_from(bytes.len()).unwrap();
        batch
            .push(Header::NONE, Offloads::NONE, length, &[Readable::own(front), Readable::own(rest)])
            .unwrap();
        sentinel.look(&batch, taken);
    }

    fn addresses(observer: &Observer, wanted: usize) -> Vec<String> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let known = observer.addresses((1, 0));
            if known.len() >= wanted || Instant::now() > end {
                return known
                    .iter()
                    .map(|observed| format!("{} {}", observed.mac, observed.address))
                    .collect();
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_a_guest_shows_is_noted_and_what_it_did_not_send_is_not() {
        let observer = Observer::start().unwrap();
        let mut sentinel = observer.sentinel((1, 0));
        show(&mut sentinel, &arp(7, [192, 0, 2, 8]), 0);
        show(&mut sentinel, &arp(7, [192, 0, 2, 7]), 1);
        assert_eq!(addresses(&observer, 1), ["02:00:00:00:00:07 192.0.2.7"]);
        observer.forget((1, 0));
        assert!(observer.addresses((1, 0)).is_empty());
    }

    #[test]
    fn a_guest_that_claims_addresses_without_end_leaves_room_for_others_reports() {
        let (reports, inbox) = sync_channel(QUEUE);
        let [mut hostile, mut other] = [1, 2].map(|link| Sentinel::new((link, 0), reports.clone()));
        for last in 0..4 * QUEUE {
            show(&mut hostile, &arp(7, [192, 0, 2, 1 + last.to_le_bytes()[0] % 2]), 1);
        }
        show(&mut other, &arp(8, [192, 0, 2, 8]), 1);
        let ends: Vec<_> = inbox.try_iter().map(|(end, ..)| end).collect();
        assert_eq!((ends.len(), ends.last()), (MOST + 1, Some(&(2, 0))));
    }

    #[test]
    fn a_guest_that_claims_many_addresses_is_cut_short() {
        let observer = Observer::start().unwrap();
        let mut sentinel = observer.sentinel((1, 0));
        for last in 1..=100 {
            show(&mut sentinel, &arp(7, [192, 0, 2, last]), 1);
        }
        assert_eq!(addresses(&observer, MOST).len(), MOST);
        assert!(lock(&observer.book).get(&(1, 0)).unwrap().len() <= MOST);
    }

    #[test]
    fn an_address_that_shows_again_replaces_itself_and_a_new_one_the_oldest_of_many() {
        let seen = |number: u8, seconds: u64| Observed {
            address: IpAddr::from([192, 0, 2, number]),
            mac: Mac([2, 0, 0, 0, 0, number]),
            seen: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        };
        let mut known = Vec::new();
        (1..=3).for_each(|number| note(&mut known, seen(number, 10)));
        note(&mut known, seen(2, 20));
        assert_eq!(known, [seen(1, 10), seen(2, 20), seen(3, 10)]);
        // The same address with another MAC address is another's.
        note(&mut known, Observed { mac: Mac([2, 0, 0, 0, 0, 9]), ..seen(1, 30) });
        assert_eq!(known.len(), 4);
        (4..100).for_each(|number| note(&mut known, seen(number, 40)));
        assert_eq!(known.len(), MOST);
        assert!(!known.contains(&seen(1, 10)) && known.contains(&seen(99, 40)));
    }
}
