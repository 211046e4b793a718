//! Everything that is served, as one immutable snapshot, and the pure function that looks a name up in it.
//!
//! [`ZoneWriter`] makes a new [`Zone`] for every change and swaps it into the [`SharedZone`]; readers load the
//! snapshot once per batch of queries. The maps are persistent (a change copies a path, not the map), so a change
//! costs its own size whatever the zone's, and a transfer can walk its snapshot while newer ones are served.

mod address_set;
mod origin;
pub mod reverse;
pub mod serial;
mod vm;
mod writer;

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use ipnetwork::IpNetwork;
use rpds::{HashTrieMapSync, RedBlackTreeMapSync};
use tokio::sync::watch;

pub use address_set::{AddressSet, MAX_ADDRESSES};
pub use origin::{Origin, SoaTimes};
pub use vm::{InfoSource, InfoSourceError, MAX_NICS, NicRecords, Policy, VmRecords, vm_name};
pub use writer::ZoneWriter;

use crate::name::{Name, NameBuf, NameError};
use reverse::{Meaning, ReverseError};

/// The snapshot that is served now.
#[derive(Debug)]
pub struct SharedZone {
    current: ArcSwap<Zone>,
    serial: watch::Sender<u32>,
}

impl SharedZone {
    /// Serves `zone` first.
    pub fn new(zone: Zone) -> Self {
        let serial = watch::Sender::new(zone.serial);
        Self { current: ArcSwap::from_pointee(zone), serial }
    }

    /// The snapshot, for as long as one batch of queries takes.
    pub fn load(&self) -> Guard<Arc<Zone>> {
        self.current.load()
    }

    /// The snapshot, for longer.
    pub fn load_full(&self) -> Arc<Zone> {
        self.current.load_full()
    }

    /// Tells of every new serial.
    pub fn serials(&self) -> watch::Receiver<u32> {
        self.serial.subscribe()
    }

    fn publish(&self, zone: Zone) {
        let serial = zone.serial;
        self.current.store(Arc::new(zone));
        self.serial.send_replace(serial);
    }
}

/// What the zones are, apart from the VMs in them. The same for the life of the process.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The zone of the VMs: `vm.<domain>`.
    pub forward: Origin,
    /// The zones of PTR records, with the addresses that belong into each.
    pub reverse: Vec<(Origin, IpNetwork)>,
    /// Addresses of the primary name server, `ns.<zone>`.
    pub name_servers: Arc<AddressSet>,
    /// Seconds a PTR record may be cached.
    pub ttl: u32,
}

/// Why the zones could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The domain leaves no room.
    #[error("the zone's own names below {domain}")]
    Name {
        /// What was asked for.
        domain: Name,
        /// What is wrong.
        source: NameError,
    },
    /// A network has no reverse zone of its own.
    #[error("reverse zone")]
    Reverse(#[from] ReverseError),
    /// An address would have a name in two zones.
    #[error("--reverse {0} and --reverse {1} overlap: name the larger one alone")]
    Overlap(IpNetwork, IpNetwork),
}

impl Settings {
    /// Settings for VMs below `vm.<domain>`; TTLs in seconds.
    pub fn new(
        domain: &Name,
        name_servers: &[IpAddr],
        networks: &[IpNetwork],
        ttl: u32,
        negative_ttl: u32,
    ) -> Result<Self, SettingsError> {
        let below = |label: &str, zone: &Name| {
            let joined = Name::join(&[label], zone.as_bytes());
            joined.map_err(|source| SettingsError::Name { domain: domain.clone(), source })
        };
        let zone = below("vm", domain)?;
        let (server, contact) = (below("ns", &zone)?, below("hostmaster", &zone)?);
        let delegable = !name_servers.is_empty();
        let origin =
            |name: Name| Origin::new(name, server.clone(), contact.clone(), ttl, negative_ttl, delegable);
        let zone_of = |network: &IpNetwork| Ok((origin(reverse::zone_name(*network)?), *network));
        for (place, network) in networks.iter().enumerate() {
            if let Some(other) = networks.iter().take(place).find(|other| overlap(**other, *network)) {
                return Err(SettingsError::Overlap(*other, *network));
            }
        }
        let reverse = networks.iter().map(zone_of).collect::<Result<_, ReverseError>>()?;
        let name_servers = Arc::new(AddressSet::new(name_servers, ttl));
        Ok(Self { forward: origin(zone), reverse, name_servers, ttl })
    }
}

