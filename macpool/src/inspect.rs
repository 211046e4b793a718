//! `macpool inspect`: who holds which address, since when and why. The stores tell entries; here they are sorted, chosen
//! and printed on stdout, as a table for people or as JSON for programs. What to do about them goes to stderr.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write as _};
use std::path::Path;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use net_types::Mac;
use serde::Serialize;

use crate::segment::{Domains, Segment};
use crate::store::dir::{DirStore, Reservation};
use crate::store::kube::inspect;
use crate::store::{Kind, Owner};

/// The version of the JSON form. Fields may be added to it; another meaning of one is another version.
const VERSION: u32 = 1;
/// A cell that is longer moves the rest of its own row only.
const MAX_WIDTH: usize = 40;

/// What to print, and how.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Only this address.
    mac: Option<Mac>,

    /// Only what belongs to VMs and pods of this namespace, or to the one of this name.
    #[arg(long, value_name = "NAMESPACE[/NAME]")]
    owner: Option<OwnerFilter>,

    /// Only what is in this state. May be repeated.
    #[arg(long, value_enum)]
    state: Vec<State>,

    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// How it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Why an address is not free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A VM, its instance or a pod has it.
    InUse,
    /// In use, also by another VM or pod whom this one can meet.
    Duplicate,
    /// Somebody asked for it by name and is not seen with it.
    Claimed,
    /// Kept for somebody who is not seen: given lately, or until lately in use. With --store dir: given.
    Reserved,
}

/// A reason why an address is not free: a row of the table, an entry of the JSON form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    pub(crate) mac: Mac,
    pub(crate) state: State,
    /// The kind of object, as Kubernetes calls it. Of a claim it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// The NIC's name in the VM. Only a journal knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) interface: Option<String>,
    /// The definition's `namespace/name`. None where nobody else can see the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) network: Option<String>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<String>,
    /// The MacBlock with its record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) block: Option<String>,
    /// The replica that holds the block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replica: Option<String>,
}

impl Entry {
    pub(crate) const fn new(mac: Mac, state: State) -> Self {
        Self {
            mac,
            state,
            kind: None,
            namespace: None,
            name: None,
            interface: None,
            network: None,
            since: None,
            block: None,
            replica: None,
        }
    }

    /// Of an owner by its key, `namespace/name`.
    pub(crate) fn of(mut self, key: &str) -> Self {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        self.namespace = Some(namespace.to_owned());
        self.name = Some(name.to_owned());
        self
    }

    /// Where it stands among others.
    fn order(&self) -> impl Ord {
        (self.mac, &self.namespace, &self.name, self.state)
    }

    fn owner(&self) -> String {
        let (Some(namespace), Some(name)) = (&self.namespace, &self.name) else { return String::new() };
        let kind = match self.kind {
            Some("VirtualMachine") => "vm ",
            Some("VirtualMachineInstance") => "vmi ",
            Some("Pod") => "pod ",
            _ => "",
        };
        format!("{kind}{namespace}/{name}")
    }
}

/// A network to show.
pub(crate) fn network(segment: &Segment) -> Option<String> {
    match segment {
        Segment::Alone => None,
        Segment::Network(name) => Some(name.to_string()),
    }
}

/// The JSON form.
#[derive(Serialize)]
struct Document {
    version: u32,
    entries: Vec<Entry>,
}

/// `--owner`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OwnerFilter {
    namespace: String,
    name: Option<String>,
}

impl FromStr for OwnerFilter {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) =
            text.split_once('/').map_or((text, None), |(namespace, name)| (namespace, Some(name)));
        if namespace.is_empty() || name.is_some_and(|name| name.is_empty() || name.contains('/')) {
            return Err("allowed: NAMESPACE or NAMESPACE/NAME");
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.map(str::to_owned) })
    }
}

impl Inspect {
    /// Prints what a journal in a directory says.
    pub fn dir(&self, path: &Path, domains: &Domains) -> anyhow::Result<()> {
        Ok(self.print(of_journal(&DirStore::read(path)?, domains))?)
    }

