//! PCI functions of the node that guests may have: what a device plugin would hand out.
//!
//! A cluster's device plugin chooses a function and Multus tells it to the network's plugin. Without a cluster, `up` is
//! given pools of functions by their resource's name (`--device-pool`), and tries those of a network's resource in turn:
//! the plugin knows which of them are taken, so no list of them is kept here.

use std::collections::BTreeMap;
use std::str::FromStr;

use cni::runtime::NetworkConfigList;
use net_types::{PciAddress, PciAddressError};

/// One pool: `openshift.io/nics=0000:01:10.0,0000:01:10.2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevicePool {
    resource: String,
    devices: Vec<PciAddress>,
}

/// Why a text is no pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PoolError {
    /// No name, or no list.
    #[error("expected RESOURCE=ADDRESS[,ADDRESS...], such as openshift.io/nics=0000:01:10.0,0000:01:10.2")]
    Form,
    /// An address.
    #[error(transparent)]
    Address(#[from] PciAddressError),
}

impl FromStr for DevicePool {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let (resource, devices) = text.split_once('=').ok_or(PoolError::Form)?;
        if resource.is_empty() || devices.is_empty() {
            return Err(PoolError::Form);
        }
        let devices = devices.split(',').map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { resource: resource.to_owned(), devices })
    }
}

/// All pools.
#[derive(Debug, Clone, Default)]
pub(crate) struct DevicePools(BTreeMap<String, Vec<PciAddress>>);

/// Why no device can be chosen for a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DevicesError {
    /// The network's own.
    #[error("deviceID of network {network}")]
    DeviceId {
        /// Which.
        network: String,
        /// What is wrong with it.
        source: PciAddressError,
    },
    /// The network names neither.
    #[error(
        "network {network} says nothing of devices: it needs the annotation k8s.v1.cni.cncf.io/resourceName and a \
         --device-pool of that name, or a deviceID"
    )]
    Nothing {
        /// Which.
        network: String,
    },
    /// The resource is no pool's.
    #[error("there is no --device-pool {resource}; known: {}", known.join(", "))]
    NoPool {
        /// The resource's name.
        resource: String,
        /// The pools' names.
        known: Vec<String>,
    },
}

impl FromIterator<DevicePool> for DevicePools {
    fn from_iter<T: IntoIterator<Item = DevicePool>>(pools: T) -> Self {
        let mut all = Self::default();
        for DevicePool { resource, devices } in pools {
            all.0.entry(resource).or_default().extend(devices);
        }
        all
    }
}

impl DevicePools {
    /// The devices for `network`, at least one: its own, else those of its `resource`.
    pub(crate) fn of_network(
        &self,
        network: &NetworkConfigList,
        resource: Option<&str>,
    ) -> Result<Vec<PciAddress>, DevicesError> {
        let name = || network.name().to_owned();
        if let Some(device) = network.device() {
            let device =
                device.parse().map_err(|source| DevicesError::DeviceId { network: name(), source })?;
            return Ok(vec![device]);
        }
        let resource = resource.ok_or_else(|| DevicesError::Nothing { network: name() })?;
        self.0.get(resource).cloned().ok_or_else(|| DevicesError::NoPool {
            resource: resource.to_owned(),
            known: self.0.keys().cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(device: &str) -> NetworkConfigList {
        let text = format!(r#"{{"name": "blue", "type": "sriov"{device}}}"#);
        NetworkConfigList::parse(&text).unwrap()
    }

    #[test]
    fn a_networks_devices_are_its_own_or_its_resources() {
        let pools = ["a/x=0000:01:10.0", "a/y=0000:01:10.2", "a/x=0000:01:10.4,0000:01:10.6"];
        let pools: DevicePools = pools.iter().map(|text| text.parse::<DevicePool>().unwrap()).collect();
        let devices = |device, resource| {
            let found = pools.of_network(&network(device), resource)?;
            Ok::<_, DevicesError>(found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(devices("", Some("a/x")).unwrap(), "0000:01:10.0 0000:01:10.4 0000:01:10.6");
        assert_eq!(devices(r#", "deviceID": "0000:02:00.1""#, Some("a/x")).unwrap(), "0000:02:00.1");
        let message = devices("", Some("a/z")).unwrap_err().to_string();
        assert_eq!(message, "there is no --device-pool a/z; known: a/x, a/y");
        assert!(devices("", None).unwrap_err().to_string().contains("says nothing of devices"));
        assert!(matches!(devices(r#", "deviceID": "eth0""#, None), Err(DevicesError::DeviceId { .. })));
    }

    #[test]
    fn what_is_no_pool_is_refused() {
        for text in ["", "a", "=0000:01:10.0", "a=", "a=0000:01:10.0,"] {
            assert!(text.parse::<DevicePool>().is_err(), "{text:?}");
        }
    }
}
