//! The bridge itself: found, or made where it is the network's own.
//!
//! A bridge made here carries our name in its alias, and from its first moment an address that tells the same, and it
//! goes with its last port. Making and removing are kept apart, and from what counts on a bridge being there, by
//! a lock that every namespace has by nature: on the file of the namespace itself, so that nothing is left on disk.
//! Whoever waits for it waits in turn, or those who share it would keep out the one who needs it alone for as long as
//! there are always some of them.

use std::fs::{self, File};

use net_types::{IfName, Mac};
use netlink::{Link, Netlink, NewBridge};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};

use super::config::Config;
use super::error::BridgeError;
use super::uplink;

/// The alias of a bridge that was made here.
const MADE_HERE: &str = "guestwire cnv-bridge v1 bridge";

/// What is locked: the network namespace.
const NAMESPACE: &str = "/proc/thread-self/ns/net";
/// What is locked by the one that is next. Any file that each network namespace has its own of would do.
const TURN: &str = "/proc/sys/net/ipv4/ip_forward";

/// Held while bridges are made or removed, or used between a look at them and a change.
pub(crate) struct BridgeLock(#[expect(dead_code, reason = "held for its Drop")] Flock<File>);

impl BridgeLock {
    /// Waits for all others in this network namespace.
    pub(crate) fn take() -> Result<Self, BridgeError> {
        Self::locked(FlockArg::LockExclusive)
    }

    /// Waits for those only who make or remove something.
    pub(super) fn share() -> Result<Self, BridgeError> {
        Self::locked(FlockArg::LockShared)
    }

    fn locked(how: FlockArg) -> Result<Self, BridgeError> {
        let _turn = lock(TURN, FlockArg::LockExclusive)?;
        lock(NAMESPACE, how).map(Self)
    }
}

fn lock(path: &str, how: FlockArg) -> Result<Flock<File>, BridgeError> {
    let setting = |source| BridgeError::Setting { path: path.to_owned(), source };
    let file = File::open(path).map_err(setting)?;
    Flock::lock(file, how).map_err(|(_file, errno)| setting(errno.into()))
}

/// The bridge, if it can do what the network asks.
pub(super) fn find(host: &Netlink, config: &Config) -> Result<Link, BridgeError> {
    let name = &config.bridge;
    let link = host.link_by_name(name.as_str())?.ok_or_else(|| BridgeError::NoBridge(name.clone()))?;
    let Some(bridge) = link.bridge else {
        return Err(BridgeError::NotABridge { name: name.clone(), kind: link.kind });
    };
    if config.needs_vlan_filtering() && !bridge.vlan_filtering {
        return Err(BridgeError::NoVlanFiltering(name.clone()));
    }
    Ok(link)
}

/// Fails if the bridge, or the uplink, is not there as the network needs it and ADD would not make it so.
pub(super) fn survey(host: &Netlink, config: &Config) -> Result<(), BridgeError> {
    match find(host, config) {
        Err(BridgeError::NoBridge(_)) if config.makes_bridge() && config.uplink.is_none() => Ok(()),
        Err(BridgeError::NoVlanFiltering(_)) if config.enable_vlan_filtering => Ok(()),
        other => uplink::find(host, config, &other?).map(drop),
    }
}

/// As [`find`], but makes the bridge, or switches on what it lacks, where the network says so.
pub(super) fn ensure(host: &Netlink, config: &Config) -> Result<Link, BridgeError> {
    match find(host, config) {
        Err(BridgeError::NoBridge(_)) if config.makes_bridge() => make(host, config)?,
        Err(BridgeError::NoVlanFiltering(name)) if config.enable_vlan_filtering => {
            host.set_vlan_filtering(&name, true)?;
            cni::mutated("VLAN filtering");
        }
        other => return ready(host, config, other?),
    }
    let bridge = find(host, config)?;
    ready(host, config, bridge)
}

fn make(host: &Netlink, config: &Config) -> Result<(), BridgeError> {
    let name = &config.bridge;
    let bridge = NewBridge {
        name,
        mac: Some(own_mac(name)?),
        mtu: config.mtu,
        vlan_filtering: config.needs_vlan_filtering(),
        multicast_snooping: true,
    };
    match host.create_bridge(&bridge) {
        // Another ADD was faster.
        Err(error) if error.already_exists() => return Ok(()),
        other => other?,
    }
    cni::mutated("bridge");
    let link = host.link_by_name(name.as_str())?.ok_or_else(|| BridgeError::NoBridge(name.clone()))?;
    host.set_alias(link.index, MADE_HERE)?;
    cni::mutated("bridge's alias");
    // Else a pod could give the node a default route.
    write_setting(&format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0")?;
    host.set_up(link.index)?;
    cni::mutated("bridge up");
    Ok(())
}

/// A bridge that is down, as one just made by hand, would forward nothing.
fn ready(host: &Netlink, config: &Config, bridge: Link) -> Result<Link, BridgeError> {
    if !bridge.up {
        host.set_up(bridge.index)?;
        cni::mutated("bridge up");
    }
    if config.promiscuous && !bridge.promiscuous {
        host.set_promiscuous(bridge.index, true)?;
        cni::mutated("promiscuous mode");
    }
    Ok(bridge)
}

/// Removes the bridge if it was made here and has no port left.
pub(super) fn remove_if_unused(host: &Netlink, name: &IfName) -> Result<(), BridgeError> {
    let Some(bridge) = host.link_by_name(name.as_str())? else { return Ok(()) };
    // One without alias may have been cut off before it got it.
    let cut_off = bridge.alias.is_empty() && bridge.mac == Some(own_mac(name)?);
    let ours = bridge.alias == MADE_HERE || cut_off;
    if !ours || netlink::has_ports(bridge.index)? {
        return Ok(());
    }
    host.delete_link(bridge.index)?;
    cni::mutated("bridge removed");
    Ok(())
}

/// The address of a bridge of that name made on this node since it was booted: 02:67:77 and three octets of a hash.
/// Fixed, so that the gateway's address does not follow the ports'; different on every node.
fn own_mac(name: &IfName) -> Result<Mac, BridgeError> {
    let path = "/proc/sys/kernel/random/boot_id";
    let boot =
        fs::read_to_string(path).map_err(|source| BridgeError::Setting { path: path.to_owned(), source })?;
    let hash = Sha256::digest(format!("{boot}{name}"));
    Ok(Mac([0x02, b'g', b'w', hash[0], hash[1], hash[2]]))
}

/// Writes a setting of the kernel; one that this kernel does not have is passed over.
pub(super) fn write_setting(path: &str, value: &str) -> Result<(), BridgeError> {
    match fs::write(path, value) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::debug!("{path} is not there: no IPv6 in this kernel?");
            Ok(())
        }
        other => other.map_err(|source| BridgeError::Setting { path: path.to_owned(), source }),
    }
}
