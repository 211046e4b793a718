//! What `sriov status` shows: every physical function, its virtual ones, who has them and what is set on them.

use std::fmt::Write as _;

use net_types::{IfName, Mac, PciAddress};
use netlink::{Netlink, Vf, VfLinkState, VfRate, VfVlan};
use serde::Serialize;

use crate::journal::{Entry, Journal, JournalError, Owner};
use crate::sysfs::{Sysfs, SysfsError, VirtualFunction};

/// The state of a node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    physical_functions: Vec<PhysicalFunction>,
    /// Journal files that could not be read and were set aside.
    corrupt_journals: Vec<std::path::PathBuf>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PhysicalFunction {
    address: PciAddress,
    /// None if its interface is not on the host.
    interface: Option<IfName>,
    driver: Option<String>,
    up: bool,
    mtu: Option<u32>,
    total_vfs: Option<u32>,
    virtual_functions: Vec<VfStatus>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VfStatus {
    index: u32,
    address: PciAddress,
    driver: Option<String>,
    /// None if it has none, or not on the host.
    interface: Option<IfName>,
    owner: Option<Owner>,
    /// True if the owner's ADD is done.
    attached: bool,
    /// None if the PF has no interface to ask by.
    attributes: Option<Attributes>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Attributes {
    mac: Option<Mac>,
    vlan: VfVlan,
    tx_rate: VfRate,
    spoofchk: Option<bool>,
    trust: Option<bool>,
    link_state: VfLinkState,
}

/// Why the state could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatusError {
    /// sysfs.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The kernel.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

impl Status {
    /// The state of this node, now.
    pub(crate) fn take() -> Result<Self, StatusError> {
        let (sysfs, journal, host) = (Sysfs::host(), Journal::host(), Netlink::open()?);
        let (entries, unreadable) = journal.all()?;
        if let Some(error) = unreadable {
            tracing::warn!("{error}");
        }
        let functions = sysfs.physical_functions()?;
        let functions = functions.into_iter().map(|pf| physical_function(&sysfs, &host, &entries, pf));
        let physical_functions = functions.collect::<Result<_, _>>()?;
        Ok(Self { physical_functions, corrupt_journals: journal.corrupt()? })
    }

    /// As a table, one line for each virtual function below that of its physical one.
    pub(crate) fn table(&self) -> String {
        let mut rows = vec![
            ["FUNCTION", "INTERFACE", "DRIVER", "MAC", "VLAN", "ATTRIBUTES", "OWNER"].map(str::to_owned),
        ];
        for pf in &self.physical_functions {
            rows.push(pf.row());
            rows.extend(pf.virtual_functions.iter().map(VfStatus::row));
        }
        let mut widths = [0; 7];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = String::new();
        for row in &rows {
            let cells: Vec<_> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}", cells.join("  ").trim_end());
        }
        for path in &self.corrupt_journals {
            let _ = writeln!(text, "corrupt journal: {}", path.display());
        }
        text
    }
}

fn physical_function(
    sysfs: &Sysfs,
    host: &Netlink,
    entries: &[Entry],
    address: PciAddress,
) -> Result<PhysicalFunction, StatusError> {
    let interface = match sysfs.pf_link(address) {
        Err(SysfsError::NoPfLink(_)) => None,
        other => Some(other?),
    };
    let link = match &interface {
        Some(name) => host.link_by_name(name.as_str())?,
        None => None,
    };
    let reports = link.as_ref().map(|link| netlink::virtual_functions(link.index)).transpose()?;
    let reports = reports.unwrap_or_default();
    let vfs = sysfs.virtual_functions(address)?.into_iter().map(|vf| {
        let report = reports.iter().find(|report| report.index == vf.index);
        virtual_function(sysfs, entries, &vf, report)
    });
    Ok(PhysicalFunction {
        address,
        driver: sysfs.driver(address)?,
        up: link.as_ref().is_some_and(|link| link.up),
        mtu: link.as_ref().map(|link| link.mtu),
        total_vfs: sysfs.attribute(address, "sriov_totalvfs")?.and_then(|total| total.parse().ok()),
        virtual_functions: vfs.collect::<Result<_, _>>()?,
        interface,
    })
}

fn virtual_function(
    sysfs: &Sysfs,
    entries: &[Entry],
    vf: &VirtualFunction,
    report: Option<&Vf>,
) -> Result<VfStatus, StatusError> {
    let entry = entries.iter().find(|entry| entry.address == vf.address);
    Ok(VfStatus {
        index: vf.index,
        address: vf.address,
        driver: sysfs.driver(vf.address)?,
        interface: sysfs.link(vf.address)?,
        owner: entry.map(|entry| entry.owner.clone()),
        attached: entry.is_some_and(|entry| entry.attached),
        attributes: report.map(|report| Attributes {
            mac: report.mac.filter(|mac| *mac != Mac::ZERO),
            vlan: report.vlan,
            tx_rate: report.rate,
            spoofchk: report.spoof_check,
            trust: report.trust,
            link_state: report.link_state,
        }),
    })
}

impl PhysicalFunction {
    fn row(&self) -> [String; 7] {
        let state = if self.up { "up" } else { "down" };
        let mtu = self.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
        let total = self.total_vfs.map(|total| total.to_string()).unwrap_or_default();
        let attributes = format!("{state}{mtu}, {} of {total} VFs", self.virtual_functions.len());
        [
            self.address.to_string(),
            shown(&self.interface),
            shown(&self.driver),
            "-".to_owned(),
            "-".to_owned(),
            attributes,
            "-".to_owned(),
        ]
    }
}

impl VfStatus {
    fn row(&self) -> [String; 7] {
        let (mut mac, mut vlan, mut others) = ("-".to_owned(), "-".to_owned(), "-".to_owned());
        if let Some(attributes) = &self.attributes {
            mac = shown(&attributes.mac);
            if attributes.vlan.id != 0 {
                vlan = format!("{}", attributes.vlan.id);
            }
            others = attributes.others();
        }
        let owner = match &self.owner {
            Some(Owner { container, if_name, network }) => {
                let unfinished = if self.attached { "" } else { " (unfinished)" };
                format!("{container}/{if_name} on {network}{unfinished}")
            }
            None => "-".to_owned(),
        };
        let function = format!("  {} {}", self.index, self.address);
        [function, shown(&self.interface), shown(&self.driver), mac, vlan, others, owner]
    }
}

impl Attributes {
    /// What differs from what drivers begin with.
    fn others(&self) -> String {
        let mut words = Vec::new();
        if self.vlan.qos != 0 {
            words.push(format!("qos {}", self.vlan.qos));
        }
        if self.spoofchk == Some(false) {
            words.push("spoofchk off".to_owned());
        }
        if self.trust == Some(true) {
            words.push("trust on".to_owned());
        }
        if self.tx_rate != VfRate::default() {
            words.push(format!("rate {}-{} Mbit/s", self.tx_rate.min, self.tx_rate.max));
        }
        match self.link_state {
            VfLinkState::Auto => {}
            VfLinkState::Enable => words.push("link enabled".to_owned()),
            VfLinkState::Disable => words.push("link disabled".to_owned()),
        }
        if words.is_empty() { "-".to_owned() } else { words.join(", ") }
    }
}

fn shown(value: &Option<impl ToString>) -> String {
    value.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)
}
