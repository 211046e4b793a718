//! ADD, DEL and GC.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use cni::device_info::{self, Device};
use cni::{Interface as ResultInterface, Request, Success};
use net_types::IfName;
use netlink::{Link, Netlink};
use netns::NetNs;

use super::config::Config;
use super::error::PluginError;
use super::ethtool;
use super::link::{self, Interface, Name};
use crate::control::client::{ClientError, ask};
use crate::control::message::{Command, Done, ErrorCode};
use crate::xdp::MOST_RECEIVED;

/// The largest MTU of an interface: longer frames would be lost where they arrive. Leaves room for an Ethernet header and a tag.
const MOST_MTU: u32 = MOST_RECEIVED - 14 - 4;

/// Joins the interface, and says where the socket is.
pub(super) fn add(config: &Config, request: &Request) -> Result<Success, PluginError> {
    let attachment = request.attachment()?;
    let netns = netns_of(request)?;
    let name = Name::of(&request.network, attachment.container.as_str(), attachment.if_name.as_str());
    let socket = name.socket(config);
    if let Some(path) = &config.device_info {
        device_info::exists(path, &Device::VhostUser { socket: socket.clone() })?;
    }
    let nic = interface(netns, &attachment.if_name)?;
    if nic.mtu > MOST_MTU {
        let (name, mtu) = (attachment.if_name.clone(), nic.mtu);
        return Err(PluginError::Mtu { name, mtu, most: MOST_MTU });
    }
    let ends = ends(config, &socket, &attachment.if_name, &nic, netns)?;
    std::fs::create_dir_all(&config.sockets)
        .map_err(|source| PluginError::Folder { folder: config.sockets.clone(), source })?;
    finish_checksums(&nic)?;
    let is_first = note(&name.note(config))?;
    // A link of that name is another ADD's, which its DEL will end: it stays.
    if let Err(error) = ask(&config.control, Command::Add { name: Some(name.link()?), ends }) {
        let was_heard = !matches!(error, ClientError::Connect { .. });
        let refused = error.code().is_some_and(|code| code != ErrorCode::Exists);
        if is_first && (!was_heard || refused) {
            remove(&name.note(config))?;
        }
        return Err(error.into());
    }
    cni::mutated("link");
    if let Some(path) = &config.device_info
        && let Err(error) = device_info::write(path, &Device::VhostUser { socket: socket.clone() })
    {
        if let Err(undo) = del(config, &name) {
            tracing::error!(
                "after a failed ADD, link {} is still there: {}",
                name.as_str(),
                telemetry::chain(&undo)
            );
        }
        return Err(error.into());
    }
    cni::mutated("device-info file");
    Ok(result(request, &nic, netns, &socket))
}

/// Ends the link. Absent is fine; so is a namespace that is gone, and a daemon that was never there.
pub(super) fn del(config: &Config, name: &Name) -> Result<(), PluginError> {
    match ask(&config.control, Command::Remove { name: name.link()? }) {
        Ok(_) => cni::mutated("link removed"),
        Err(ClientError::Refused { code: ErrorCode::NoSuchLink, .. }) => {}
        Err(error @ ClientError::Connect { .. }) if was_never_asked(config, name) => {
            tracing::debug!("{error}, and was never asked for link {}", name.as_str());
        }
        Err(error) => return Err(error.into()),
    }
    forget(config, name)?;
    if let Some(path) = &config.device_info {
        device_info::remove(path, &Device::VhostUser { socket: name.socket(config) })?;
        cni::mutated("device-info file removed");
    }
    Ok(())
}

