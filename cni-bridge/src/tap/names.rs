//! The names `vm-tap` gives, beside those that KubeVirt's rule fixes ([`kubevirt_names`]).

use net_types::{IfName, IfNameError};

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
        let kubevirt_names::Names { pod, bridge, tap } = kubevirt_names::Names::around(pod)?;
        // The part of the name that tells one pod interface from another, as KubeVirt has it: "eth0", or a hash.
        let stem = bridge.as_str().trim_start_matches("k6t-");
        Ok(Self {
            nic: format!("{stem}-nic").parse()?,
            dummy: format!("{stem}-pod").parse()?,
            pod,
            bridge,
            tap,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_interface_keeps_a_name_that_says_what_it_was() {
        for (pod, nic, dummy) in [
            ("eth0", "eth0-nic", "eth0-pod"),
            ("net1", "net1-nic", "net1-pod"),
            ("pod03b731d2111", "03b731d2111-nic", "03b731d2111-pod"),
        ] {
            let names = Names::around(&pod.parse().unwrap()).unwrap();
            assert_eq!((names.nic.as_str(), names.dummy.as_str()), (nic, dummy));
        }
    }

    #[test]
    fn any_name_gets_names_that_fit() {
        for pod in ["fifteen-bytes-x", "net", "netx", "net12345678", "net123456789012"] {
            assert!(Names::around(&pod.parse().unwrap()).is_ok(), "{pod}");
        }
    }
}
