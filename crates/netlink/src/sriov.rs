//! Virtual functions, as their physical function's driver has them.
//!
//! All of it goes by the PF's link: the VF itself may be in a pod, in a guest, or without a driver. Reading does not
//! use the packet crate's decoder, which takes "the driver does not say" (all ones) for "off".

use net_types::Mac;
use netlink_packet_core::{NetlinkBuffer, NlasIterator, Parseable as _};
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkMessage, LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac, VfInfoRate,
    VfInfoSpoofCheck, VfInfoTrust, VfLinkState as RawLinkState, VfVlan as RawVlan, VfVlanInfo,
    VlanProtocol as RawProtocol,
};
use rtnetlink::LinkUnspec;
use serde::{Deserialize, Serialize};

use crate::{Error, Netlink, question};

/// Attribute types of `linux/if_link.h`.
const IFLA_VFINFO_LIST: u16 = 22;
const IFLA_VF_INFO: u16 = 1;
const IFLA_VF_MAC: u16 = 1;
const IFLA_VF_VLAN: u16 = 2;
const IFLA_VF_SPOOFCHK: u16 = 4;
const IFLA_VF_LINK_STATE: u16 = 5;
const IFLA_VF_RATE: u16 = 6;
const IFLA_VF_TRUST: u16 = 9;
const IFLA_VF_VLAN_LIST: u16 = 12;
/// `struct ifinfomsg`, in bytes.
const LINK_HEADER: usize = 16;
const READ: &str = "list VFs of link with index";

/// A VF as its PF's driver reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vf {
    /// Its number, from 0.
    pub index: u32,
    /// Its address; zero if none was assigned. Some drivers report the one that the VF chose for itself.
    pub mac: Option<Mac>,
    /// The VLAN it is in.
    pub vlan: VfVlan,
    /// Its bandwidth.
    pub rate: VfRate,
    /// Only its own address may send; none if the driver does not say.
    pub spoof_check: Option<bool>,
    /// It may change its address and listen to others' traffic; none if the driver does not say.
    pub trust: Option<bool>,
    /// How its link follows the PF's.
    pub link_state: VfLinkState,
}

/// The VLAN that a PF puts a VF in, unknown to the VF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VfVlan {
    /// VLAN identifier; 0 for none.
    pub id: u16,
    /// Priority (PCP), 0 to 7.
    pub qos: u8,
    /// Kind of tag.
    pub protocol: VlanProtocol,
}

/// Kinds of VLAN tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum VlanProtocol {
    /// A customer tag, 802.1Q.
    #[serde(rename = "802.1q")]
    #[default]
    Dot1Q,
    /// A service tag, 802.1ad.
    #[serde(rename = "802.1ad")]
    Dot1Ad,
}

/// Bounds of what a VF may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VfRate {
    /// Guaranteed, in Mbit/s; 0 for nothing.
    pub min: u32,
    /// At most, in Mbit/s; 0 for no bound.
    pub max: u32,
}

/// How a VF's link follows its PF's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VfLinkState {
    /// It is up when the PF's is.
    #[default]
    Auto,
    /// It is up.
    Enable,
    /// It is down.
    Disable,
}

/// The VFs of the PF with index `pf` in the calling thread's namespace.
pub fn virtual_functions(pf: u32) -> Result<Vec<Vf>, Error> {
    let failed = |source| Error::Refused { verb: READ, object: pf.to_string(), source };
    let mut link = LinkMessage::default();
    link.header.index = pf;
    link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats]));
    let answer = question::ask(link, 0).map_err(failed)?;
    let malformed = |source| Error::Malformed { verb: READ, object: pf.to_string(), source };
    let packet = NetlinkBuffer::new_checked(&answer).map_err(malformed)?;
    question::refusal(&packet).map_err(failed)?;
    let mut vfs = Vec::new();
    for attribute in NlasIterator::new(packet.payload().get(LINK_HEADER..).unwrap_or_default()) {
        let attribute = attribute.map_err(malformed)?;
        if attribute.kind() != IFLA_VFINFO_LIST {
            continue;
        }
        for info in NlasIterator::new(attribute.value()) {
            let info = info.map_err(malformed)?;
            if info.kind() == IFLA_VF_INFO {
                vfs.push(vf(info.value()).map_err(malformed)?);
            }
        }
    }
    Ok(vfs)
}

fn vf(attributes: &[u8]) -> Result<Vf, netlink_packet_core::DecodeError> {
    let mut vf = Vf::default();
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        // Each value begins with the VF's number.
        match attribute.kind() {
            IFLA_VF_MAC => {
                vf.index = word(value, 0);
                vf.mac = value.get(4..10).and_then(|mac| Mac::try_from(mac).ok());
            }
            IFLA_VF_VLAN => {
                vf.vlan.id = u16::try_from(word(value, 1)).unwrap_or_default();
                vf.vlan.qos = u8::try_from(word(value, 2)).unwrap_or_default();
            }
            IFLA_VF_VLAN_LIST => {
                for entry in NlasIterator::new(value) {
                    if let RawVlan::Info(info) = RawVlan::parse(&entry?)? {
                        vf.vlan.protocol = info.protocol.into();
                    }
                }
            }
            IFLA_VF_RATE => vf.rate = VfRate { min: word(value, 1), max: word(value, 2) },
            IFLA_VF_SPOOFCHK => vf.spoof_check = switch(word(value, 1)),
            IFLA_VF_TRUST => vf.trust = switch(word(value, 1)),
            IFLA_VF_LINK_STATE => {
                vf.link_state = match word(value, 1) {
                    1 => VfLinkState::Enable,
                    2 => VfLinkState::Disable,
                    _ => VfLinkState::Auto,
                }
            }
            _ => {}
        }
    }
    Ok(vf)
}

