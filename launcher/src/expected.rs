//! Which addresses cloud-init will configure on a VM's NICs, as far as its network data tells.
//!
//! A guest with a static address may say nothing for a long time. Knowing what to ask it about, the observer finds
//! out at once; it publishes what the guest answers for, not what is read here. So everything that is not plainly
//! understood is left out, and a wrong guess costs a question.
//!
//! Source: cloud-init, "Networking config version 2": `ethernets: {<id>: {match: {macaddress}, addresses: […]}}`.

use std::net::IpAddr;

use net_types::Mac;
use serde_json::Value;
use vm_api::manifest::Nic;
use vm_api::yaml;

/// For each NIC, the addresses `network_data` gives it.
pub(crate) fn addresses(network_data: &[u8], nics: &[Nic]) -> Vec<Vec<IpAddr>> {
    let mut found = vec![Vec::new(); nics.len()];
    let document = std::str::from_utf8(network_data)
        .ok()
        .and_then(|text| yaml::documents(text).ok()?.into_iter().next());
    let Some(document) = document else { return found };
    let config = document.get("network").unwrap_or(&document);
    let ethernets = config.get("ethernets").and_then(Value::as_object);
    for (id, ethernet) in ethernets.into_iter().flatten() {
        let addresses = ethernet.get("addresses").and_then(Value::as_array).into_iter().flatten();
        let of_nic = nic_of(id, ethernet, nics).and_then(|index| found.get_mut(index));
        if let Some(of_nic) = of_nic {
            of_nic.extend(addresses.filter_map(address));
        }
    }
    found
}

/// Which NIC is meant: by its MAC if one is matched, else `eth<index>`.
fn nic_of(id: &str, ethernet: &Value, nics: &[Nic]) -> Option<usize> {
    match ethernet.get("match") {
        None => id.strip_prefix("eth")?.parse().ok(),
        Some(wanted) => {
            let wanted: Mac = wanted.get("macaddress")?.as_str()?.parse().ok()?;
            nics.iter().position(|nic| nic.mac == Some(wanted))
        }
    }
}

/// `10.0.0.1/24`; newer versions also have `{10.0.0.1/24: {label: …}}`.
fn address(value: &Value) -> Option<IpAddr> {
    let text = value.as_str().or_else(|| value.as_object()?.keys().next().map(String::as_str))?;
    text.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use vm_api::manifest::{Binding, DhcpOptions, Masquerade};

    use super::*;

    fn found(text: &str) -> Vec<Vec<String>> {
        let binding = || Binding::Masquerade(Masquerade::default());
        let nic = |mac| Nic {
            name: "n".into(),
            mac,
            binding: binding(),
            pci_address: None,
            dhcp: DhcpOptions::default(),
        };
        let nics = [nic(None), nic(Some(Mac([2, 0, 0, 0, 0, 1])))];
        let texts = |addresses: Vec<IpAddr>| addresses.iter().map(IpAddr::to_string).collect();
        addresses(text.as_bytes(), &nics).into_iter().map(texts).collect()
    }

    #[test]
    fn static_addresses_are_found_by_position_and_by_mac() {
        let text = "version: 2\nethernets: {eth0: {addresses: [10.10.10.14/24, {fd00::14/64: {}}]}, eth1: {dhcp4: true}}";
        assert_eq!(found(text), [vec!["10.10.10.14", "fd00::14"], vec![]]);
        let text =
            "network: {ethernets: {x: {match: {macaddress: '02:00:00:00:00:01'}, addresses: [10.0.0.1/8]}}}";
        assert_eq!(found(text), [vec![], vec!["10.0.0.1"]]);
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        let nothing = [vec![], vec![]] as [Vec<String>; 2];
        for text in ["", "[", "version: 1\nconfig: []", "ethernets: {ens3: {addresses: [10.0.0.1/8]}}"] {
            assert_eq!(found(text), nothing, "{text}");
        }
        assert_eq!(
            found("ethernets: {eth9: {addresses: [10.0.0.1]}, eth0: {addresses: [x, 5, {}]}}"),
            nothing
        );
    }
}
