//! CHECK and STATUS.

use cni::Request;
use cni::device_info::{self, Device};

use super::attach;
use super::config::Config;
use super::error::PluginError;
use super::link::Name;
use crate::control::client::ask;
use crate::control::message::{Command, Done, LinkInfo};

/// Compares the link with what ADD asked for; fails with the first difference.
pub(super) fn check(config: &Config, request: &Request) -> Result<(), PluginError> {
    let attachment = request.attachment()?;
    let netns = attach::netns_of(request)?;
    let name = Name::of(&request.network, attachment.container.as_str(), attachment.if_name.as_str());
    let socket = name.socket(config);
    let nic = attach::interface(netns, &attachment.if_name)?;
    let wanted = attach::ends(config, &socket, &attachment.if_name, &nic, netns)?;
    let (Done::Links(links), _) = ask(&config.control, Command::List { name: Some(name.link()?) })? else {
        return Err(PluginError::Answer);
    };
    let differs = |what: &str, found: &str, expected: &str| PluginError::Differs {
        what: what.to_owned(),
        found: found.to_owned(),
        expected: expected.to_owned(),
    };
    let what = format!("link {}", name.as_str());
    let link = links.iter().find(|link| link.name.as_str() == name.as_str());
    let LinkInfo { ends: [guest, device], error, .. } =
        link.ok_or_else(|| differs(&what, "absent", "present"))?;
    if let Some(error) = error {
        return Err(differs(&what, error, "running"));
    }
    let found = format!("{},{}", guest.end, device.end);
    if found != wanted {
        return Err(differs(&what, &found, &wanted));
    }
    // The guest's end runs when the guest does.
    if !device.running {
        return Err(differs(&format!("{what}'s end at the interface"), "closed", "running"));
    }
    match &config.device_info {
        Some(path) if !device_info::exists(path, &Device::VhostUser { socket })? => {
            Err(differs(&format!("device-info file {}", path.display()), "absent", "present"))
        }
        _ => Ok(()),
    }
}

/// An ADD could work now: the daemon answers.
pub(super) fn status(config: &Config) -> Result<(), PluginError> {
    ask(&config.control, Command::List { name: None }).map(drop).map_err(PluginError::NotReady)
}
