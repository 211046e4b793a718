//! The pod network: what `pod: {}` means on this node.
//!
//! A CNI network of the administrator's (`up --pod-network`), or else [`built_in`]: a bridge of the launcher's own that
//! leads to wherever the node's routes lead, under the node's addresses. Read by `up` when it plans; what it says then
//! is recorded with the VM.

use std::fs;

use cni::runtime::{NetworkConfigError, NetworkConfigList};
use serde_json::{Value, json};

use super::layout::Layout;

/// Name of the built-in network, and of its bridge.
const NAME: &str = "guestwire-pods";
const BRIDGE: &str = "guestwire0";
/// Its subnets, chosen not to be in anybody's way: no container engine's default, no guest's (10.0.2.0/24), and a
/// random unique local prefix (RFC 4193).
const V4: &str = "10.213.0.0/16";
const V6: &str = "fd6f:2a91:c34e::/64";
/// Whether new links have IPv6; absent if the kernel has none.
const V6_DISABLED: &str = "/proc/sys/net/ipv6/conf/default/disable_ipv6";

/// Pods on a bridge of their own, reached from the node by their addresses, reaching out under the node's.
///
/// # Errors
/// None that is known: the text is this module's.
pub(crate) fn built_in(layout: &Layout) -> Result<NetworkConfigList, NetworkConfigError> {
    let has_v6 = fs::read_to_string(V6_DISABLED).is_ok_and(|disabled| disabled.trim() == "0");
    NetworkConfigList::try_from(config(layout, has_v6))
}

fn config(layout: &Layout, has_v6: bool) -> Value {
    let subnets = if has_v6 { &[V4, V6][..] } else { &[V4] };
    let ranges: Vec<_> = subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
    json!({
        "cniVersion": "1.0.0",
        "name": NAME,
        "plugins": [{
            "type": "cnv-bridge",
            "bridge": BRIDGE,
            "isDefaultGateway": true,
            "ipMasq": true,
            "ipam": {
                "type": "host-local",
                "ranges": ranges,
                // With the VMs' own records: a reboot ends both.
                "dataDir": layout.ipam(),
            },
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout { run: "/run/x".into(), state: "/var/lib/x".into() }
    }

    #[test]
    fn the_built_in_network_is_one() {
        for has_v6 in [false, true] {
            let network = NetworkConfigList::try_from(config(&layout(), has_v6)).unwrap();
            assert_eq!(network.name(), NAME);
            let [bridge] = network.plugins() else { panic!("{network:?}") };
            assert_eq!((bridge.kind(), bridge.ipam()), ("cnv-bridge", Some("host-local")));
        }
        assert_eq!(config(&layout(), false)["plugins"][0]["ipam"]["ranges"], json!([[{"subnet": V4}]]));
    }
}
