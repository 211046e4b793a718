//! The CNI plugin `vhost-user`: joins a pod interface to a socket that a guest's VMM connects to.
//!
//! It comes behind the plugin that makes the interface (`cnv-bridge`, `macvlan` …), and is thin: it asks the daemon at
//! `control` for a link between a new socket and the interface, by AF_XDP, and tells where the socket is, in the result and
//! in the device-info file. The guest takes the interface's MAC address and may send from no other.
//!
//! All it makes is found again by its name, which is made of network, container and interface: DEL works twice, without
//! the namespace, and after a crash; GC removes what belongs to no attachment of its network. Only the daemon must be
//! there, because it may remember a link while it is away; unless, as a note beside the socket tells, it was never asked.

mod attach;
mod check;
mod config;
mod error;
mod ethtool;
mod link;

use cni::{Error, Request, Success};

use config::Config;
use link::Name;

/// The plugin.
#[derive(Debug, Clone, Copy, Default)]
pub struct VhostUser;

impl cni::Plugin for VhostUser {
    fn add(&self, request: &Request) -> Result<Success, Error> {
        let config = Config::try_from(request)?;
        Ok(attach::add(&config, request)?)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let config = Config::for_removal(request)?;
        let attachment = request.attachment()?;
        let name = Name::of(&request.network, attachment.container.as_str(), attachment.if_name.as_str());
        Ok(attach::del(&config, &name)?)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let config = Config::try_from(request)?;
        Ok(check::check(&config, request)?)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let config = Config::try_from(request)?;
        Ok(check::status(&config)?)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let config = Config::for_removal(request)?;
        let valid = request.valid_attachments()?;
        let valid =
            valid.iter().map(|(container, if_name)| Name::of(&request.network, container.as_str(), if_name));
        Ok(attach::gc(&config, &request.network, &valid.collect::<Vec<_>>())?)
    }
}
