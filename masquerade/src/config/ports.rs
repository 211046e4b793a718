//! Which ports are forwarded to the guest.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortRange {
    pub(crate) first: u16,
    pub(crate) last: u16,
}

/// Ports by protocol: sorted, and neither overlapping nor touching, which is how the kernel gives them back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PortSet(BTreeMap<Protocol, Vec<PortRange>>);

/// What of a guest can be reached through its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Forwarded {
    /// All but the reserved ports.
    All,
    /// These only.
    Listed(PortSet),
}

/// `ports` of an interface, as KubeVirt has it. The name says nothing here.
#[derive(Debug, Deserialize)]
pub(super) struct RawPort {
    port: i64,
    protocol: Option<String>,
}

/// `portRanges` of an interface.
#[derive(Debug, Deserialize)]
pub(super) struct RawRange {
    start: i64,
    end: i64,
    protocol: Option<String>,
}

/// Why ports cannot be forwarded. Begins with the field's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PortsError {
    /// Not a port.
    #[error("{field}: is {value}; allowed: 1 to 65535")]
    OutOfRange {
        /// Which.
        field: String,
        /// As given.
        value: i64,
    },
    /// The end lies before the start.
    #[error("{field}: ends at {end}, before its start {start}")]
    Reversed {
        /// Which.
        field: String,
        /// As given.
        start: u16,
        /// As given.
        end: u16,
    },
    /// A protocol without ports, or none at all.
    #[error("{field}: is {value:?}; allowed: TCP, UDP, SCTP")]
    Protocol {
        /// Which.
        field: String,
        /// As given.
        value: String,
    },
    /// A port that the guest cannot have.
    #[error("{field}: TCP port {port} is reserved and never forwarded (reservedPorts)")]
    Reserved {
        /// Which.
        field: String,
        /// The port.
        port: u16,
    },
}

impl Forwarded {
    /// Joins both lists. Two empty ones mean all ports, as KubeVirt has it.
    pub(super) fn parse(
        ports: Vec<RawPort>,
        ranges: Vec<RawRange>,
        reserved: &PortSet,
    ) -> Result<Self, PortsError> {
        let mut all = Vec::new();
        for (index, RawPort { port: number, protocol }) in ports.into_iter().enumerate() {
            let field = format!("ports[{index}]");
            let number = port(&format!("{field}.port"), number)?;
            all.push((field, protocol, PortRange { first: number, last: number }));
        }
        for (index, RawRange { start, end, protocol }) in ranges.into_iter().enumerate() {
            let field = format!("portRanges[{index}]");
            let first = port(&format!("{field}.start"), start)?;
            let last = port(&format!("{field}.end"), end)?;
            if last < first {
                return Err(PortsError::Reversed { field, start: first, end: last });
            }
            all.push((field, protocol, PortRange { first, last }));
        }
        if all.is_empty() {
            return Ok(Self::All);
        }
        let mut set = PortSet::default();
        for (field, name, range) in all {
            let protocol = protocol(&field, name)?;
            if let Some(port) = reserved.first_within(protocol, range) {
                return Err(PortsError::Reserved { field, port });
            }
            set.insert(protocol, range);
        }
        Ok(Self::Listed(set))
    }
}

impl PortSet {
    /// TCP ports by number. `field` names them in errors.
    pub(crate) fn tcp(field: &str, ports: &[i64]) -> Result<Self, PortsError> {
        let mut set = Self::default();
        for (index, number) in ports.iter().enumerate() {
            let number = port(&format!("{field}[{index}]"), *number)?;
            set.insert(Protocol::Tcp, PortRange { first: number, last: number });
        }
        Ok(set)
    }

