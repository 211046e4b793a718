//! What the NICs of a VirtualMachine want.

use std::borrow::Cow;
use std::collections::HashSet;

use net_types::Mac;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::envelope::{Operation, Request};
use super::{Address, Few, MAX_NICS, Refusal, Want, parse_mac, refuse_shared};
use crate::segment::{Nic, Segment};

/// The fields of a VM that decide. Borrows from the review.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Vm<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow)]
    spec: Spec<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata<'a> {
    deletion_timestamp: Option<IgnoredAny>,
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    generate_name: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec<'a> {
    #[serde(borrow)]
    run_strategy: Option<Cow<'a, str>>,
    #[serde(borrow)]
    template: Option<Template<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Template<'a> {
    #[serde(borrow)]
    spec: InstanceSpec<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct InstanceSpec<'a> {
    #[serde(borrow)]
    domain: Domain<'a>,
    #[serde(borrow)]
    networks: Option<Few<Network<'a>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Domain<'a> {
    #[serde(borrow)]
    devices: Devices<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Devices<'a> {
    #[serde(borrow)]
    interfaces: Option<Few<Interface<'a>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Interface<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    mac_address: Option<Cow<'a, str>>,
    masquerade: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Network<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    multus: Option<Multus<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Multus<'a> {
    #[serde(borrow)]
    network_name: Cow<'a, str>,
}

impl Interface<'_> {
    fn mac_text(&self) -> Option<&str> {
        self.mac_address.as_deref().filter(|text| !text.is_empty())
    }
}

impl<'a> InstanceSpec<'a> {
    fn interfaces(&self) -> &[Interface<'a>] {
        self.domain.devices.interfaces.as_ref().map(|interfaces| &*interfaces.kept).unwrap_or_default()
    }

    fn networks(&self) -> &[Network<'a>] {
        self.networks.as_ref().map(|networks| &*networks.kept).unwrap_or_default()
    }

    /// More of either than there can be were not kept.
    fn check_counts(&self) -> Result<(), Refusal> {
        let interfaces = self.domain.devices.interfaces.as_ref().map_or(0, |interfaces| interfaces.count);
        let networks = self.networks.as_ref().map_or(0, |networks| networks.count);
        match (interfaces > MAX_NICS, networks > MAX_NICS) {
            (true, _) => Err(Refusal::TooMany(interfaces)),
            (false, true) => Err(Refusal::TooManyNetworks(networks)),
            (false, false) => Ok(()),
        }
    }

    /// KubeMacPool's choice: secondary networks, and the pod network behind NAT. In KubeVirt's bridge mode the guest
    /// takes over the address that the pod's own CNI plugin gave.
    fn is_ours(&self, interface: &Interface<'_>) -> bool {
        interface.masquerade.is_some()
            || self
                .networks()
                .iter()
                .any(|network| network.multus.is_some() && network.name == interface.name)
    }

    fn segment(&self, interface: &Interface<'_>, namespace: &str) -> Segment {
        let multus = self
            .networks()
            .iter()
            .find(|network| network.name == interface.name)
            .map(|network| &network.multus);
        match multus {
            Some(Some(multus)) => Segment::network(namespace, &multus.network_name),
            // The pod network: behind NAT, or with an address of its CNI plugin's choice.
            Some(None) | None => Segment::Alone,
        }
    }

    /// The addresses in the spec that are ones. Others were refused or never came by.
    fn macs(&self) -> Vec<Mac> {
        self.interfaces().iter().filter_map(|interface| interface.mac_text()?.parse().ok()).collect()
    }

    /// The same with where their frames go, for the index.
    pub(crate) fn nics(&self, namespace: &str) -> Vec<Nic> {
        let nic = |interface: &Interface<'_>| {
            let mac = interface.mac_text()?.parse().ok()?;
            Some(Nic { mac, segment: self.segment(interface, namespace) })
        };
        self.interfaces().iter().filter_map(nic).collect()
    }
}