    /// Prints what a cluster says. Without `domains` those of the ConfigMap in the namespace count.
    pub async fn kube(
        &self,
        client: ::kube::Client,
        namespace: &str,
        domains: Option<Domains>,
    ) -> anyhow::Result<()> {
        Ok(self.print(inspect::entries(client, namespace, domains).await?)?)
    }

    fn print(&self, mut entries: Vec<Entry>) -> io::Result<()> {
        entries.retain(|entry| self.wants(entry));
        entries.sort_by(|one, two| one.order().cmp(&two.order()));
        let (text, advice) = match self.output {
            Output::Table => (table(&entries), advice(&entries)),
            Output::Json => {
                let document = Document { version: VERSION, entries };
                (serde_json::to_string_pretty(&document)? + "\n", String::new())
            }
        };
        match io::stdout().lock().write_all(text.as_bytes()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        // There may be nobody to read it.
        let _told = io::stderr().lock().write_all(advice.as_bytes());
        Ok(())
    }

    fn wants(&self, entry: &Entry) -> bool {
        self.mac.is_none_or(|mac| mac == entry.mac)
            && (self.state.is_empty() || self.state.contains(&entry.state))
            && self.owner.as_ref().is_none_or(|OwnerFilter { namespace, name }| {
                entry.namespace.as_ref() == Some(namespace) && (name.is_none() || entry.name == *name)
            })
    }
}

fn of_journal(reservations: &[Reservation], domains: &Domains) -> Vec<Entry> {
    let meet = |one: &Reservation, two: &Reservation| match (&one.segment, &two.segment) {
        (Some(Segment::Alone), _) | (_, Some(Segment::Alone)) => false,
        (Some(Segment::Network(one)), Some(Segment::Network(two))) => domains.meet(one, two),
        // An older journal does not say.
        (None, _) | (_, None) => true,
    };
    let entry = |this: &Reservation| {
        let Owner { kind, key } = &this.owner;
        // Sorted by address.
        let others = reservations.partition_point(|other| other.mac < this.mac);
        let mut others = reservations.iter().skip(others).take_while(|other| other.mac == this.mac);
        let state = match others.any(|other| other.owner != this.owner && meet(this, other)) {
            true => State::Duplicate,
            false => State::Reserved,
        };
        Entry {
            kind: Some(match kind {
                Kind::Vm => "VirtualMachine",
                Kind::Pod => "Pod",
            }),
            interface: Some(this.nic.to_string()),
            network: this.segment.as_ref().and_then(network),
            ..Entry::new(this.mac, state).of(key)
        }
    };
    reservations.iter().map(entry).collect()
}

/// Columns of equal width, without those that say nothing. No line at all without entries.
fn table(entries: &[Entry]) -> String {
    const HEADER: [&str; 7] = ["MAC", "STATE", "SINCE", "OWNER", "INTERFACE", "NETWORK", "REPLICA"];
    let row = |entry: &Entry| {
        let text = |text: &Option<String>| text.as_deref().map(printable).unwrap_or_default();
        let state = match entry.state {
            State::InUse => "in use",
            State::Duplicate => "duplicate",
            State::Claimed => "claimed",
            State::Reserved => "reserved",
        };
        [
            entry.mac.to_string(),
            state.to_owned(),
            text(&entry.since),
            printable(&entry.owner()),
            text(&entry.interface),
            text(&entry.network),
            text(&entry.replica),
        ]
    };
    let rows: Vec<_> = entries.iter().map(row).collect();
    let mut text = String::new();
    if rows.is_empty() {
        return text;
    }
    // 0: nothing to show.
    let mut widths = [0; HEADER.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().min(MAX_WIDTH).max(*width);
        }
    }
    for row in std::iter::once(HEADER.map(str::to_owned)).chain(rows) {
        let shown = row.iter().zip(widths).zip(HEADER).filter(|((_, width), _)| *width > 0);
        let cells = shown.map(|((cell, width), head)| {
            let cell = if cell.is_empty() { "-" } else { cell };
            format!("{cell:width$}", width = width.max(head.len()))
        });
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

/// What was asked for before anybody judged its name is shown without harm to a terminal.
fn printable(text: &str) -> String {
    let escape = |c: char| match c {
        ' '..='~' => c.to_string(),
        other => other.escape_default().to_string(),
    };
    text.chars().map(escape).collect()
}

/// What the states that somebody may wonder about ask for.
fn advice(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return "no such address is taken\n".to_owned();
    }
    let is = |state: State| entries.iter().any(|entry| entry.state == state);
    let mut text = String::new();
    if is(State::Duplicate) {
        text += "duplicate: write another macAddress into all of its owners but one, or, if their networks never meet, \
                 say so by L2_DOMAINS (--l2-domain)\n";
    }
    let is_cluster = entries.iter().any(|entry| entry.block.is_some());
    if is_cluster && (is(State::Claimed) || is(State::Reserved)) {
        text += "claimed, reserved: nobody is seen with it; freed by any ready replica once the grace time (--grace, 5 \
                 minutes) is over, at the latest when it is over twice\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn a_table_shows_the_columns_that_say_something() {
        let used = Entry {
            kind: Some("VirtualMachine"),
            network: Some("ns/red".to_owned()),
            ..Entry::new(mac(1), State::InUse).of("ns/one")
        };
        let entries = [used, Entry::new(mac(2), State::Reserved)];
        let expected = "\
MAC                STATE     OWNER      NETWORK
02:00:00:00:00:01  in use    vm ns/one  ns/red
02:00:00:00:00:02  reserved  -          -
";
        assert_eq!(table(&entries), expected);
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn an_odd_name_harms_neither_table_nor_terminal() {
        let long = "l".repeat(253);
        let odd = [
            Entry::new(mac(1), State::Claimed).of("ns/a\n\u{1b}[2J\u{202e}ä"),
            Entry {
                network: Some("ns/red".to_owned()),
                ..Entry::new(mac(2), State::InUse).of(&format!("ns/{long}"))
            },
            Entry { network: Some("ns/red".to_owned()), ..Entry::new(mac(3), State::InUse).of("ns/b") },
        ];
        let text = table(&odd);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[1].contains(r"ns/a\n\u{1b}[2J\u{202e}\u{e4}"), "{text}");
        assert!(lines[2].ends_with(&format!("ns/{long}  ns/red")), "{text}");
        assert_eq!(lines[3].len(), 17 + 2 + 7 + 2 + MAX_WIDTH + 2 + 6, "{text}");
    }

    #[test]
    fn a_journal_tells_duplicates_of_those_who_can_meet() {
        let on = |key: &str, last: u8, network: Option<&str>| Reservation {
            owner: Owner { kind: Kind::Vm, key: key.into() },
            nic: "nic".into(),
            mac: mac(last),
            segment: network.map(|name| Segment::Network(name.into())),
        };
        let states = |reservations: &[Reservation], domains: &[&str]| -> Vec<State> {
            let domains = Domains::new(domains.iter().copied()).unwrap();
            of_journal(reservations, &domains).iter().map(|entry| entry.state).collect()
        };
        let two = [on("ns/a", 1, Some("ns/red")), on("ns/b", 1, Some("ns/blue")), on("ns/c", 2, None)];
        assert_eq!(states(&two, &[]), [State::Duplicate, State::Duplicate, State::Reserved]);
        assert_eq!(states(&two, &["x=ns/red", "y=ns/blue"]), [State::Reserved; 3]);
        let twice = [on("ns/a", 1, Some("ns/red")), on("ns/a", 1, Some("ns/blue"))];
        assert_eq!(states(&twice, &[]), [State::Reserved; 2], "one VM is no duplicate of itself");
    }

    #[test]
    fn an_owner_is_a_namespace_or_a_name_in_one() {
        let parsed = |text: &str| text.parse::<OwnerFilter>();
        assert_eq!(parsed("ns"), Ok(OwnerFilter { namespace: "ns".to_owned(), name: None }));
        assert_eq!(
            parsed("ns/vm"),
            Ok(OwnerFilter { namespace: "ns".to_owned(), name: Some("vm".to_owned()) })
        );
        for text in ["", "/", "/vm", "ns/", "ns/vm/x"] {
            assert!(parsed(text).is_err(), "{text:?}");
        }
    }
}
