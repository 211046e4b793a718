//! What a network sets on a virtual function by way of its physical function, one value per kind.
//!
//! The same type says what was there before, what is wanted, and what is to be put back. [`apply`] changes what
//! differs and reads all of it back: a driver that takes a value and does something else is found out.

use std::fmt;

use net_types::Mac;
use netlink::{Netlink, Vf, VfLinkState, VfRate, VfVlan, VlanProtocol};
use serde::{Deserialize, Serialize};

/// One attribute with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Attribute {
    /// VLAN, priority and kind of tag.
    Vlan(VfVlan),
    /// The assigned address.
    Mac(Mac),
    /// Least and most that it may send.
    Rate(VfRate),
    /// Only its own address may send.
    SpoofCheck(bool),
    /// It may change its address.
    Trust(bool),
    /// How its link follows the PF's.
    LinkState(VfLinkState),
}

/// Why an attribute is not as wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttributeError {
    /// The driver said no.
    #[error("the driver of {pf} does not set {wanted} on VF {vf}")]
    Refused {
        /// The physical function's interface.
        pf: String,
        /// The VF's number.
        vf: u32,
        /// What it was to be.
        wanted: Attribute,
        /// The answer.
        source: netlink::Error,
    },
    /// The driver said yes and did not.
    #[error("the driver of {pf} took {wanted} for VF {vf}, which has {found} nevertheless")]
    NotTaken {
        /// The physical function's interface.
        pf: String,
        /// The VF's number.
        vf: u32,
        /// What it was to be.
        wanted: Attribute,
        /// What it is.
        found: Attribute,
    },
    /// The PF has fewer VFs by now.
    #[error("{pf} has no VF {vf} any more")]
    Gone {
        /// The physical function's interface.
        pf: String,
        /// The VF's number.
        vf: u32,
    },
    /// Reading failed.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// A virtual function, addressed by its physical function's interface.
#[derive(Debug, Clone)]
pub(crate) struct Port<'a> {
    /// A socket where the PF's interface is.
    pub(crate) netlink: &'a Netlink,
    /// The PF's interface.
    pub(crate) pf: &'a str,
    /// Its index.
    pub(crate) pf_index: u32,
    /// The VF's number.
    pub(crate) vf: u32,
}

impl Port<'_> {
    /// What the driver reports of the VF now.
    pub(crate) fn read(&self) -> Result<Vf, AttributeError> {
        let vfs = netlink::virtual_functions(self.pf_index)?;
        let gone = || AttributeError::Gone { pf: self.pf.to_owned(), vf: self.vf };
        vfs.into_iter().find(|vf| vf.index == self.vf).ok_or_else(gone)
    }

    /// Makes the VF have all of `wanted`, and sees that it has.
    pub(crate) fn apply(&self, wanted: &[Attribute]) -> Result<(), AttributeError> {
        let before = self.read()?;
        let mut changed = false;
        for attribute in wanted.iter().filter(|attribute| attribute.of(&before) != Some(**attribute)) {
            self.set(*attribute)?;
            changed = true;
        }
        if changed { self.verify(wanted) } else { Ok(()) }
    }

    /// Writes one attribute.
    pub(crate) fn set(&self, wanted: Attribute) -> Result<(), AttributeError> {
        let Self { netlink, pf_index, vf, .. } = *self;
        let set = match wanted {
            Attribute::Vlan(vlan) => netlink.set_vf_vlan(pf_index, vf, vlan),
            Attribute::Mac(mac) => netlink.set_vf_mac(pf_index, vf, mac),
            Attribute::Rate(rate) => netlink.set_vf_rate(pf_index, vf, rate),
            Attribute::SpoofCheck(on) => netlink.set_vf_spoof_check(pf_index, vf, on),
            Attribute::Trust(on) => netlink.set_vf_trust(pf_index, vf, on),
            Attribute::LinkState(state) => netlink.set_vf_link_state(pf_index, vf, state),
        };
        set.map_err(|source| AttributeError::Refused { pf: self.pf.to_owned(), vf, wanted, source })?;
        cni::mutated(wanted.name());
        Ok(())
    }

    fn verify(&self, wanted: &[Attribute]) -> Result<(), AttributeError> {
        match first_difference(&self.read()?, wanted) {
            None => Ok(()),
            Some((wanted, found)) => {
                Err(AttributeError::NotTaken { pf: self.pf.to_owned(), vf: self.vf, wanted, found })
            }
        }
    }
}

