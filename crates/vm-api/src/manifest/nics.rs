//! From a manifest as written to a [`VmSpec`](super::VmSpec): NICs, each joined with its network by name.
//!
//! A name that occurs twice, or on one side only, is an error naming the entry; so is a binding that does not go with
//! its network. What a masqueraded NIC can ask for besides is in [`super::masquerade`].

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use net_types::{Mac, PciAddress};

use super::check::{At, FieldError, Problem, mac};
use super::dhcp_options;
use super::masquerade::{self, Subnets};
use super::raw;
use super::spec::{Binding, DhcpOptions, Masquerade, Nic};
use crate::nad::NadName;
use crate::vmi::{Network, NetworkSource, PodNetwork};

/// What KubeVirt calls the network of a VM that names none.
const DEFAULT_NETWORK: &str = "default";

/// A network as a manifest's list has it.
enum Source {
    Pod(Subnets),
    Multus(NadName),
}

/// How a manifest wants a NIC bound.
#[derive(Clone, Copy)]
enum Kind {
    Bridge,
    Masquerade,
    Sriov,
    VhostUser,
}

/// The names of `binding` that are known.
const PLUGIN_BINDINGS: &str = "vhostuser";

/// Joins `domain.devices.interfaces` with `networks`; `at` is the instance's spec.
pub(super) fn nics(
    interfaces: Vec<raw::Interface>,
    networks: Vec<Network>,
    namespace: &str,
    at: &At,
) -> Result<Vec<Nic>, FieldError> {
    let interfaces_at = at.field("domain").field("devices").field("interfaces");
    let networks_at = at.field("networks");
    let mut by_name = networks_by_name(networks, namespace, &networks_at)?;
    let mut nics = Vec::with_capacity(interfaces.len());
    let mut seen = BTreeSet::new();
    for (index, mut interface) in interfaces.into_iter().enumerate() {
        let at = interfaces_at.item(index);
        let name = interface.name.clone();
        let (kind, mac) = checked_interface(&interface, &at)?;
        let pci_address = pci_address(interface.pci_address.as_deref(), &nics, &at.field("pciAddress"))?;
        if !seen.insert(name.clone()) {
            return Err(at.field("name").conflict(format!("a second interface is called {name:?}")));
        }
        let (_, source) = by_name
            .remove(&name)
            .ok_or_else(|| at.field("name").conflict(format!("no network is called {name:?}")))?;
        let absent = is_absent(&interface, kind, &at)?;
        let dhcp = dhcp_options::checked(mem::take(&mut interface.dhcp_options), &at.field("dhcpOptions"))?;
        let nic = Nic { name, mac, binding: binding(kind, source, interface, &at)?, pci_address, dhcp };
        if !absent {
            nics.push(nic);
        }
    }
    match by_name.into_iter().next() {
        Some((name, (index, _))) => {
            Err(networks_at.item(index).conflict(format!("no interface is called {name:?}")))
        }
        None => Ok(nics),
    }
}

/// The NIC of a VM that names none: masqueraded, on the pod network.
pub(super) fn default() -> Nic {
    Nic {
        name: DEFAULT_NETWORK.to_owned(),
        mac: None,
        binding: Binding::Masquerade(Masquerade::default()),
        pci_address: None,
        dhcp: DhcpOptions::default(),
    }
}

/// Networks by their name, each with its place in the list.
fn networks_by_name(
    networks: Vec<Network>,
    namespace: &str,
    at: &At,
) -> Result<BTreeMap<String, (usize, Source)>, FieldError> {
    let mut by_name = BTreeMap::new();
    for (index, Network { name, source: NetworkSource { pod, multus } }) in networks.into_iter().enumerate() {
        let at = at.item(index);
        interface_name(&name, &at.field("name"))?;
        let source = match (pod, multus) {
            (Some(PodNetwork { vm_network_cidr, vm_ipv6_network_cidr }), None) => {
                if by_name.values().any(|(_, source)| matches!(source, Source::Pod(_))) {
                    return Err(at.field("pod").conflict("a second pod network; a VM has one"));
                }
                Source::Pod(masquerade::subnets(vm_network_cidr, vm_ipv6_network_cidr, &at.field("pod"))?)
            }
            (None, Some(multus)) => Source::Multus(
                NadName::parse(&multus.network_name, namespace)
                    .map_err(|error| at.field("multus").field("networkName").problem(error))?,
            ),
            (None, None) | (Some(_), Some(_)) => {
                return Err(at.conflict("exactly one of pod and multus is required"));
            }
        };
        if by_name.insert(name.clone(), (index, source)).is_some() {
            return Err(at.field("name").conflict(format!("a second network is called {name:?}")));
        }
    }
    Ok(by_name)
}

