//! The pod: its namespace, and which of its interfaces is meant.

use cni::Request;
use net_types::{IfName, Mac};
use netlink::{Link, Netlink};
use netns::NetNs;
use serde::Deserialize;

use super::error::VmTapError;
use super::names::Names;

/// What the alias of a renamed pod interface begins with: who did it, and the version of what follows.
const OWNER: &str = "guestwire vm-tap v1";

/// How the tap is joined to the pod interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    /// By a bridge, as KubeVirt has it.
    #[default]
    Bridge,
    /// By redirection in traffic control.
    Tc,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bridge => "bridge",
            Self::Tc => "tc",
        })
    }
}

/// An open pod.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) namespace: NetNs,
    pub(super) netlink: Netlink,
    /// CNI_NETNS as it was given.
    pub(super) sandbox: String,
    /// The interfaces that may be meant, the likeliest first.
    candidates: Vec<IfName>,
}

/// A pod interface that is, or has been, turned into a tap.
#[derive(Debug)]
pub(super) struct Wired {
    pub(super) names: Names,
    /// The interface itself, under whichever name.
    pub(super) nic: Link,
    /// The address it had.
    pub(super) mac: Mac,
    pub(super) mode: Mode,
}

#[derive(Default, Deserialize)]
struct Called {
    #[serde(default)]
    args: Args,
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    cni: Logical,
}

#[derive(Default, Deserialize)]
struct Logical {
    #[serde(rename = "logicNetworkName")]
    network: Option<String>,
}

impl Pod {
    /// Opens the namespace of the request's container.
    pub(super) fn open(request: &Request) -> Result<Self, VmTapError> {
        let attachment = request.attachment()?;
        let path = attachment.netns.clone().ok_or(VmTapError::NoNetns)?;
        let sandbox = path.display().to_string();
        let namespace = NetNs::open(path).map_err(VmTapError::Netns)?;
        let netlink = Netlink::open_in(&namespace)?;
        let called: Called = request.config_as()?;
        let candidates = match called.args.cni.network {
            // KubeVirt runs a binding after the network's own plugin and names the VM's network, not the interface:
            // the hashed name if it is a secondary network, else the pod's primary interface.
            Some(network) => vec![kubevirt_names::secondary(&network)?, kubevirt_names::primary()?],
            None => vec![attachment.if_name.clone()],
        };
        Ok(Self { namespace, netlink, sandbox, candidates })
    }

    /// The interface to turn into a tap.
    pub(super) fn interface(&self) -> Result<(Names, Link), VmTapError> {
        if let Some(Wired { names, .. }) = self.wired()? {
            return Err(VmTapError::AlreadyATap(names.pod));
        }
        for name in &self.candidates {
            if let Some(link) = self.netlink.link_by_name(name.as_str())? {
                return Ok((Names::around(name)?, link));
            }
        }
        Err(VmTapError::NoPodInterface(self.candidates.clone()))
    }

    /// The interface that was turned into a tap, found by the alias it got first.
    pub(super) fn wired(&self) -> Result<Option<Wired>, VmTapError> {
        for name in &self.candidates {
            let names = Names::around(name)?;
            for current in [names.nic.clone(), names.pod.clone()] {
                let Some(nic) = self.netlink.link_by_name(current.as_str())? else { continue };
                if let Some((mac, mode)) = original(&nic.alias, name) {
                    return Ok(Some(Wired { names, nic, mac, mode }));
                }
            }
        }
        Ok(None)
    }

    /// The link of that name, which must be there.
    pub(super) fn link(&self, name: &IfName) -> Result<Link, VmTapError> {
        self.netlink.link_by_name(name.as_str())?.ok_or_else(|| VmTapError::Vanished(name.clone()))
    }
}

/// The alias of the interface that was `pod` with address `mac`.
pub(super) fn alias(pod: &IfName, mac: Mac, mode: Mode) -> String {
    let mode = match mode {
        Mode::Bridge => "",
        Mode::Tc => " tc",
    };
    format!("{OWNER} {pod} {mac}{mode}")
}

/// Reads [`alias`] back; none if it is not that of `pod`.
fn original(alias: &str, pod: &IfName) -> Option<(Mac, Mode)> {
    let mut words = alias.strip_prefix(OWNER)?.strip_prefix(' ')?.split(' ');
    let (name, mac) = (words.next()?, words.next()?.parse().ok()?);
    let mode = match words.next() {
        None => Mode::Bridge,
        Some("tc") => Mode::Tc,
        Some(_) => return None,
    };
    (name == pod.as_str() && words.next().is_none()).then_some((mac, mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_tells_what_the_interface_was() {
        let pod = "eth0".parse().unwrap();
        let mac = Mac([2, 0, 0, 0, 0, 5]);
        for mode in [Mode::Bridge, Mode::Tc] {
            assert_eq!(original(&alias(&pod, mac, mode), &pod), Some((mac, mode)));
        }
        let other = "net1".parse().unwrap();
        let foreign = alias(&other, mac, Mode::Tc);
        for alias in [&foreign, "", OWNER, "guestwire vm-tap v1 eth0 02:00:00:00:00:05 macvtap", "uplink"] {
            assert_eq!(original(alias, &pod), None, "{alias}");
        }
    }
}
