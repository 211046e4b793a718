//! The pod network: what `pod: {}` means on this node.
//!
//! A CNI network of the administrator's (`up --pod-network`), or else [`built_in`]: a bridge of the launcher's own that
//! leads to wherever the node's routes lead, under the node's addresses. Read by `up` when it plans; what it says then
//! is recorded with the VM.

use std::path::{Path, PathBuf};
use std::{fs, io};

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

/// Why a file is no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodNetworkError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no CNI configuration.
    #[error("{}", path.display())]
    Config {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: NetworkConfigError,
    },
}

/// The network in a CNI configuration file: a list of plugins or a single one.
pub(crate) fn read(path: &Path) -> Result<NetworkConfigList, PodNetworkError> {
    let text =
        fs::read_to_string(path).map_err(|source| PodNetworkError::Read { path: path.to_owned(), source })?;
    NetworkConfigList::parse(&text)
        .map_err(|source| PodNetworkError::Config { path: path.to_owned(), source })
}

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

    #[test]
    fn a_file_that_is_no_network_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pods.conflist");
        assert!(crate::chain(&read(&path).unwrap_err()).to_string().contains("cannot read"));
        fs::write(&path, r#"{"name": "n", "plugins": []}"#).unwrap();
        let message = crate::chain(&read(&path).unwrap_err()).to_string();
        assert!(message.ends_with("pods.conflist: plugins is empty"), "{message}");
    }
}
