//! The names of the links in a pod, as KubeVirt computes them (its `network/namescheme` and `network/driver`), so
//! that its `tap` attachment finds them.

use net_types::{IfName, IfNameError};
use sha2::{Digest as _, Sha256};

/// The pod's primary interface.
const PRIMARY: &str = "eth0";
/// Digits of a hash that a name carries.
const DIGITS: usize = 11;

/// All names around one pod interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    /// The pod interface, before; the dummy, after.
    pub(super) pod: IfName,
    /// The pod interface, after.
    pub(super) nic: IfName,
    /// The dummy until the pod interface's name is free.
    pub(super) dummy: IfName,
    /// The bridge.
    pub(super) bridge: IfName,
    /// The tap.
    pub(super) tap: IfName,
}

impl Names {
    /// The names that belong to the pod interface `pod`.
    pub(super) fn around(pod: &IfName) -> Result<Self, IfNameError> {
        let name = pod.as_str();
        let ordinal = name.strip_prefix("net").filter(|rest| !rest.is_empty() && is_digits(rest));
        let hashed = name.strip_prefix("pod").filter(|rest| rest.len() == DIGITS);
        let (nic, tap, bridge) = match (ordinal, hashed) {
            _ if name == PRIMARY => (name.to_owned(), "0".to_owned(), name.to_owned()),
            (Some(number), _) => (name.to_owned(), number.to_owned(), name.to_owned()),
            (None, Some(hash)) => (hash.to_owned(), hash.to_owned(), hash.to_owned()),
            // A name KubeVirt would not have chosen gets hashed ones, which always fit.
            (None, None) => (hash(name), hash(name), hash(name)),
        };
        Ok(Self {
            pod: pod.clone(),
            nic: format!("{nic}-nic").parse()?,
            dummy: format!("{nic}-pod").parse()?,
            bridge: format!("k6t-{bridge}").parse()?,
            tap: format!("tap{tap}").parse()?,
        })
    }
}

/// The pod interface of the VM's network `logical_name`, were it a secondary network.
pub(super) fn secondary(logical_name: &str) -> Result<IfName, IfNameError> {
    format!("pod{}", hash(logical_name)).parse()
}

/// The pod interface of the VM's pod network.
pub(super) fn primary() -> Result<IfName, IfNameError> {
    PRIMARY.parse()
}

fn hash(text: &str) -> String {
    let digits: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    digits.chars().take(DIGITS).collect()
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(pod: &str) -> [String; 4] {
        let Names { pod: _, nic, dummy, bridge, tap } = Names::around(&pod.parse().unwrap()).unwrap();
        [nic, dummy, bridge, tap].map(|name| name.to_string())
    }

    #[test]
    fn names_are_those_kubevirt_looks_for() {
        assert_eq!(around("eth0"), ["eth0-nic", "eth0-pod", "k6t-eth0", "tap0"]);
        assert_eq!(around("net1"), ["net1-nic", "net1-pod", "k6t-net1", "tap1"]);
        // SHA-256 of "bridge-net" begins with these digits (sha256sum).
        assert_eq!(secondary("bridge-net").unwrap().as_str(), "pod03b731d2111");
    }

    #[test]
    fn any_name_gets_names_that_fit() {
        for pod in ["pod03b731d2111", "fifteen-bytes-x", "net", "netx", "net12345678"] {
            for name in around(pod) {
                assert!(name.len() <= 15, "{pod}: {name}");
            }
        }
    }
}
