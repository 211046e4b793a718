//! What one VM contributes to the zone: a pure function of its `VirtualMachineInstance`.
//!
//! The guest chooses its addresses, and an object may carry any text: what is not an address or not a label is left
//! out, and nothing a VM says can make a name outside `<vm>.<namespace>`.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use vm_api::vmi::{Interface, NetworkSource, Phase, Vmi};

use super::address_set::AddressSet;
use crate::name::{Name, NameError};

/// Most NICs of one VM that get a name. PCI has room for fewer.
pub const MAX_NICS: usize = 256;

/// Where an address is known from, in KubeVirt's words (`status.interfaces[].infoSource`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InfoSource {
    /// The guest's agent reported it.
    GuestAgent,
    /// The CNI plugin assigned it.
    MultusStatus,
    /// It stands in the VM's definition.
    Domain,
    /// Somebody saw the guest use it.
    Wire,
    /// The object does not say.
    Unknown,
}

impl InfoSource {
    /// All of them, the best known first.
    pub const ALL: [Self; 5] =
        [Self::GuestAgent, Self::MultusStatus, Self::Domain, Self::Wire, Self::Unknown];

    /// The word in an object and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GuestAgent => "guest-agent",
            Self::MultusStatus => "multus-status",
            Self::Domain => "domain",
            Self::Wire => "wire",
            Self::Unknown => "unknown",
        }
    }
}

/// A word that is none of [`InfoSource::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a source of addresses (guest-agent, multus-status, domain, wire, unknown)")]
pub struct InfoSourceError(String);

impl FromStr for InfoSource {
    type Err = InfoSourceError;

    fn from_str(word: &str) -> Result<Self, InfoSourceError> {
        let found = Self::ALL.into_iter().find(|source| source.as_str() == word);
        found.ok_or_else(|| InfoSourceError(word.to_owned()))
    }
}

/// Which VMs and addresses get into the zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Sources of addresses that are believed, the most believed first.
    pub trusted: Vec<InfoSource>,
    /// Leave out VMs whose `Ready` condition is `False`.
    pub only_ready: bool,
    /// Seconds an address may be cached.
    pub ttl: u32,
    /// Octets that the zone's name leaves for a name below it.
    pub room: usize,
}

/// One NIC's name and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicRecords {
    /// `<nic>.<vm>.<namespace>`, relative to the zone.
    pub name: Name,
    /// What it answers.
    pub addresses: Arc<AddressSet>,
    /// The place of its source in [`Policy::trusted`]; smaller is believed more.
    pub rank: u8,
}

/// What one VM contributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRecords {
    /// `<vm>.<namespace>`, relative to the zone.
    pub name: Name,
    /// RFC 3339; empty if the object does not say. Decides who had an address first.
    pub created: Box<str>,
    /// Its NICs on secondary networks, in the order of the status; the first one answers for the VM's name too.
    pub nics: Vec<NicRecords>,
}

/// `<vm>.<namespace>` relative to the zone: what a VM is known by in the zone.
///
/// Kubernetes allows dots in a VM's name; such a name would lie below another VM's, so it is refused.
pub fn vm_name(namespace: &str, name: &str) -> Result<Name, NameError> {
    for label in [name, namespace] {
        if label.bytes().any(|byte| byte.is_ascii_uppercase() || matches!(byte, b'_' | b'.')) {
            return Err(NameError::Kubernetes(label.to_owned()));
        }
    }
    Name::join(&[name, namespace], &[])
}

impl VmRecords {
    /// What `vmi` contributes; `None` if it has no name to give: it does not run, is not ready (if that counts), or
    /// has no NIC on a secondary network.
    pub fn of(vmi: &Vmi, policy: &Policy) -> Result<Option<Self>, NameError> {
        let metadata = &vmi.metadata;
        let name = vm_name(&metadata.namespace, &metadata.name)?;
        if matches!(vmi.status.phase, Phase::Succeeded | Phase::Failed) || policy.only_ready && not_ready(vmi)
        {
            return Ok(None);
        }
        let mut nics: Vec<NicRecords> = Vec::new();
        for interface in vmi.status.interfaces.iter().filter(|nic| secondary(nic, vmi)).take(MAX_NICS) {
            // A network's name need not be a label, and may be too long below a long zone: that NIC goes without a name,
            // the others do not suffer.
            let Ok(nic) = Name::join(&[&interface.name], name.as_bytes()) else { continue };
            if nic.as_bytes().len() > policy.room {
                continue;
            }
            if nics.iter().all(|known| known.name != nic) {
                nics.push(nic_records(nic, interface, policy));
            }
        }
        nics.shrink_to_fit();
        let created = metadata.creation_timestamp.as_deref().unwrap_or_default().into();
        Ok((!nics.is_empty()).then_some(Self { name, created, nics }))
    }
}

fn not_ready(vmi: &Vmi) -> bool {
    vmi.status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "False")
}

/// True for a NIC that has a network's name, and that network is not the VM's default one.
fn secondary(interface: &Interface, vmi: &Vmi) -> bool {
    let default = |source: &NetworkSource| {
        source.pod.is_some() || source.multus.as_ref().is_some_and(|multus| multus.default)
    };
    let network = vmi.spec.networks.iter().find(|network| network.name == interface.name);
    !interface.name.is_empty() && !network.is_some_and(|network| default(&network.source))
}

fn nic_records(name: Name, interface: &Interface, policy: &Policy) -> NicRecords {
    let rank = rank(&interface.info_source, &policy.trusted);
    let mut addresses: Vec<IpAddr> = Vec::new();
    if rank.is_some() {
        let first = std::iter::once(&interface.ip_address);
        addresses.extend(interface.ip_addresses.iter().chain(first).filter_map(|text| servable(text)));
    }
    let addresses = Arc::new(AddressSet::new(&addresses, policy.ttl));
    NicRecords { name, addresses, rank: rank.unwrap_or(u8::MAX) }
}

