//! `cnv-bridge`: a port on one of the node's bridges for a pod.
//!
//! ADD makes a veth pair with one end in the pod (CNI_IFNAME) and the other on the bridge, in the VLAN the network
//! asks for, behind a spoof check if it asks for one. The host end's name is computed from container and interface
//! and its alias names them, so DEL, CHECK and GC find it without a namespace, a journal, or a look at other ports,
//! whatever a later plugin did to the pod's end. If somebody has renamed it, its alternative
//! name, computed likewise, finds it.
//!
//! An ADD that fails is undone by the same code as DEL, which removes what is there and minds nothing that is not.

mod attach;
mod check;
mod config;
mod detach;
mod device;
mod error;
mod gateway;
mod layer3;
mod masquerade;
mod port;
mod uplink;
mod vlans;

use cni::{Error, Ipam, Request, Success};

pub(crate) use device::BridgeLock;
pub(crate) use error::BridgeError;
pub(crate) use vlans::Vlans;

use config::Config;
use port::Port;

/// True if `cnv-bridge` made that link for a pod.
pub(crate) fn is_port_of_ours(link: &netlink::Link) -> bool {
    port::owner(&link.alias).is_some()
}

/// Reads a request's configuration.
pub(crate) fn read(request: &Request) -> Result<(), Error> {
    Config::try_from(request).map(drop)
}

/// Completes what IPAM assigned as for a network whose default gateway the bridge is.
pub(crate) fn complete(mut assigned: Success) -> Result<Success, Error> {
    layer3::complete(config::Gateway::DefaultRoute, 0, &mut assigned)?;
    Ok(assigned)
}

/// The plugin.
#[derive(Debug, Clone, Copy, Default)]
pub struct CnvBridge;

impl cni::Plugin for CnvBridge {
    fn add(&self, request: &Request) -> Result<Success, Error> {
        let config = Config::try_from(request)?;
        Ok(attach::add(&config, &Port::of(request)?, Ipam::of(request)?.as_ref())?)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let port = match Port::of(request) {
            Ok(port) => port,
            // ADD refuses it before it changes anything. A DEL that failed would be repeated for ever.
            Err(error) => {
                tracing::warn!("there is no such port: {error}");
                return Ok(());
            }
        };
        match Config::try_from(request) {
            Ok(config) => Ok(detach::del(&config, &port, Ipam::of(request)?.as_ref())?),
            // ADD refuses such a configuration before it changes anything; should another release have taken it, what
            // it made is found without it.
            Err(error) => {
                tracing::warn!("the configuration is not usable: {error}; removing the port if there is one");
                Ok(detach::remove_known_port(&port)?)
            }
        }
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let config = Config::try_from(request)?;
        if let Some(ipam) = Ipam::of(request)? {
            ipam.check()?;
        }
        Ok(check::check(&config, &Port::of(request)?, request.prev_result.as_ref())?)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let config = Config::try_from(request)?;
        check::status(&config, Ipam::of(request)?.as_ref()).map_err(|error| match error.cuts_off_ports() {
            true => Error::from(error).limits_connectivity(),
            false => error.into(),
        })
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let config = Config::try_from(request)?;
        let valid = request.valid_attachments()?;
        Ok(detach::gc(&config, &request.network, &valid, Ipam::of(request)?.as_ref())?)
    }
}
