//! The identity of a port: which container and interface it serves, and how that is written on the host side.

use std::path::PathBuf;

use cni::{Attachment, Code, ContainerId, Error, Request};
use net_types::IfName;
use sha2::{Digest as _, Sha256};

/// What every alias begins with: who made the link, and the version of what follows.
const OWNER: &str = "guestwire cnv-bridge v1";
/// Longest alias, in bytes, that the kernel also keeps as a rule's comment (a link's alias may have two more).
const MAX_ALIAS: usize = 253;

/// A port to be, or one that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    /// The container's interface.
    pub(crate) if_name: IfName,
    /// The container's namespace; always there for ADD and CHECK.
    pub(crate) netns: Option<PathBuf>,
    /// The host end's name.
    pub(crate) host_name: IfName,
    /// The host end's alternative name, which it keeps when somebody renames it.
    pub(crate) alt_name: IfName,
    /// The host end's alias: [`OWNER`], interface, container, network.
    pub(crate) alias: String,
}

/// What an alias says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Owner<'a> {
    pub(crate) if_name: &'a str,
    pub(crate) container: &'a str,
    pub(crate) network: &'a str,
}

impl Port {
    /// The port that `request` is about.
    pub(crate) fn of(request: &Request) -> Result<Self, Error> {
        let Attachment { container, if_name, netns } = request.attachment()?;
        let alias = format!("{OWNER} {if_name} {container} {}", request.network);
        if alias.len() > MAX_ALIAS {
            let over = alias.len() - MAX_ALIAS;
            let names = "the names of network and container together are too long";
            return Err(Error::new(Code::InvalidConfig, names).details(format!("by {over} bytes")));
        }
        Ok(Self {
            host_name: name("veth", container, if_name)?,
            alt_name: name("cnv", container, if_name)?,
            if_name: if_name.clone(),
            netns: netns.clone(),
            alias,
        })
    }
}

/// Reads an alias; none if it is not one of ours.
pub(crate) fn owner(alias: &str) -> Option<Owner<'_>> {
    let mut words = alias.strip_prefix(OWNER)?.strip_prefix(' ')?.split(' ');
    let owner = Owner { if_name: words.next()?, container: words.next()?, network: words.next()? };
    words.next().is_none().then_some(owner)
}

/// `prefix` and digits of a hash: the whole length a name may have, so that two ports of a node do not meet.
fn name(prefix: &str, container: &ContainerId, if_name: &IfName) -> Result<IfName, Error> {
    let hash = Sha256::digest(format!("{container}/{if_name}"));
    let digits = hash.iter().map(|byte| format!("{byte:02x}"));
    let name: String = prefix.chars().chain(digits.collect::<String>().chars()).take(15).collect();
    name.parse().map_err(|error| Error::from_error(Code::InvalidConfig, &BadHostName(error)))
}

#[derive(Debug, thiserror::Error)]
#[error("the host end has no usable name")]
struct BadHostName(#[source] net_types::IfNameError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_tells_whose_port_it_is() {
        let alias = format!("{OWNER} eth0 c1 net");
        let expected = Owner { if_name: "eth0", container: "c1", network: "net" };
        assert_eq!(owner(&alias), Some(expected));
        for other in ["", "guestwire cnv-bridge v2 eth0 c1 net", "uplink", &format!("{alias} more"), OWNER] {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn host_names_differ_by_container_and_interface() {
        let name = |container: &str, if_name: &str| {
            name("veth", &container.parse().unwrap(), &if_name.parse().unwrap()).unwrap()
        };
        assert_eq!(name("c1", "eth0"), name("c1", "eth0"));
        assert_eq!(name("c1", "eth0").as_str().len(), 15);
        assert_ne!(name("c1", "eth0"), name("c1", "eth1"));
        assert_ne!(name("c1", "eth0"), name("c2", "eth0"));
    }
}
