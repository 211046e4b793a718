//! What the packet filter holds: tables, chains, maps, rules.

use std::fmt;

use super::Expression;

/// Whose packets a table sees (`NFPROTO_*` of `linux/netfilter.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6 that the node routes.
    Inet,
    /// Frames that the node's bridges pass on.
    Bridge,
}

impl Family {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Bridge => 7,
        }
    }
}

/// A table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table<'a> {
    /// Whose packets it sees.
    pub family: Family,
    /// Its name.
    pub name: &'a str,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::Inet => "inet",
            Family::Bridge => "bridge",
        };
        write!(f, "{family} {}", self.name)
    }
}

/// A chain.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a> {
    /// The table it is in.
    pub table: Table<'a>,
    /// Its name.
    pub name: &'a str,
    /// Where packets enter it by themselves; none if only others jump to it.
    pub hook: Option<Hook>,
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} {}", self.table, self.name)
    }
}

/// Where packets enter a base chain.
#[derive(Debug, Clone, Copy)]
pub enum Hook {
    /// As they pass a place of the kernel's IP, or of a bridge; the lower the priority, the earlier.
    Filter {
        /// Which.
        place: Place,
        /// Among the chains there.
        priority: i32,
    },
    /// The first packet of each connection as it passes: where addresses are translated.
    Nat {
        /// Which.
        place: Place,
        /// Among the chains there (`NF_IP_PRI_*` of `linux/netfilter_ipv4.h`).
        priority: i32,
    },
}

/// Places that packets of IPv4 and IPv6 pass (`NF_INET_*` of `linux/netfilter.h`), and frames of a bridge (`NF_BR_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// As they come in.
    Prerouting = 0,
    /// As they are routed from one device to another.
    Forward = 2,
    /// As the node itself sends them.
    Output = 3,
    /// As they leave.
    Postrouting = 4,
}

/// A set: keys that rules look up, perhaps with something for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// The table it is in.
    pub table: Table<'static>,
    /// Its name.
    pub name: &'static str,
    /// What keys are made of, in order.
    pub key: &'static [Part],
    /// What there is for a key.
    pub holds: Holds,
}

/// What a set has for each of its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Nothing.
    Keys,
    /// The chain that decides.
    Chains,
    /// The counter that counts.
    Counters,
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.holds == Holds::Keys { "set" } else { "map" };
        write!(f, "{kind} {} {}", self.table, self.name)
    }
}

impl Set {
    /// The number that nft(8) has for what its keys are.
    pub(super) fn datatype(&self) -> u32 {
        self.key.iter().fold(0, |types, part| types << 6 | part.datatype())
    }

    /// The length of its keys; the parts of one begin at multiples of four bytes.
    pub(super) fn key_length(&self) -> u32 {
        match self.key {
            [one] => one.length(),
            parts => parts.iter().map(|part| part.length().next_multiple_of(4)).sum(),
        }
    }
}

/// What keys are made of; numbers are those nft(8) gives its types (`enum datatypes`), which it needs to show them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `ipv4_addr`
    V4,
    /// `ipv6_addr`
    V6,
    /// `ether_addr`
    Mac,
    /// `ifname`, with zeros up to 16 bytes.
    Name,
}

impl Part {
    const fn datatype(self) -> u32 {
        match self {
            Self::V4 => 7,
            Self::V6 => 8,
            Self::Mac => 9,
            Self::Name => 41,
        }
    }

    const fn length(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::Mac => 6,
            Self::V6 | Self::Name => 16,
        }
    }
}

/// A named counter.
#[derive(Debug, Clone, Copy)]
pub struct Counter<'a> {
    /// The table it is in.
    pub table: Table<'static>,
    /// Its name.
    pub name: &'a str,
}

impl fmt::Display for Counter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "counter {} {}", self.table, self.name)
    }
}

/// An element of a set.
#[derive(Debug, Clone, Copy)]
pub struct Element<'a> {
    /// The set it is in.
    pub set: &'a Set,
    /// Its key.
    pub key: &'a [u8],
}

/// A rule to be made.
#[derive(Debug)]
pub struct Rule<'a> {
    /// What it does, in order.
    pub expressions: Vec<Expression>,
    /// What nft(8) shows as its comment; at most 253 bytes are kept.
    pub comment: &'a str,
}
