//! `masquerade`: connects a virtual machine to its pod's network by NAT, as KubeVirt's masquerade binding does.
//!
//! ```text
//!   eth0      the pod's interface, which stays as it is
//!     :       nftables: what arrives is the guest's (all, or listed ports); what leaves has the pod's address
//!   k6t-eth0  a bridge with the guest's gateway, 10.0.2.1/24 and fd10:0:2::1/120
//!     |
//!   tap0      a persistent tap, owned by the user that runs the guest, which is 10.0.2.2 and fd10:0:2::2
//! ```
//!
//! All of it is in the pod's namespace and goes with it; the aliases of bridge and tap say for whom they were made.
//! DEL without a namespace therefore has nothing to do, nor has GC. The guest's addresses are announced by whoever
//! runs the crate `guest-dhcp` on the bridge, a supervisor or [`serve`]: the plugin is gone when the guest starts.

mod attach;
mod check;
mod config;
mod detach;
mod error;
mod pod;
mod ruleset;
pub mod serve;
mod settings;

use cni::{Error, Request, Success};

use config::Config;
use pod::Pod;

/// The plugin.
#[derive(Debug, Clone, Copy, Default)]
pub struct Masquerade;

impl cni::Plugin for Masquerade {
    fn add(&self, request: &Request) -> Result<Success, Error> {
        let config = Config::try_from(request)?;
        let pod = Pod::open(request)?;
        Ok(attach::add(&config, &pod, request.prev_result.clone().unwrap_or_default())?)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let config = match Config::try_from(request) {
            Ok(config) => config,
            Err(error) => {
                // Else a runtime could never forget the attachment.
                tracing::warn!(
                    "nothing to remove: ADD refuses this configuration before it changes anything: {error}"
                );
                return Ok(());
            }
        };
        match Pod::open(request) {
            Ok(pod) => Ok(detach::del(&config, &pod)?),
            // With the namespace went everything that was in it.
            Err(error) if error.is_gone() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let config = Config::try_from(request)?;
        Ok(check::check(&config, &Pod::open(request)?)?)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let config = Config::try_from(request)?;
        Ok(check::status(&config)?)
    }

    fn gc(&self, _request: &Request) -> Result<(), Error> {
        // Everything is in the pods' namespaces and goes with them.
        Ok(())
    }
}