/// The first of `wanted` that the VF does not have, and what it has. What a driver does not report is taken on trust.
pub(crate) fn first_difference(vf: &Vf, wanted: &[Attribute]) -> Option<(Attribute, Attribute)> {
    wanted.iter().find_map(|wanted| Some((*wanted, wanted.of(vf).filter(|found| found != wanted)?)))
}

impl Attribute {
    /// What it is called in a network's configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vlan(_) => "vlan",
            Self::Mac(_) => "mac",
            Self::Rate(_) => "tx_rate",
            Self::SpoofCheck(_) => "spoofchk",
            Self::Trust(_) => "trust",
            Self::LinkState(_) => "link_state",
        }
    }

    /// The value that `vf` has of this kind; none if its driver does not say.
    pub(crate) fn of(self, vf: &Vf) -> Option<Self> {
        match self {
            Self::Vlan(_) => Some(Self::Vlan(vf.vlan)),
            Self::Mac(_) => Some(Self::Mac(vf.mac.unwrap_or(Mac::ZERO))),
            Self::Rate(_) => Some(Self::Rate(vf.rate)),
            Self::SpoofCheck(_) => vf.spoof_check.map(Self::SpoofCheck),
            Self::Trust(_) => vf.trust.map(Self::Trust),
            Self::LinkState(_) => Some(Self::LinkState(vf.link_state)),
        }
    }

    /// What to put back later: the value that `vf` has, or what drivers begin with where they do not say.
    pub(crate) fn before(self, vf: &Vf) -> Self {
        let initial = match self {
            Self::SpoofCheck(_) => Self::SpoofCheck(true),
            Self::Trust(_) => Self::Trust(false),
            other => other,
        };
        self.of(vf).unwrap_or(initial)
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.name())?;
        let on = |on: bool| if on { "on" } else { "off" };
        match self {
            Self::Vlan(VfVlan { id, qos, protocol }) => {
                let protocol = if *protocol == VlanProtocol::Dot1Ad { " 802.1ad" } else { "" };
                write!(f, "{id} qos {qos}{protocol}")
            }
            Self::Mac(mac) => mac.fmt(f),
            Self::Rate(VfRate { min, max }) => write!(f, "min {min} max {max}"),
            Self::SpoofCheck(value) | Self::Trust(value) => f.write_str(on(*value)),
            Self::LinkState(state) => f.write_str(match state {
                VfLinkState::Auto => "auto",
                VfLinkState::Enable => "enable",
                VfLinkState::Disable => "disable",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        let vf = Vf { spoof_check: Some(true), ..Vf::default() };
        let vlan = Attribute::Vlan(VfVlan { id: 100, ..VfVlan::default() });
        let wanted = [Attribute::SpoofCheck(true), Attribute::Trust(true), vlan];
        let (wanted, found) = first_difference(&vf, &wanted).unwrap();
        assert_eq!((wanted.to_string(), found.to_string()), ("vlan 100 qos 0".into(), "vlan 0 qos 0".into()));
        assert_eq!(first_difference(&vf, &[Attribute::SpoofCheck(true)]), None);
    }

    #[test]
    fn what_a_driver_does_not_say_goes_back_to_what_drivers_begin_with() {
        let vf = Vf::default();
        assert_eq!(Attribute::SpoofCheck(false).before(&vf), Attribute::SpoofCheck(true));
        assert_eq!(Attribute::Trust(true).before(&vf), Attribute::Trust(false));
        assert_eq!(Attribute::Mac(Mac::BROADCAST).before(&vf), Attribute::Mac(Mac::ZERO));
    }
}
