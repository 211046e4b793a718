//! The pod: its namespace, which of its interfaces is meant, and what that interface makes of the configuration.

use cni::{Code, Error, Request};
use ipnetwork::IpNetwork;
use kubevirt_names::Names;
use net_types::IfName;
use netlink::{Link, Netlink};
use netns::NetNs;
use nf_tables::NfTables;

use crate::config::{Config, Subnet, Tap};
use crate::error::MasqueradeError;
use crate::ruleset::Plan;

/// What every alias begins with: who made the link, and the version of what follows.
const OWNER: &str = "guestwire masquerade v1";
/// Longest alias the kernel keeps (`IFALIASZ` less the NUL), in bytes.
const MAX_ALIAS: usize = 255;
/// The least MTU of a link with IPv6 (RFC 8200, section 5), in bytes.
const MIN_V6_MTU: u32 = 1280;

/// An open pod, and for whom it was opened.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: NetNs,
    pub(crate) netlink: Netlink,
    /// CNI_NETNS as it was given.
    pub(crate) sandbox: String,
    /// Container and network.
    owner: String,
}

/// What is to be made, or was.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) names: Names,
    /// The guest's subnets: one for each address family the pod interface has.
    pub(crate) subnets: Vec<Subnet>,
    /// Of bridge and tap, in bytes.
    pub(crate) mtu: u32,
    /// What is written on the bridge.
    pub(crate) bridge_alias: String,
    /// What is written on the tap.
    pub(crate) tap_alias: String,
}

/// Whose a link by one of our names is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// Made for this very attachment; also one whose ADD was cut off before it wrote the alias.
    Own,
    /// Made by this plugin for another attachment of the same pod interface.
    Former,
    /// Somebody else's.
    Foreign,
}

impl Pod {
    /// Opens the namespace of the request's container.
    pub(crate) fn open(request: &Request) -> Result<Self, MasqueradeError> {
        let attachment = request.attachment()?;
        let path = attachment.netns.clone().ok_or(MasqueradeError::NoNetns)?;
        let sandbox = path.display().to_string();
        let namespace = NetNs::open(path).map_err(MasqueradeError::Netns)?;
        let netlink = Netlink::open_in(&namespace)?;
        let owner = format!("{} {}", attachment.container, request.network);
        Ok(Self { namespace, netlink, sandbox, owner })
    }

    /// Looks at the pod interface and everything that decides whether and how it can be masqueraded.
    pub(crate) fn target(&self, config: &Config) -> Result<Target, MasqueradeError> {
        let (names, nic) = self.interface(config)?;
        let subnets = self.subnets(config, &names, &nic)?;
        let mtu = mtu(config, &nic, &subnets)?;
        let bridge_alias = self.alias(&names.pod);
        let tap_alias = format!("{bridge_alias} {}", described(config.tap));
        if tap_alias.len() > MAX_ALIAS {
            let over = tap_alias.len() - MAX_ALIAS;
            let names = "the names of network and container together are too long";
            return Err(Error::new(Code::InvalidConfig, names).details(format!("by {over} bytes")).into());
        }
        Ok(Target { names, subnets, mtu, bridge_alias, tap_alias })
    }

    fn interface(&self, config: &Config) -> Result<(Names, Link), MasqueradeError> {
        for name in &config.candidates {
            if let Some(link) = self.netlink.link_by_name(name.as_str())? {
                return Ok((Names::around(name)?, link));
            }
        }
        Err(MasqueradeError::NoPodInterface(config.candidates.clone()))
    }

