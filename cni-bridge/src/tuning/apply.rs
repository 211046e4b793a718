//! ADD, DEL and CHECK.

use std::path::Path;

use cni::{Attachment, Success};
use net_types::Mac;
use netlink::{Link, Netlink};
use netns::NetNs;

use super::config::{Config, Wanted};
use super::error::TuningError;
use super::saved::Saved;
use super::sysctl;
use crate::compare::expect;
use crate::journal::Journal;
use crate::spoof;
use nf_tables::NfTables;

struct Pod {
    namespace: NetNs,
    netlink: Netlink,
    link: Link,
}

fn open(attachment: &Attachment) -> Result<Pod, TuningError> {
    let path = attachment.netns.clone().ok_or(TuningError::NoNetns)?;
    let namespace = NetNs::open(path).map_err(TuningError::Netns)?;
    let netlink = Netlink::open_in(&namespace)?;
    let link = netlink.link_by_name(attachment.if_name.as_str())?;
    let link = link.ok_or_else(|| TuningError::NoInterface(attachment.if_name.clone()))?;
    Ok(Pod { namespace, netlink, link })
}

/// Changes what is asked for, and tells of it in the result.
pub(super) fn add(
    config: &Config,
    network: &str,
    attachment: &Attachment,
    mut result: Success,
) -> Result<Success, TuningError> {
    sysctl::check_allowlist(&config.sysctls)?;
    let pod = open(attachment)?;
    let own = values(&pod.link, &config.wanted);
    if own != Saved::default() {
        let journal = Journal::in_directory(&config.data_dir);
        // What is kept already is of an ADD that is being repeated: the older values are the true ones.
        if journal.read::<Saved>(attachment)?.is_none() {
            journal.keep(network, attachment, &own)?;
        }
        cni::mutated("values kept");
    }
    let changed = change(config, &pod).and_then(|()| match config.wanted.mac {
        Some(mac) => guard(&result, mac),
        None => Ok(()),
    });
    if let Err(error) = changed {
        if let Err(undo) = del(&config.data_dir, attachment) {
            tracing::error!(
                "after a failed ADD, {} is not as it was: {}",
                attachment.if_name,
                telemetry::chain(&undo)
            );
        }
        return Err(error);
    }
    let is_own = |name: &str| name == attachment.if_name.as_str();
    for interface in result.interfaces.iter_mut().filter(|one| is_own(&one.name) && !one.sandbox.is_empty()) {
        interface.mac = config.wanted.mac.map_or_else(|| interface.mac.clone(), |mac| mac.to_string());
        interface.mtu = config.wanted.mtu.or(interface.mtu);
    }
    Ok(result)
}

/// The interface's own values of what is about to change.
fn values(link: &Link, wanted: &Wanted) -> Saved {
    Saved {
        mac: wanted.mac.and(link.mac),
        mtu: wanted.mtu.map(|_| link.mtu),
        promiscuous: wanted.promiscuous.map(|_| link.promiscuous),
        all_multicast: wanted.all_multicast.map(|_| link.all_multicast),
        tx_queue_len: wanted.tx_queue_len.map(|_| link.tx_queue_len),
    }
}

fn change(config: &Config, pod: &Pod) -> Result<(), TuningError> {
    pod.namespace
        .run(|| config.sysctls.iter().try_for_each(sysctl::Sysctl::set))
        .map_err(TuningError::Netns)??;
    cni::mutated("sysctls");
    let Wanted { mac, mtu, promiscuous, all_multicast, tx_queue_len } = config.wanted;
    set(pod, Saved { mac, mtu, promiscuous, all_multicast, tx_queue_len })
}

fn set(pod: &Pod, values: Saved) -> Result<(), TuningError> {
    let Saved { mac, mtu, promiscuous, all_multicast, tx_queue_len } = values;
    let index = pod.link.index;
    if let Some(mac) = mac {
        pod.netlink.set_mac(index, mac)?;
        cni::mutated("address");
    }
    if let Some(mtu) = mtu {
        pod.netlink.set_mtu(index, mtu)?;
        cni::mutated("MTU");
    }
    if let Some(on) = promiscuous {
        pod.netlink.set_promiscuous(index, on)?;
        cni::mutated("promiscuous mode");
    }
    if let Some(on) = all_multicast {
        pod.netlink.set_all_multicast(index, on)?;
        cni::mutated("all-multicast mode");
    }
    if let Some(length) = tx_queue_len {
        pod.netlink.set_tx_queue_len(index, length)?;
        cni::mutated("queue length");
    }
    Ok(())
}

/// A spoof check that `cnv-bridge` made for a port of this chain lets the new address pass, and only that.
fn guard(result: &Success, mac: Mac) -> Result<(), TuningError> {
    let nf_tables = match NfTables::open() {
        // A kernel that has none has no spoof check either.
        Err(error) if error.is_unsupported() => return Ok(()),
        other => other?,
    };
    let host = Netlink::open()?;
    for interface in result.interfaces.iter().filter(|one| one.sandbox.is_empty()) {
        let Ok(name) = interface.name.parse() else { continue };
        let guard = spoof::guard(&nf_tables, &name)?;
        let Some(guard) = guard.and_then(|guard| guard.moved_to(mac)) else { continue };
        let alias = host.link_by_name(&interface.name)?.map(|link| link.alias).unwrap_or_default();
        spoof::install(&nf_tables, &name, &guard, &alias)?;
        cni::mutated("spoof check");
    }
    Ok(())
}

/// Restores what was kept. A pod that is gone took everything with it.
pub(super) fn del(data_dir: &Path, attachment: &Attachment) -> Result<(), TuningError> {
    let journal = Journal::in_directory(data_dir);
    match open(attachment) {
        Ok(pod) => {
            if let Some(own) = journal.read(attachment)? {
                set(&pod, own)?;
            }
        }
        // What was kept need not even be legible then.
        Err(TuningError::NoNetns | TuningError::NoInterface(_)) => {}
        Err(TuningError::Netns(error)) if error.is_gone() => {}
        Err(error) => return Err(error),
    }
    Ok(journal.forget(attachment)?)
}

/// Compares; fails with the first difference.
pub(super) fn check(config: &Config, attachment: &Attachment) -> Result<(), TuningError> {
    let Pod { namespace, netlink: _, link } = open(attachment)?;
    let Wanted { mac, mtu, promiscuous, all_multicast, tx_queue_len } = config.wanted;
    let name = &link.name;
    if let Some(mac) = mac {
        expect(&format!("address of {name}"), link.mac.unwrap_or(Mac::ZERO), mac)?;
    }
    if let Some(mtu) = mtu {
        expect(&format!("MTU of {name}"), link.mtu, mtu)?;
    }
    if let Some(on) = promiscuous {
        expect(&format!("promiscuous mode of {name}"), link.promiscuous, on)?;
    }
    if let Some(on) = all_multicast {
        expect(&format!("all-multicast mode of {name}"), link.all_multicast, on)?;
    }
    if let Some(length) = tx_queue_len {
        expect(&format!("queue length of {name}"), link.tx_queue_len, length)?;
    }
    for sysctl in &config.sysctls {
        let (found, expected) = namespace.run(|| sysctl.compare()).map_err(TuningError::Netns)??;
        expect(&format!("sysctl {}", sysctl.key()), found, expected)?;
    }
    Ok(())
}