/// The best place that one of the joined sources has among the trusted ones.
fn rank(joined: &str, trusted: &[InfoSource]) -> Option<u8> {
    let place = |word: &str| {
        let source = word.trim().parse().unwrap_or(InfoSource::Unknown);
        let place = trusted.iter().position(|known| *known == source)?;
        u8::try_from(place).ok()
    };
    joined.split(',').filter_map(place).min()
}

/// An address other machines can use: its prefix length is dropped; link-local, loopback, multicast and the like
/// mean nothing beyond the guest's own link.
fn servable(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.split('/').next()?.trim().parse().ok()?;
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    let usable = !(local || address.is_loopback() || address.is_multicast() || address.is_unspecified());
    usable.then_some(address)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy() -> Policy {
        Policy { trusted: InfoSource::ALL.to_vec(), only_ready: false, ttl: 30, room: 200 }
    }

    fn records(value: serde_json::Value) -> Option<VmRecords> {
        VmRecords::of(&serde_json::from_value(value).unwrap(), &policy()).unwrap()
    }

    fn vmi(interfaces: serde_json::Value) -> serde_json::Value {
        json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm1", "namespace": "ns1"},
            "spec": {"networks": [
                {"name": "default", "pod": {}},
                {"name": "flat", "multus": {"networkName": "flat", "default": true}},
                {"name": "blue", "multus": {"networkName": "blue"}},
            ]},
            "status": {"phase": "Running", "interfaces": interfaces},
        })
    }

    fn shown(records: &VmRecords) -> Vec<(String, Vec<String>)> {
        let addresses = |nic: &NicRecords| nic.addresses.iter().map(|a| a.to_string()).collect();
        records.nics.iter().map(|nic| (nic.name.to_string(), addresses(nic))).collect()
    }

    #[test]
    fn secondary_nics_get_names_and_usable_addresses_lose_their_prefix() {
        let got = records(vmi(json!([
            {"name": "default", "ipAddresses": ["10.0.2.2"]},
            {"name": "flat", "ipAddresses": ["10.0.3.2"]},
            {"ipAddresses": ["172.17.0.1"], "interfaceName": "docker0"},
            {"name": "Blue", "ipAddresses": ["10.1.0.5/24", "fe80::1/64", "2001:db8::5/64", "169.254.0.1", "127.0.0.1",
                "224.0.0.1", "::", "::ffff:1.2.3.4", "10.1.0.300", "fe80::1%eth0", "", "none"]},
            {"name": "red", "ipAddress": "10.2.0.5"},
        ])))
        .unwrap();
        let expected = [("blue.vm1.ns1", vec!["10.1.0.5", "2001:db8::5"]), ("red.vm1.ns1", vec!["10.2.0.5"])];
        let expected: Vec<(String, Vec<String>)> = expected
            .into_iter()
            .map(|(name, all)| (name.to_owned(), all.into_iter().map(str::to_owned).collect()))
            .collect();
        assert_eq!(shown(&got), expected);
    }

    #[test]
    fn a_vm_without_a_secondary_nic_or_at_its_end_has_no_name() {
        assert_eq!(records(vmi(json!([{"name": "default", "ipAddresses": ["10.0.2.2"]}]))), None);
        let mut ended = vmi(json!([{"name": "blue", "ipAddresses": ["10.1.0.5"]}]));
        assert!(records(ended.clone()).is_some());
        ended["status"]["phase"] = json!("Failed");
        assert_eq!(records(ended), None);
    }

    #[test]
    fn a_vm_that_is_not_ready_leaves_only_if_asked() {
        let mut value = vmi(json!([{"name": "blue", "ipAddresses": ["10.1.0.5"]}]));
        value["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
        let vmi: Vmi = serde_json::from_value(value).unwrap();
        assert!(VmRecords::of(&vmi, &policy()).unwrap().is_some());
        assert!(VmRecords::of(&vmi, &Policy { only_ready: true, ..policy() }).unwrap().is_none());
    }

    #[test]
    fn a_name_that_lies_below_another_vm_is_refused() {
        for (namespace, name) in
            [("ns1", "a.b"), ("a.b", "vm1"), ("ns1", "VM1"), ("ns1", ""), ("", "vm1"), ("ns1", "é")]
        {
            assert!(vm_name(namespace, name).is_err(), "{namespace}/{name}");
        }
    }

    #[test]
    fn only_trusted_sources_are_believed_but_the_nic_keeps_its_name() {
        let object = vmi(json!([
            {"name": "blue", "ipAddresses": ["10.1.0.5"], "infoSource": "domain, guest-agent"},
            {"name": "red", "ipAddresses": ["10.2.0.5"], "infoSource": "wire"},
        ]));
        let vmi: Vmi = serde_json::from_value(object).unwrap();
        let trusted = vec![InfoSource::GuestAgent];
        let got = VmRecords::of(&vmi, &Policy { trusted, ..policy() }).unwrap().unwrap();
        assert_eq!(got.nics[0].addresses.iter().count(), 1);
        assert_eq!(
            (got.nics[1].name.to_string().as_str(), got.nics[1].addresses.is_empty()),
            ("red.vm1.ns1", true)
        );
    }

    #[test]
    fn ten_thousand_nics_on_one_vm_are_bounded() {
        let nics: Vec<_> =
            (0..10_000).map(|n| json!({"name": format!("n{n}"), "ipAddresses": ["10.1.0.5"]})).collect();
        assert_eq!(records(vmi(json!(nics))).unwrap().nics.len(), MAX_NICS);
    }
}
