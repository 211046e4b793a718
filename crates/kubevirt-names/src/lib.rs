//! The names of the links in a VM's pod, as KubeVirt computes them (its `network/namescheme` and `network/driver`), so
//! that its `tap` attachment finds what our plugins made, and they find what Multus made.
//!
//! Names only: which of them exist is for the callers to see.

use net_types::{IfName, IfNameError};
use sha2::{Digest as _, Sha256};

/// The pod's primary interface.
const PRIMARY: &str = "eth0";
/// Digits of a hash that a name carries.
const DIGITS: usize = 11;
/// Digits an ordinal name (`net1`) may have for the names made of it to fit.
const ORDINAL_DIGITS: usize = 8;

/// The links around one pod interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The pod interface.
    pub pod: IfName,
    /// The bridge between it and the guest.
    pub bridge: IfName,
    /// The guest's tap.
    pub tap: IfName,
}

impl Names {
    /// The names that belong to the pod interface `pod`.
    ///
    /// # Errors
    /// None that is known: every part fits. The type says what the kernel would refuse.
    pub fn around(pod: &IfName) -> Result<Self, IfNameError> {
        let name = pod.as_str();
        let ordinal = name
            .strip_prefix("net")
            .filter(|rest| (1..=ORDINAL_DIGITS).contains(&rest.len()) && is_digits(rest));
        let hashed = name.strip_prefix("pod").filter(|rest| rest.len() == DIGITS);
        let (tap, bridge) = match (ordinal, hashed) {
            _ if is_primary(pod) => ("0".to_owned(), name.to_owned()),
            (Some(number), _) => (number.to_owned(), name.to_owned()),
            (None, Some(hash)) => (hash.to_owned(), hash.to_owned()),
            // A name KubeVirt would not have chosen gets hashed ones, which always fit.
            (None, None) => (hash(name), hash(name)),
        };
        Ok(Self {
            pod: pod.clone(),
            bridge: format!("k6t-{bridge}").parse()?,
            tap: format!("tap{tap}").parse()?,
        })
    }
}

/// The pod interface of the VM's pod network.
///
/// # Errors
/// None: the name fits.
pub fn primary() -> Result<IfName, IfNameError> {
    PRIMARY.parse()
}

/// True for the pod interface of the VM's pod network.
pub fn is_primary(pod: &IfName) -> bool {
    pod.as_str() == PRIMARY
}

/// The pod interface of the VM's secondary network `logical_name` (its name in the VM, not that of its
/// NetworkAttachmentDefinition).
///
/// # Errors
/// None: the name fits.
pub fn secondary(logical_name: &str) -> Result<IfName, IfNameError> {
    format!("pod{}", hash(logical_name)).parse()
}

/// The first digits of a text's SHA-256.
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

    fn around(pod: &str) -> [String; 2] {
        let Names { pod: _, bridge, tap } = Names::around(&pod.parse().unwrap()).unwrap();
        [bridge, tap].map(|name| name.to_string())
    }

    #[test]
    fn names_are_those_kubevirt_looks_for() {
        assert_eq!(around("eth0"), ["k6t-eth0", "tap0"]);
        assert_eq!(around("net1"), ["k6t-net1", "tap1"]);
        assert_eq!(around("pod03b731d2111"), ["k6t-03b731d2111", "tap03b731d2111"]);
        // SHA-256 of "bridge-net" begins with these digits (sha256sum).
        assert_eq!(secondary("bridge-net").unwrap().as_str(), "pod03b731d2111");
    }

    #[test]
    fn any_name_gets_names_that_fit() {
        for pod in
            ["fifteen-bytes-x", "net", "netx", "net12345678", "net123456789012", "pod", "pod-of-somebody"]
        {
            for name in around(pod) {
                assert!(name.len() <= 15, "{pod}: {name}");
            }
        }
    }
}