/// The `position`-th 32-bit number of a value; 0 if it is shorter.
fn word(value: &[u8], position: usize) -> u32 {
    let bytes = value.get(4 * position..4 * position + 4).and_then(|bytes| bytes.try_into().ok());
    u32::from_ne_bytes(bytes.unwrap_or_default())
}

fn switch(value: u32) -> Option<bool> {
    match value {
        0 => Some(false),
        u32::MAX => None,
        _ => Some(true),
    }
}

impl Netlink {
    /// Assigns a VF's address (`ip link set PF vf N mac`); zero takes the assignment back.
    pub fn set_vf_mac(&self, pf: u32, vf: u32, mac: Mac) -> Result<(), Error> {
        self.set_vf("set address of VF", pf, vf, VfInfo::Mac(VfInfoMac::new(vf, &mac.octets())))
    }

    /// Puts a VF in a VLAN (`ip link set PF vf N vlan`).
    pub fn set_vf_vlan(&self, pf: u32, vf: u32, vlan: VfVlan) -> Result<(), Error> {
        let info = VfVlanInfo::new(vf, vlan.id.into(), vlan.qos.into(), vlan.protocol.into());
        self.set_vf("set VLAN of VF", pf, vf, VfInfo::VlanList(vec![RawVlan::Info(info)]))
    }

    /// Bounds what a VF sends (`ip link set PF vf N min_tx_rate max_tx_rate`).
    pub fn set_vf_rate(&self, pf: u32, vf: u32, rate: VfRate) -> Result<(), Error> {
        self.set_vf("set rate of VF", pf, vf, VfInfo::Rate(VfInfoRate::new(vf, rate.min, rate.max)))
    }

    /// Switches a VF's spoof check (`ip link set PF vf N spoofchk`).
    pub fn set_vf_spoof_check(&self, pf: u32, vf: u32, on: bool) -> Result<(), Error> {
        self.set_vf("set spoof check of VF", pf, vf, VfInfo::SpoofCheck(VfInfoSpoofCheck::new(vf, on)))
    }

    /// Trusts a VF or not (`ip link set PF vf N trust`).
    pub fn set_vf_trust(&self, pf: u32, vf: u32, on: bool) -> Result<(), Error> {
        self.set_vf("set trust of VF", pf, vf, VfInfo::Trust(VfInfoTrust::new(vf, on)))
    }

    /// Sets how a VF's link follows the PF's (`ip link set PF vf N state`).
    pub fn set_vf_link_state(&self, pf: u32, vf: u32, state: VfLinkState) -> Result<(), Error> {
        let state = match state {
            VfLinkState::Auto => RawLinkState::Auto,
            VfLinkState::Enable => RawLinkState::Enable,
            VfLinkState::Disable => RawLinkState::Disable,
        };
        self.set_vf("set link state of VF", pf, vf, VfInfo::LinkState(VfInfoLinkState::new(vf, state)))
    }

    fn set_vf(&self, verb: &'static str, pf: u32, vf: u32, info: VfInfo) -> Result<(), Error> {
        let list = LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info])]);
        let message = LinkUnspec::new_with_index(pf).append_extra_attribute(list).build();
        let object = format!("{vf} of link with index {pf}");
        self.wait(verb, object, self.handle.link().change(message).execute())
    }
}

impl From<RawProtocol> for VlanProtocol {
    fn from(protocol: RawProtocol) -> Self {
        if protocol == RawProtocol::Ieee8021Ad { Self::Dot1Ad } else { Self::Dot1Q }
    }
}

impl From<VlanProtocol> for RawProtocol {
    fn from(protocol: VlanProtocol) -> Self {
        match protocol {
            VlanProtocol::Dot1Q => Self::Ieee8021Q,
            VlanProtocol::Dot1Ad => Self::Ieee8021Ad,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn what_a_driver_does_not_say_is_not_off() {
        for (word, expected) in [(0, Some(false)), (1, Some(true)), (u32::MAX, None)] {
            let info = [
                attribute(IFLA_VF_SPOOFCHK, &words(&[3, word])),
                attribute(IFLA_VF_TRUST, &words(&[3, word])),
            ];
            let vf = vf(&info.concat()).unwrap();
            assert_eq!((vf.spoof_check, vf.trust), (expected, expected));
        }
    }

    #[test]
    fn a_report_is_read_whole() {
        let mut mac = words(&[5]);
        mac.extend([2, 0, 0, 0, 0, 1]);
        mac.resize(36, 0);
        let mut vlan = words(&[5, 100, 3]);
        vlan.extend([0x88, 0xa8, 0, 0]);
        let info = [
            attribute(IFLA_VF_MAC, &mac),
            attribute(IFLA_VF_VLAN, &words(&[5, 100, 3])),
            attribute(IFLA_VF_VLAN_LIST, &attribute(1, &vlan)),
            attribute(IFLA_VF_RATE, &words(&[5, 10, 200])),
            attribute(IFLA_VF_LINK_STATE, &words(&[5, 2])),
        ];
        let expected = Vf {
            index: 5,
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            vlan: VfVlan { id: 100, qos: 3, protocol: VlanProtocol::Dot1Ad },
            rate: VfRate { min: 10, max: 200 },
            spoof_check: None,
            trust: None,
            link_state: VfLinkState::Disable,
        };
        assert_eq!(vf(&info.concat()).unwrap(), expected);
    }

    #[test]
    fn a_report_that_ends_early_is_an_error() {
        let info = attribute(IFLA_VF_RATE, &words(&[5, 10, 200]));
        assert!(vf(&info[..10]).is_err());
    }
}