/// True if one network lies in the other.
fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// One owner below the forward zone: `None` exists only because something lies below it.
type Node = Option<Arc<AddressSet>>;

/// An immutable snapshot of everything served.
#[derive(Debug, Clone)]
pub struct Zone {
    settings: Arc<Settings>,
    serial: u32,
    /// By name relative to the forward zone.
    names: HashTrieMapSync<Name, Node>,
    /// Who has an address: its NIC's name relative to the forward zone. Only addresses of the reverse zones.
    addresses: RedBlackTreeMapSync<IpAddr, Name>,
}

/// What a name has in a snapshot.
#[derive(Debug, Clone, Copy)]
pub enum Found<'z> {
    /// It is the zone's own name: SOA and NS.
    Apex,
    /// A and AAAA records, perhaps none.
    Addresses(&'z AddressSet),
    /// A PTR record that points to this name below the forward zone.
    Pointer(&'z Name),
    /// It exists because names below it do.
    Empty,
    /// It does not exist.
    Nothing,
}

impl Zone {
    /// An empty snapshot.
    pub fn new(settings: Arc<Settings>, serial: u32) -> Self {
        let mut names = HashTrieMapSync::new_sync();
        if !settings.name_servers.is_empty() {
            names.insert_mut(Name::from_labels(NAME_SERVER), Some(Arc::clone(&settings.name_servers)));
        }
        Self { settings, serial, names, addresses: RedBlackTreeMapSync::new_sync() }
    }

    /// The SOA serial of this snapshot.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// What does not change from snapshot to snapshot.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Looks a name up: the zone it is in, and what it has there; `None` if it is in no zone of ours.
    pub fn find(&self, name: &NameBuf) -> Option<(&Origin, Found<'_>)> {
        if let Some(relative) = name.relative_to(self.settings.forward.name()) {
            return Some((&self.settings.forward, self.find_forward(relative)));
        }
        let in_zone = |(origin, _): &&(Origin, IpNetwork)| name.relative_to(origin.name()).is_some();
        let (origin, _) = self.settings.reverse.iter().find(in_zone)?;
        Some((origin, self.find_reverse(name, origin)))
    }

    fn find_forward(&self, relative: &[u8]) -> Found<'_> {
        if relative.is_empty() {
            return Found::Apex;
        }
        match self.names.get(relative) {
            Some(Some(addresses)) => Found::Addresses(addresses),
            Some(None) => Found::Empty,
            None => Found::Nothing,
        }
    }

    fn find_reverse(&self, name: &NameBuf, origin: &Origin) -> Found<'_> {
        if name.as_bytes() == origin.name().as_bytes() {
            return Found::Apex;
        }
        match reverse::meaning(name.as_bytes()) {
            Some(Meaning::Address(address)) => {
                self.addresses.get(&address).map_or(Found::Nothing, Found::Pointer)
            }
            Some(Meaning::Range(first, last)) => {
                let inhabited = self.addresses.range(first..=last).next().is_some();
                if inhabited { Found::Empty } else { Found::Nothing }
            }
            None => Found::Nothing,
        }
    }

    /// Every owner below the forward zone that has addresses, in no order.
    pub fn forward_records(&self) -> impl Iterator<Item = (&Name, &AddressSet)> {
        self.names.iter().filter_map(|(name, node)| node.as_deref().map(|addresses| (name, addresses)))
    }

    /// Every PTR record of one reverse zone: the address, and the NIC's name below the forward zone.
    pub fn reverse_records(&self, network: IpNetwork) -> impl Iterator<Item = (IpAddr, &Name)> {
        let (first, last) = (network.network(), network.broadcast());
        self.addresses.range(first..=last).map(|(address, name)| (*address, name))
    }

    /// Owners with addresses or empty ones below the forward zone, and PTR records.
    pub fn size(&self) -> (usize, usize) {
        (self.names.size(), self.addresses.size())
    }
}

/// `ns`, where the name server's own addresses are.
const NAME_SERVER: &[u8] = b"\x02ns";
