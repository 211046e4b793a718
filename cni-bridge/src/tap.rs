//! `vm-tap`: turns a pod interface into a tap for a virtual machine.
//!
//! Bridge mode, as KubeVirt's bridge binding has it, all of it inside the pod's namespace:
//!
//! ```text
//!   before            after
//!   podX ── node      X-nic ── node        the pod's end of the veth, renamed, with the bridge's address
//!                       │
//!                     k6t-X                a bridge
//!                       │
//!                     tapX ── guest        a persistent tap, owned by the user that runs the guest
//!                     podX                 a dummy with the name, address and MTU the pod interface had
//! ```
//!
//! The guest takes the pod interface's address, so whatever the node knows of the pod stays true. The dummy is for
//! whoever asks the pod's namespace what the interface was (KubeVirt does).
//!
//! In `tc` mode there is no bridge and nothing is renamed ([`tc`]):
//!
//! ```text
//!   podX ── node      podX ── node         what comes in by one leaves by the other
//!                       ↕
//!                     tapX ── guest
//! ```
//!
//! The pod interface's alias says that it was turned into a tap, and a file ([`before`]) what it was: state, settings,
//! addresses and routes. DEL reads both and puts everything back; when the namespace is gone, only the file is left to remove.
//! Addresses and routes are also in the result, for whoever tells them to the guest.

mod attach;
mod before;
mod check;
mod config;
mod detach;
mod error;
mod names;
mod pod;
mod tc;

use cni::{Error, Request, Success};

use before::Record;
use config::Config;
use pod::Pod;

/// Reads a request's configuration.
pub(crate) fn read(request: &Request) -> Result<(), Error> {
    Config::try_from(request).map(drop)
}

/// The plugin.
#[derive(Debug, Clone, Copy, Default)]
pub struct VmTap;

impl cni::Plugin for VmTap {
    fn add(&self, request: &Request) -> Result<Success, Error> {
        let config = Config::try_from(request)?;
        let pod = Pod::open(request)?;
        Ok(attach::add(&config, &pod, Record::of(request)?, request)?)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        match Pod::open(request) {
            Ok(pod) => Ok(detach::del(&pod, Record::of(request)?)?),
            // With the namespace went everything that was in it.
            Err(error) if error.is_gone() => Ok(Record::of(request)?.forget()?),
            Err(error) => Err(error.into()),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let config = Config::try_from(request)?;
        Ok(check::check(&config, &Pod::open(request)?, Record::of(request)?)?)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Config::try_from(request)?;
        Ok(check::status()?)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        // All else is in the pods' namespaces and goes with them.
        Ok(before::gc(&request.network, &request.valid_attachments()?)?)
    }
}
