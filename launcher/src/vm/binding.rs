//! How a NIC's binding is carried out: the plugin at the end of its network's chain, and the names in the pod.

use std::path::PathBuf;

use cni::runtime::{NetworkConfigError, NetworkConfigList};
use kubevirt_names::Names;
use net_types::IfNameError;
use serde_json::{Map, Value, json};
use vm_api::manifest::{Binding, Masquerade, PortRange};

use super::plan::PlannedNic;
use crate::control::QueuePairs;

/// The plugin that turns a pod's NIC into a tap; a device is the guest's without one.
pub(crate) fn plugin(binding: &Binding) -> Option<&'static str> {
    match binding {
        Binding::Bridge(_) => Some("vm-tap"),
        Binding::Masquerade(_) => Some("masquerade"),
        Binding::Sriov(_) | Binding::VhostUser(_) => None,
    }
}

/// The plugin that a network for the binding `vhostuser` has at its end.
pub(crate) const VHOST_USER: &str = "vhost-user";
/// Where its daemon is asked, unless the network says otherwise.
const VHOST_CONTROL: &str = "/run/guestwire/vhost.sock";

/// The control socket of the daemon behind a network that ends in [`VHOST_USER`]; none if it does not.
pub(crate) fn vhost_control(network: &NetworkConfigList) -> Option<PathBuf> {
    let last = network.plugins().last().filter(|plugin| plugin.kind() == VHOST_USER)?;
    let control = last.text("control").unwrap_or(VHOST_CONTROL);
    Some(PathBuf::from(control))
}

/// How many queue pairs the backend behind such a network serves at most.
pub(crate) fn vhost_queues(network: &NetworkConfigList) -> QueuePairs {
    let queues = network.plugins().last().and_then(|plugin| plugin.number("queues"));
    // What is no number of pairs the plugin refuses by itself.
    queues.and_then(|queues| u16::try_from(queues).ok()?.try_into().ok()).unwrap_or_default()
}

impl PlannedNic {
    /// The chain as it is run: the network's own, and the binding's plugin with a tap for user and group `owner`. A network
    /// may have that plugin itself, to say how it wants it.
    pub(crate) fn chain(&self, owner: u32) -> Result<NetworkConfigList, NetworkConfigError> {
        let Some(plugin) = plugin(&self.binding) else { return Ok(self.network.clone()) };
        let mut config =
            json!({"type": plugin, "owner": owner, "group": owner, "queues": u16::from(self.pairs)});
        if let (Binding::Masquerade(masquerade), Some(config)) = (&self.binding, config.as_object_mut()) {
            forward(masquerade, config);
        }
        self.network.clone().with_plugin(config.as_object().cloned().unwrap_or_default())
    }

    /// The names of the NIC's links in the pod, as KubeVirt gives them.
    pub(crate) fn names(&self) -> Result<Names, IfNameError> {
        let pod = match &self.binding {
            Binding::Bridge(_) | Binding::Sriov(_) | Binding::VhostUser(_) => {
                kubevirt_names::secondary(&self.name)?
            }
            Binding::Masquerade(_) => kubevirt_names::primary()?,
        };
        Names::around(&pod)
    }
}

fn forward(masquerade: &Masquerade, config: &mut Map<String, Value>) {
    let Masquerade { v4, v6, ports } = masquerade;
    if let Some(v4) = v4 {
        config.insert("vmNetworkCIDR".to_owned(), v4.to_string().into());
    }
    if let Some(v6) = v6 {
        config.insert("vmIPv6NetworkCIDR".to_owned(), v6.to_string().into());
    }
    let ranges: Vec<_> = ports
        .iter()
        .map(|PortRange { protocol, first, last }| json!({"start": first, "end": last, "protocol": protocol}))
        .collect();
    if !ranges.is_empty() {
        config.insert("portRanges".to_owned(), ranges.into());
    }
}

#[cfg(test)]
mod tests {
    use vm_api::manifest::{DhcpOptions, Protocol};
    use vm_api::nad::NadName;

    use super::*;

    fn nic(binding: Binding) -> PlannedNic {
        let network = NetworkConfigList::parse(r#"{"name": "n", "type": "cnv-bridge"}"#).unwrap();
        PlannedNic {
            name: "blue".to_owned(),
            binding,
            network,
            mac: None,
            devices: Vec::new(),
            slot: None,
            pairs: 3.try_into().unwrap(),
            expected: Vec::new(),
            dhcp: DhcpOptions::default(),
        }
    }

    fn last_plugin(nic: &PlannedNic) -> Value {
        let chain = Value::from(nic.chain(107).unwrap());
        chain["plugins"].as_array().unwrap().last().unwrap().clone()
    }

    #[test]
    fn a_bridged_nic_gets_a_tap_and_kubevirts_hashed_names() {
        let nic = nic(Binding::Bridge(NadName::parse("red", "ns").unwrap()));
        assert_eq!(last_plugin(&nic), json!({"type": "vm-tap", "owner": 107, "group": 107, "queues": 3}));
        let Names { pod, bridge, tap } = nic.names().unwrap();
        // The network "blue" of KubeVirt's own examples.
        assert_eq!(
            [pod, bridge, tap].map(|name| name.to_string()),
            ["pod16477688c0e", "k6t-16477688c0e", "tap16477688c0e"]
        );
    }

    #[test]
    fn a_network_says_itself_how_its_tap_is_joined() {
        let plugins = r#"[{"type": "cnv-bridge"}, {"type": "vm-tap", "mode": "tc", "owner": 1}, {"type": "cnv-tuning"}]"#;
        let mut nic = nic(Binding::Bridge(NadName::parse("red", "ns").unwrap()));
        nic.network = NetworkConfigList::parse(&format!(r#"{{"name": "n", "plugins": {plugins}}}"#)).unwrap();
        let chain = Value::from(nic.chain(107).unwrap());
        let tap = json!({"type": "vm-tap", "mode": "tc", "owner": 107, "group": 107, "queues": 3});
        assert_eq!(chain["plugins"], json!([{"type": "cnv-bridge"}, tap, {"type": "cnv-tuning"}]));
    }

    #[test]
    fn what_a_masqueraded_nic_asks_for_reaches_the_plugin() {
        let ports = vec![PortRange { protocol: Protocol::Udp, first: 53, last: 53 }];
        let masquerade =
            Masquerade { v4: Some("10.9.0.0/24".parse().unwrap()), ports, ..Masquerade::default() };
        let nic = nic(Binding::Masquerade(masquerade));
        let expected = json!({
            "type": "masquerade", "owner": 107, "group": 107, "queues": 3, "vmNetworkCIDR": "10.9.0.0/24",
            "portRanges": [{"start": 53, "end": 53, "protocol": "UDP"}],
        });
        assert_eq!(last_plugin(&nic), expected);
        let Names { pod, bridge, tap } = nic.names().unwrap();
        assert_eq!([pod, bridge, tap].map(|name| name.to_string()), ["eth0", "k6t-eth0", "tap0"]);
    }
}