/// Checks everything of an interface that is the same for all bindings.
fn checked_interface(interface: &raw::Interface, at: &At) -> Result<(Kind, Option<Mac>), FieldError> {
    interface_name(&interface.name, &at.field("name"))?;
    let kind = kind(interface, at)?;
    match interface.model.as_deref() {
        None | Some("" | "virtio") => {}
        Some(other) => {
            return Err(at.field("model").not_allowed(other, "virtio; other models are not offered"));
        }
    }
    let mac = match interface.mac_address.as_deref() {
        None | Some("") => None,
        Some(text) => Some(mac(text, &at.field("macAddress"))?),
    };
    Ok((kind, mac))
}

/// True for an interface that the VM starts without, as one that was unplugged from it in KubeVirt.
fn is_absent(interface: &raw::Interface, kind: Kind, at: &At) -> Result<bool, FieldError> {
    match interface.state.as_deref() {
        None | Some("" | "up") => Ok(false),
        Some("absent") if !matches!(kind, Kind::Masquerade) => Ok(true),
        Some(other) => Err(at.field("state").not_allowed(other, "up; absent, except on the pod network")),
    }
}

fn kind(interface: &raw::Interface, at: &At) -> Result<Kind, FieldError> {
    let raw::Interface { bridge, masquerade, sriov, binding, .. } = interface;
    match (bridge, masquerade, sriov, binding) {
        (Some(_), None, None, None) => Ok(Kind::Bridge),
        (None, Some(_), None, None) => Ok(Kind::Masquerade),
        (None, None, Some(_), None) => Ok(Kind::Sriov),
        (None, None, None, Some(raw::PluginBinding { name })) if name == PLUGIN_BINDINGS => {
            Ok(Kind::VhostUser)
        }
        (None, None, None, Some(raw::PluginBinding { name })) => {
            Err(at.field("binding").field("name").not_allowed(name, PLUGIN_BINDINGS))
        }
        (None, None, None, None) => Err(at.conflict(
            "a binding is required: bridge: {}, masquerade: {}, sriov: {} or binding: {name: vhostuser}",
        )),
        _ => Err(at.conflict("bridge, masquerade, sriov and binding exclude one another")),
    }
}

fn binding(kind: Kind, source: Source, interface: raw::Interface, at: &At) -> Result<Binding, FieldError> {
    match (kind, source) {
        (Kind::Bridge, Source::Multus(nad)) => Ok(Binding::Bridge(nad)),
        (Kind::Sriov, Source::Multus(nad)) => Ok(Binding::Sriov(nad)),
        (Kind::VhostUser, Source::Multus(nad)) => Ok(Binding::VhostUser(nad)),
        (Kind::Masquerade, Source::Pod(subnets)) => {
            let raw::Interface { ports, port_ranges, .. } = interface;
            masquerade::checked(subnets, ports, port_ranges, at).map(Binding::Masquerade)
        }
        (Kind::Bridge, Source::Pod(_)) => Err(at.field("bridge").problem(Problem::Conflict(
            "the pod network takes masquerade: {}; a bridge would take the pod's own address away from it"
                .to_owned(),
        ))),
        (Kind::Sriov, Source::Pod(_)) => Err(at
            .field("sriov")
            .conflict("the pod network takes masquerade: {}; sriov takes a multus network")),
        (Kind::VhostUser, Source::Pod(_)) => Err(at
            .field("binding")
            .conflict("the pod network takes masquerade: {}; vhostuser takes a multus network")),
        (Kind::Masquerade, Source::Multus(_)) => Err(at
            .field("masquerade")
            .conflict("goes with the pod network only; a multus network takes bridge: {}")),
    }
}

/// Where the guest is to find a NIC, on its one bus.
fn pci_address(text: Option<&str>, others: &[Nic], at: &At) -> Result<Option<PciAddress>, FieldError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let address: PciAddress = text.parse().map_err(|error| at.problem(error))?;
    if (address.domain(), address.bus(), address.function()) != (0, 0, 0) || address.device() == 0 {
        return Err(at.not_allowed(text, "0000:00:01.0 to 0000:00:1f.0"));
    }
    match others.iter().find(|nic| nic.pci_address == Some(address)) {
        Some(nic) => Err(at.conflict(format!("interface {} is at {address} already", nic.name))),
        None => Ok(Some(address)),
    }
}

/// KubeVirt's rule for the names of interfaces and networks.
fn interface_name(name: &str, at: &At) -> Result<(), FieldError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if !name.is_empty() && name.len() <= 63 && name.bytes().all(allowed) {
        Ok(())
    } else {
        Err(at.not_allowed(name, "1 to 63 letters, digits, '-' and '_'"))
    }
}