    /// A family is on if the pod interface has an address of it that others can reach.
    fn subnets(&self, config: &Config, names: &Names, nic: &Link) -> Result<Vec<Subnet>, MasqueradeError> {
        let addresses = self.netlink.addresses(nic.index)?;
        let has = |is_v6| addresses.iter().any(|own| own.is_ipv6() == is_v6 && is_global(*own));
        let subnets: Vec<_> =
            [config.v4, config.v6].into_iter().filter(|subnet| has(subnet.is_v6())).collect();
        if subnets.is_empty() {
            return Err(MasqueradeError::NoAddress(names.pod.clone()));
        }
        for link in self.netlink.links()?.into_iter().filter(|link| link.name != names.bridge.as_str()) {
            for address in self.netlink.addresses(link.index)? {
                if let Some(subnet) = subnets.iter().find(|subnet| subnet.overlaps(address)) {
                    return Err(MasqueradeError::Overlap {
                        field: if subnet.is_v6() { "vmIPv6NetworkCIDR" } else { "vmNetworkCIDR" },
                        network: subnet.network,
                        other: address,
                        link: link.name,
                    });
                }
            }
        }
        Ok(subnets)
    }

    /// The alias of what is made for this attachment.
    fn alias(&self, pod: &IfName) -> String {
        format!("{OWNER} {pod} {}", self.owner)
    }

    /// Whose a link is that has the name of our bridge (`kind` `bridge`) or tap (`tun`) around `pod`.
    pub(crate) fn ownership(&self, link: &Link, kind: &str, pod: &IfName) -> Ownership {
        let is = |alias: &str| link.alias == alias || link.alias.starts_with(&format!("{alias} "));
        if link.kind != kind {
            Ownership::Foreign
        } else if link.alias.is_empty() || is(&self.alias(pod)) {
            Ownership::Own
        } else if is(&format!("{OWNER} {pod}")) {
            Ownership::Former
        } else {
            Ownership::Foreign
        }
    }

    /// The pod's packet filter.
    pub(crate) fn nf_tables(&self) -> Result<NfTables, MasqueradeError> {
        Ok(self.namespace.run(NfTables::open).map_err(MasqueradeError::Netns)??)
    }

    /// The link of that name, which must be there.
    pub(crate) fn link(&self, name: &IfName) -> Result<Link, MasqueradeError> {
        self.netlink.link_by_name(name.as_str())?.ok_or_else(|| MasqueradeError::Vanished(name.clone()))
    }
}

impl Target {
    /// The rules this takes.
    pub(crate) fn plan<'a>(&'a self, config: &'a Config) -> Plan<'a> {
        let Names { pod, bridge, tap: _ } = &self.names;
        let takes_loopback = self.takes_loopback();
        Plan { pod, bridge, subnets: &self.subnets, rules: &config.rules, takes_loopback }
    }

    /// A pod has one loopback: it belongs to the guest's NIC on the pod network.
    pub(crate) fn takes_loopback(&self) -> bool {
        kubevirt_names::is_primary(&self.names.pod)
    }

    /// True if the family is on.
    pub(crate) fn has(&self, is_v6: bool) -> bool {
        self.subnets.iter().any(|subnet| subnet.is_v6() == is_v6)
    }
}

/// The pod interface that a link with this alias was made for; none if it is not one of ours.
pub(crate) fn interface_of(alias: &str) -> Option<&str> {
    alias.strip_prefix(OWNER)?.strip_prefix(' ')?.split(' ').next()
}

/// How the tap was made, so that a later ADD with other wishes sees the difference.
fn described(tap: Tap) -> String {
    let Tap { owner, group, queues } = tap;
    let id = |id: Option<u32>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    format!("owner={} group={} queues={queues}", id(owner), id(group))
}

/// Neither loopback nor, for IPv6, link-local. A CNI plugin may well give a pod an IPv4 link-local address that works.
fn is_global(address: IpNetwork) -> bool {
    match address {
        IpNetwork::V4(address) => !address.ip().is_loopback(),
        IpNetwork::V6(address) => !address.ip().is_loopback() && !address.ip().is_unicast_link_local(),
    }
}

fn mtu(config: &Config, nic: &Link, subnets: &[Subnet]) -> Result<u32, MasqueradeError> {
    let mtu = config.mtu.unwrap_or(nic.mtu);
    if mtu > nic.mtu {
        return Err(MasqueradeError::MtuTooLarge { mtu, name: nic.name.clone(), own: nic.mtu });
    }
    if mtu < MIN_V6_MTU && subnets.iter().any(Subnet::is_v6) {
        return Err(MasqueradeError::MtuTooSmall { mtu });
    }
    Ok(mtu)
}