impl Vm<'_> {
    fn instance(&self) -> Option<&InstanceSpec<'_>> {
        self.spec.template.as_ref().map(|template| &template.spec)
    }

    /// The NICs in the spec that have addresses.
    pub(crate) fn nics(&self, namespace: &str) -> Vec<Nic> {
        let mut nics = self.instance().map(|spec| spec.nics(namespace)).unwrap_or_default();
        if self.waits() {
            nics.iter_mut().for_each(|nic| nic.segment = Segment::Alone);
        }
        nics
    }

    /// The target of a migration between namespaces or clusters: it has no guest of its own until it has received one,
    /// and then another run strategy (KubeVirt, decentralized live migration).
    fn waits(&self) -> bool {
        self.spec.run_strategy.as_deref() == Some("WaitAsReceiver")
    }

    /// The namespace in its metadata.
    pub(crate) fn namespace(&self) -> &str {
        &self.metadata.namespace
    }

    /// The VM's name in its metadata.
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// The start of the name that will be made up for it.
    pub fn generate_name(&self) -> &str {
        &self.metadata.generate_name
    }
}

/// The most interesting part of a review of a VM: what its NICs want. Empty if nothing is to be done.
///
/// An update is judged only by what it changes: a VM that was stored with two equal addresses, or is being deleted,
/// must be able to lose its finalizers.
pub fn wants(request: &Request<'_, Vm<'_>>) -> Result<Vec<Want>, Refusal> {
    let empty = InstanceSpec::default();
    let old = match request.operation {
        Operation::Create => &empty,
        Operation::Update => request.old_object.as_ref().and_then(Vm::instance).unwrap_or(&empty),
        Operation::Delete | Operation::Connect => return Ok(Vec::new()),
    };
    let Some(object) = &request.object else { return Err(Refusal::Malformed("there is none".into())) };
    let Some(new) = object.instance().filter(|_| object.metadata.deletion_timestamp.is_none()) else {
        return Ok(Vec::new());
    };
    new.check_counts()?;
    let nics = new.interfaces();
    let old_nic = |name: &str| old.interfaces().iter().find(|old| old.name == name);
    let old_mac = |name: &str| old_nic(name)?.mac_text();
    let old_macs = old.macs();
    let old_nics = old.nics(&request.namespace);

    let mut wants = Vec::new();
    let mut names = HashSet::with_capacity(nics.len());
    for (index, nic) in nics.iter().enumerate() {
        let segment = new.segment(nic, &request.namespace);
        let stays = |mac| old_nics.iter().any(|old| old.mac == mac && old.segment == segment);
        let address = match (nic.mac_text(), old_mac(&nic.name).map(str::parse::<Mac>)) {
            (Some(text), _) => match text.parse() {
                Ok(mac) if old_macs.contains(&mac) => {
                    // Perhaps on another interface, or written differently.
                    if stays(mac) {
                        continue;
                    }
                    Address::Moved(mac)
                }
                // What came past us once need not be an address.
                Err(_) if old_mac(&nic.name) == Some(text) => continue,
                Ok(_) | Err(_) => Address::Named(parse_mac(&nic.name, text)?),
            },
            (None, Some(Ok(mac))) if mac.is_unicast() && stays(mac) => Address::Restored(mac),
            (None, Some(Ok(mac))) if mac.is_unicast() => Address::Carried(mac),
            // Stored without one before macpool was there, or asked: the guest has had another one ever since.
            (None, None) if old_nic(&nic.name).is_some_and(|nic| old.is_ours(nic)) => continue,
            (None, _) if new.is_ours(nic) => Address::Any,
            (None, _) => continue,
        };
        if !names.insert(&*nic.name) {
            return Err(Refusal::SameName(nic.name.clone().into_owned()));
        }
        let segment = if object.waits() { Segment::Alone } else { segment };
        wants.push(Want { index, nic: nic.name.clone().into_owned(), address, segment });
    }
    check_shared(nics, &wants, &old_macs)?;
    Ok(wants)
}

/// Refuses two equal addresses in the VM as it would be stored, unless it had them before.
fn check_shared(nics: &[Interface<'_>], wants: &[Want], old_macs: &[Mac]) -> Result<(), Refusal> {
    let written = nics.iter().filter_map(|nic| Some((&*nic.name, nic.mac_text()?.parse().ok()?)));
    let restored = wants.iter().filter_map(|want| match want.address {
        Address::Restored(mac) | Address::Carried(mac) => Some((want.nic.as_str(), mac)),
        Address::Any | Address::Named(_) | Address::Moved(_) => None,
    });
    let all: Vec<(&str, Mac)> = written.chain(restored).collect();
    let times = |mac: Mac, macs: &mut dyn Iterator<Item = Mac>| macs.filter(|other| *other == mac).count();
    let changed = all.iter().copied().filter(|(_, mac)| {
        times(*mac, &mut all.iter().map(|(_, mac)| *mac)) > times(*mac, &mut old_macs.iter().copied())
    });
    refuse_shared(changed)
}
