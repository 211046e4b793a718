use super::*;

/// A table with a clock that a test moves.
struct Clocked {
    table: Table,
    now: Instant,
}

impl Clocked {
    fn new() -> Self {
        Self { table: Table::default(), now: Instant::now() }
    }

    fn uses(&mut self, address: &str) -> bool {
        self.table.heard(self.now, Sighting::Uses(ip(address)))
    }

    fn considers(&mut self, address: &str) {
        assert!(!self.table.heard(self.now, Sighting::Considers(ip(address))));
    }

    fn addresses(&self) -> Vec<String> {
        self.table.addresses().iter().map(IpAddr::to_string).collect()
    }

    /// Lets time pass; the guest answers for `answering` only. Returns what it was asked for.
    fn pass(&mut self, time: Duration, answering: &[&str]) -> Vec<IpAddr> {
        let end = self.now + time;
        let mut asked = Vec::new();
        while let Some(deadline) = self.table.deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            for question in self.table.due(self.now).questions {
                asked.push(question);
                if answering.contains(&question.to_string().as_str()) {
                    self.table.heard(self.now, Sighting::Uses(question));
                }
            }
        }
        self.now = end;
        asked
    }
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn addresses_are_reported_v4_first_link_local_last_and_the_latest_of_a_kind_first() {
    let mut guest = Clocked::new();
    for address in ["fe80::1", "fd00::1", "10.0.0.1", "169.254.1.1", "10.0.0.2"] {
        assert!(guest.uses(address));
        assert!(!guest.uses(address));
    }
    assert_eq!(guest.addresses(), ["10.0.0.2", "10.0.0.1", "169.254.1.1", "fd00::1", "fe80::1"]);
}

#[test]
fn a_replaced_address_leaves_within_seconds() {
    let mut guest = Clocked::new();
    guest.uses("10.0.0.1");
    guest.uses("fd00::1");
    guest.pass(Duration::from_secs(5), &["10.0.0.1", "fd00::1"]);
    guest.uses("10.0.0.2");
    guest.pass(Duration::from_secs(5), &["10.0.0.2", "fd00::1"]);
    assert_eq!(guest.addresses(), ["10.0.0.2", "fd00::1"]);
}

#[test]
fn a_second_address_joins_the_first_as_long_as_the_guest_answers_for_both() {
    let mut guest = Clocked::new();
    guest.uses("10.0.0.1");
    guest.uses("10.0.0.2");
    let asked = guest.pass(10 * MINUTE, &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(guest.addresses(), ["10.0.0.2", "10.0.0.1"]);
    assert!(asked.len() <= 2 * 21, "{} questions", asked.len());
}

#[test]
fn a_silent_address_is_lost_and_comes_back_when_the_guest_answers_again() {
    let mut guest = Clocked::new();
    guest.uses("10.0.0.1");
    guest.pass(MINUTE, &[]);
    assert_eq!(guest.addresses(), [] as [&str; 0]);
    guest.pass(MINUTE, &["10.0.0.1"]);
    assert_eq!(guest.addresses(), ["10.0.0.1"]);
}

#[test]
fn a_lost_address_is_forgotten_in_the_end() {
    let mut guest = Clocked::new();
    guest.uses("10.0.0.1");
    guest.pass(30 * MINUTE, &[]);
    assert_eq!(guest.table.deadline(), None);
}

#[test]
fn an_address_the_guest_is_about_to_use_is_not_asked_for_too_early() {
    let mut guest = Clocked::new();
    guest.considers("10.0.0.1");
    assert_eq!(guest.pass(Duration::from_secs(9), &[]), [] as [IpAddr; 0]);
    assert_eq!(guest.addresses(), [] as [&str; 0]);
    guest.pass(Duration::from_secs(2), &["10.0.0.1"]);
    assert_eq!(guest.addresses(), ["10.0.0.1"]);
}

#[test]
fn a_candidate_nobody_answers_for_is_forgotten() {
    let mut guest = Clocked::new();
    guest.considers("fd00::1");
    assert!(!guest.pass(MINUTE, &[]).is_empty());
    assert_eq!(guest.table.deadline(), None);
}

#[test]
fn an_expected_address_is_asked_for_until_the_guest_shows_it() {
    let mut guest = Clocked::new();
    guest.table.expect(guest.now, ip("10.0.0.1"));
    assert!(guest.pass(10 * MINUTE, &[]).len() > 60);
    assert_eq!(guest.addresses(), [] as [&str; 0]);
    guest.pass(Duration::from_secs(6), &["10.0.0.1"]);
    assert_eq!(guest.addresses(), ["10.0.0.1"]);
}

#[test]
fn a_guest_that_claims_everything_is_bounded_and_keeps_what_it_had() {
    let mut guest = Clocked::new();
    for low in 0..CAPACITY {
        guest.considers(&format!("10.1.0.{low}"));
    }
    assert!(guest.uses("10.0.0.1"), "an address in use displaces one that is only considered");
    for high in 0..=255u8 {
        for low in 1..=255u8 {
            guest.uses(&format!("10.2.{high}.{low}"));
        }
    }
    assert_eq!(guest.addresses().len(), CAPACITY);
    assert!(guest.addresses().contains(&"10.0.0.1".to_owned()));
}
