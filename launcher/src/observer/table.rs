//! What is known of the addresses of one NIC: a state machine without clock or socket.
//!
//! An address becomes **current** when the guest shows that it uses it. From then on the guest is asked for it now
//! and then, and at once when it shows another address of that kind; an address it stops answering for is **lost**:
//! no longer reported, but asked for a while longer, since a guest may only have been too busy. Addresses that the
//! guest may be about to use are **candidates**: asked for, not reported.
//!
//! The table has room for a fixed number of addresses: a guest that claims more harms nobody but itself.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use sightings::Sighting;

/// Most addresses known of one NIC, in any state.
pub(crate) const CAPACITY: usize = 32;
/// How often the guest is asked for what it uses.
pub(crate) const ROUND: Duration = Duration::from_secs(30);
/// How long an answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// Questions without an answer before an address is lost.
const QUESTIONS: u8 = 4;
/// Rounds in which a lost address is still asked for.
const LOST_ROUNDS: u8 = 20;
/// How long IPv4 address conflict detection may take (RFC 5227, 1.1: at most 1 + 2 x 2 + 2 s), with a margin.
/// A question within that time would look like a conflict to the guest.
const ARP_HOLD: Duration = Duration::from_secs(10);
/// How long duplicate address detection may take (RFC 4862: 1 s at random and 1 s), with a margin.
const DAD_HOLD: Duration = Duration::from_secs(3);
/// How often the guest is asked for an address it is expected to use.
const EXPECTED_EVERY: Duration = Duration::from_secs(5);

/// The addresses of one NIC.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// The one learned last comes last.
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    address: IpAddr,
    state: State,
    /// When to ask next, or to give up.
    next: Instant,
    /// Questions since the last answer.
    asked: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The guest may be about to use it.
    Candidate,
    /// The manifest lets one expect it.
    Expected,
    /// The guest uses it.
    Current,
    /// The guest used it; so many rounds are left in which it is asked.
    Lost(u8),
}

/// What is due.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// Addresses to ask the guest for.
    pub(crate) questions: Vec<IpAddr>,
    /// Whether [`Table::addresses`] changed.
    pub(crate) changed: bool,
}

impl Table {
    /// The addresses in use: IPv4 first, then global IPv6, then link-local IPv6; of each kind the latest first.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let current = self.entries.iter().rev().filter(|entry| entry.state == State::Current);
        let mut addresses: Vec<_> = current.map(|entry| entry.address).collect();
        addresses.sort_by_key(|address| Kind::of(*address));
        addresses
    }

    /// An address the manifest configures in the guest. It is asked for until the guest shows it.
    pub(crate) fn expect(&mut self, now: Instant, address: IpAddr) {
        self.add(Entry { address, state: State::Expected, next: now + EXPECTED_EVERY, asked: 0 });
    }

    /// Takes in what a frame said. True if [`Table::addresses`] changed.
    pub(crate) fn heard(&mut self, now: Instant, sighting: Sighting) -> bool {
        match sighting {
            Sighting::Uses(address) => self.uses(now, address),
            Sighting::Considers(address) => {
                let next = now + hold(address);
                match self.find(address) {
                    Some(entry) => (entry.next, entry.asked) = (next, 0),
                    None => self.add(Entry { address, state: State::Candidate, next, asked: 0 }),
                }
                false
            }
        }
    }

    /// When [`Table::due`] has something to do next.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.entries.iter().map(|entry| entry.next).min()
    }

    /// What is to be done at `now`.
    pub(crate) fn due(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        self.entries.retain_mut(|entry| entry.next > now || entry.turn(now, &mut due));
        due
    }

    fn uses(&mut self, now: Instant, address: IpAddr) -> bool {
        if let Some(entry) = self.find(address).filter(|entry| entry.state == State::Current) {
            (entry.next, entry.asked) = (now + ROUND, 0);
            return false;
        }
        let before = self.entries.len();
        self.entries.retain(|entry| entry.address != address);
        let new = before == self.entries.len();
        if new && before >= CAPACITY && !self.make_room() {
            return false;
        }
        // Perhaps it replaces another of its kind.
        for entry in &mut self.entries {
            let rival = entry.state == State::Current && Kind::of(entry.address) == Kind::of(address);
            if rival && entry.asked == 0 {
                entry.next = now;
            }
        }
        self.entries.push(Entry { address, state: State::Current, next: now + ROUND, asked: 0 });
        true
    }

    /// Drops the oldest address that nobody is told about.
    fn make_room(&mut self) -> bool {
        let dispensable = self.entries.iter().position(|entry| entry.state != State::Current);
        dispensable.map(|index| self.entries.remove(index)).is_some()
    }

    fn find(&mut self, address: IpAddr) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.address == address)
    }

    fn add(&mut self, entry: Entry) {
        if self.entries.len() < CAPACITY && self.entries.iter().all(|known| known.address != entry.address) {
            self.entries.push(entry);
        }
    }
}

impl Entry {
    /// Asks again or gives up; false if the entry is to be forgotten.
    fn turn(&mut self, now: Instant, due: &mut Due) -> bool {
        let patience = if matches!(self.state, State::Lost(_)) { 1 } else { QUESTIONS };
        if self.state == State::Expected {
            self.next = now + EXPECTED_EVERY;
        } else if self.asked < patience {
            self.asked += 1;
            self.next = now + ANSWER_WAIT;
        } else {
            self.asked = 0;
            self.next = now + ROUND;
            self.state = match self.state {
                State::Current => {
                    due.changed = true;
                    State::Lost(LOST_ROUNDS)
                }
                State::Lost(rounds) if rounds > 1 => State::Lost(rounds - 1),
                State::Lost(_) | State::Candidate | State::Expected => return false,
            };
            return true;
        }
        due.questions.push(self.address);
        true
    }
}

/// Kinds of addresses, in the order they are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    V4,
    V4LinkLocal,
    V6,
    V6LinkLocal,
}

impl Kind {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) if address.is_link_local() => Self::V4LinkLocal,
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(address) if address.is_unicast_link_local() => Self::V6LinkLocal,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

fn hold(address: IpAddr) -> Duration {
    if address.is_ipv4() { ARP_HOLD } else { DAD_HOLD }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