    /// The protocols that have ports here, each with its ports in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Protocol, &[PortRange])> {
        self.0.iter().map(|(protocol, ranges)| (*protocol, ranges.as_slice()))
    }

    /// True if the port is in the set.
    pub(crate) fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.first_within(protocol, PortRange { first: port, last: port }).is_some()
    }

    fn first_within(&self, protocol: Protocol, range: PortRange) -> Option<u16> {
        let ranges = self.0.get(&protocol)?;
        let met = ranges.iter().find(|own| own.first <= range.last && range.first <= own.last)?;
        Some(met.first.max(range.first))
    }

    fn insert(&mut self, protocol: Protocol, range: PortRange) {
        let ranges = self.0.entry(protocol).or_default();
        ranges.push(range);
        ranges.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
        for range in ranges.drain(..) {
            match merged.last_mut() {
                Some(before) if u32::from(range.first) <= u32::from(before.last) + 1 => {
                    before.last = before.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        *ranges = merged;
    }
}

fn port(field: &str, value: i64) -> Result<u16, PortsError> {
    let number = u16::try_from(value).ok().filter(|number| *number != 0);
    number.ok_or_else(|| PortsError::OutOfRange { field: field.to_owned(), value })
}

fn protocol(field: &str, name: Option<String>) -> Result<Protocol, PortsError> {
    let name = name.unwrap_or_default();
    match name.to_ascii_lowercase().as_str() {
        "" | "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        _ => Err(PortsError::Protocol { field: format!("{field}.protocol"), value: name }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(ports: serde_json::Value, ranges: serde_json::Value) -> Result<Forwarded, PortsError> {
        let reserved = PortSet::tcp("reservedPorts", &[49152, 49153]).unwrap();
        let ports = serde_json::from_value(ports).unwrap();
        Forwarded::parse(ports, serde_json::from_value(ranges).unwrap(), &reserved)
    }

    #[test]
    fn no_list_means_all() {
        assert_eq!(parse(json!([]), json!([])), Ok(Forwarded::All));
    }

    #[test]
    fn both_lists_are_joined_by_protocol() {
        let ports = json!([{"port": 80, "name": "web"}, {"port": 53, "protocol": "UDP"}, {"port": 81}]);
        let ranges = json!([{"start": 82, "end": 90, "protocol": "tcp"}, {"start": 1, "end": 65535, "protocol": "sctp"}]);
        let Ok(Forwarded::Listed(set)) = parse(ports, ranges) else { panic!("a list was given") };
        let range = |first, last| PortRange { first, last };
        let lists: Vec<_> = set
            .iter()
            .map(|(protocol, list)| (format!("{protocol:?}").to_lowercase(), list.to_vec()))
            .collect();
        let expected =
            [("tcp", vec![range(80, 90)]), ("udp", vec![range(53, 53)]), ("sctp", vec![range(1, 65535)])];
        assert_eq!(lists, expected.map(|(name, list)| (name.to_owned(), list)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let none = json!([]);
        let table = [
            (json!([{"port": 0}]), none.clone(), "ports[0].port: is 0; allowed: 1 to 65535"),
            (json!([{"port": 1}, {"port": 65536}]), none.clone(), "ports[1].port: is 65536"),
            (json!([{"port": -1}]), none.clone(), "ports[0].port: is -1"),
            (
                json!([{"port": 1, "protocol": "icmp"}]),
                none.clone(),
                "ports[0].protocol: is \"icmp\"; allowed: TCP",
            ),
            (json!([{"port": 49152}]), none.clone(), "ports[0]: TCP port 49152 is reserved"),
            (none.clone(), json!([{"start": 9, "end": 8}]), "portRanges[0]: ends at 8, before its start 9"),
            (none.clone(), json!([{"start": 0, "end": 8}]), "portRanges[0].start: is 0"),
            (none.clone(), json!([{"start": 1, "end": 65535}]), "portRanges[0]: TCP port 49152 is reserved"),
        ];
        for (ports, ranges, message) in table {
            let error = parse(ports, ranges).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
        assert!(parse(json!([{"port": 49152, "protocol": "udp"}]), none).is_ok(), "only TCP is reserved");
    }

    proptest! {
        #[test]
        fn a_set_holds_what_was_put_in_and_nothing_else(
            ranges in prop::collection::vec((1..=300_u16, 0..=40_u16), 1..20)
        ) {
            let mut set = PortSet::default();
            for (first, more) in &ranges {
                set.insert(Protocol::Udp, PortRange { first: *first, last: first + more });
            }
            for port in 1..=400 {
                let expected = ranges.iter().any(|(first, more)| (*first..=first + more).contains(&port));
                prop_assert_eq!(set.contains(Protocol::Udp, port), expected);
            }
            let (_, list) = set.iter().next().unwrap();
            prop_assert!(list.windows(2).all(|pair| pair[0].last + 1 < pair[1].first));
        }
    }
}