/// Ends every link of the network that belongs to no valid attachment, and removes what an ADD has left that never got one.
pub(super) fn gc(config: &Config, network: &str, valid: &[Name]) -> Result<(), PluginError> {
    let prefix = Name::prefix(network);
    let (Done::Links(links), _) = ask(&config.control, Command::List { name: None })? else {
        return Err(PluginError::Answer);
    };
    let is_left = |name: &str| name.starts_with(&prefix) && valid.iter().all(|valid| valid.as_str() != name);
    let (mut failed, mut kept) = (None, Vec::new());
    for link in links {
        let name = link.name.as_str();
        if !is_left(name) {
            continue;
        }
        tracing::info!(name, "ending a link that belongs to nobody");
        let ended = Name::of_link(&link.name);
        match ask(&config.control, Command::Remove { name: link.name }) {
            Ok(_) | Err(ClientError::Refused { code: ErrorCode::NoSuchLink, .. }) => forget(config, &ended)?,
            Err(error) => {
                kept.push(ended);
                failed = failed.or(Some(error));
            }
        }
        cni::mutated("link removed");
    }
    for name in notes(config) {
        if is_left(name.as_str()) && !kept.contains(&name) {
            forget(config, &name)?;
            cni::mutated("note removed");
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// Notes that the daemon is about to be asked. False if an earlier ADD has done so.
fn note(path: &Path) -> Result<bool, PluginError> {
    match File::create_new(path) {
        Ok(_) => {
            cni::mutated("note");
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(PluginError::File { path: path.to_owned(), source }),
    }
}

/// The links that there are notes of. None without a folder.
fn notes(config: &Config) -> Vec<Name> {
    let files = std::fs::read_dir(&config.sockets).into_iter().flatten().flatten();
    files.filter_map(|file| Name::of_note(&file.path())).collect()
}

/// Removes what is left of a link that has ended: its note, and the socket that a daemon left which was killed.
fn forget(config: &Config, name: &Name) -> Result<(), PluginError> {
    remove(&name.socket(config))?;
    remove(&name.note(config))
}

/// Removes a file in the folder for sockets, if there is one.
fn remove(path: &Path) -> Result<(), PluginError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(PluginError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Whether no ADD since the node's start got as far as asking the daemon for this link: then there is none, running or
/// remembered. Without the folder nothing is known.
fn was_never_asked(config: &Config, name: &Name) -> bool {
    config.sockets.is_dir() && !name.note(config).exists() && !name.socket(config).exists()
}

/// CNI_NETNS, fit to stand in a link's text.
pub(super) fn netns_of(request: &Request) -> Result<&Path, PluginError> {
    let path = request.attachment()?.netns.as_deref().ok_or(PluginError::NoNetns)?;
    if path.is_absolute() && !path.to_string_lossy().contains([',', '?', '&']) {
        Ok(path)
    } else {
        Err(PluginError::NetnsPath(path.to_owned()))
    }
}

/// The pod interface.
pub(super) fn interface(netns: &Path, name: &IfName) -> Result<Link, PluginError> {
    let namespace = NetNs::open(netns).map_err(PluginError::Netns)?;
    let link = Netlink::open_in(&namespace)?.link_by_name(name.as_str())?;
    link.ok_or_else(|| PluginError::NoInterface(name.clone()))
}

/// The link's ends, as the daemon is asked for them.
pub(super) fn ends(
    config: &Config,
    socket: &Path,
    name: &IfName,
    nic: &Link,
    netns: &Path,
) -> Result<String, PluginError> {
    let mac = nic.mac.ok_or_else(|| PluginError::NoInterface(name.clone()))?;
    Ok(link::ends(config, socket, &Interface { name, mac, mtu: nic.mtu, netns }))
}

/// Has the node's end of a veth finish its checksums. Any other interface's driver does so by itself.
fn finish_checksums(nic: &Link) -> Result<(), PluginError> {
    let Some(peer) = nic.peer.filter(|_| nic.kind == "veth") else { return Ok(()) };
    let Some(node) = Netlink::open()?.link_by_index(peer)? else { return Ok(()) };
    // The index is of the peer's namespace, which may be neither ours nor the pod's.
    if node.kind != "veth" || node.peer != Some(nic.index) {
        return Ok(());
    }
    let failed = |source| PluginError::Checksums { link: node.name.clone(), source };
    let name: IfName = node.name.parse().map_err(|error| failed(std::io::Error::other(error)))?;
    ethtool::finish_checksums(&name).map_err(failed)?;
    cni::mutated("checksums");
    Ok(())
}

/// What the chain has so far, with the socket at the interface.
fn result(request: &Request, nic: &Link, netns: &Path, socket: &Path) -> Success {
    let mut result = request.prev_result.clone().unwrap_or_default();
    let sandbox = netns.display().to_string();
    let socket_path = socket.display().to_string();
    let known = result
        .interfaces
        .iter_mut()
        .find(|interface| interface.name == nic.name && interface.sandbox == sandbox);
    match known {
        Some(interface) => interface.socket_path = socket_path,
        None => result.interfaces.push(ResultInterface {
            name: nic.name.clone(),
            mac: nic.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            mtu: Some(nic.mtu),
            sandbox,
            socket_path,
            ..ResultInterface::default()
        }),
    }
    result
}
