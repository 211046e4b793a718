//! What the packet filter holds: tables, chains, maps, rules.

use std::fmt;

use super::Expression;

/// Whose packets a table sees (`NFPROTO_*` of `linux/netfilter.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6 that the node routes.
    Inet,
    /// Frames of one device, before everything else.
    Netdev,
}

impl Family {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Netdev => 5,
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
            Family::Netdev => "netdev",
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
    pub hook: Option<Hook<'a>>,
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} {}", self.table, self.name)
    }
}

/// Where packets enter a base chain.
#[derive(Debug, Clone, Copy)]
pub enum Hook<'a> {
    /// As they come in by a device; the lower the priority, the earlier.
    Ingress {
        /// Its name.
        device: &'a str,
        /// Among the chains there.
        priority: i32,
    },
    /// As they pass a place of the kernel's IP.
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

/// Places that packets of IPv4 and IPv6 pass (`NF_INET_*` of `linux/netfilter.h`).
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

/// A map from an address to the chain that decides.
#[derive(Debug, Clone, Copy)]
pub struct VerdictMap {
    /// The table it is in.
    pub table: Table<'static>,
    /// Its name.
    pub name: &'static str,
    /// The keys.
    pub key: Key,
}

impl fmt::Display for VerdictMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "map {} {}", self.table, self.name)
    }
}

/// What a map is keyed by; numbers are those nft(8) gives its types (`enum datatypes`), which it needs to show them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// `ipv4_addr`
    V4,
    /// `ipv6_addr`
    V6,
}

impl Key {
    pub(super) const fn datatype(self) -> u32 {
        match self {
            Self::V4 => 7,
            Self::V6 => 8,
        }
    }

    pub(super) const fn length(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }
}

/// A rule to be made.
#[derive(Debug)]
pub struct Rule<'a> {
    /// What it does, in order.
    pub expressions: Vec<Expression>,
    /// What nft(8) shows as its comment; at most 253 bytes are kept.
    pub comment: &'a str,
}
