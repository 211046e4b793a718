//! Making a NIC what the policies want, where it is not.
//!
//! Order: the number of VFs, the PF's MTU and state, then each VF's driver. Drivers come and go asynchronously, and right
//! after `sriov_numvfs` is written a module may still be probing: the VF has a `driver` by then, but the driver's
//! `unbind` is missing until the module is done. All such waits are for the kernel's own events, with a bound.

use std::process::Command;
use std::time::Duration;

use net_types::PciAddress;
use netlink::{Events, Link, Netlink};

use super::PolicyError;
use super::plan::{Desired, Group};
use super::spec::DeviceType;
use crate::journal::{Journal, Lock};
use crate::sysfs::{self, Mode, Sysfs, SysfsError, VirtualFunction};

/// How long drivers may take: loading a module and probing some hundred VFs takes seconds.
const DRIVERS: Duration = Duration::from_secs(60);
/// How long a driver may take to give a VF an interface. Its VFs were waited for when they were made; this is for the rest.
const INTERFACE: Duration = Duration::from_secs(5);
const VFIO: &str = "vfio-pci";

/// What is worked with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hands<'a> {
    pub(super) sysfs: &'a Sysfs,
    pub(super) journal: &'a Journal,
    /// Say what would be done, and do nothing.
    pub(super) dry_run: bool,
}

/// Does what differs; says it, one line each.
pub(super) fn carry_out(hands: &Hands<'_>, desired: &Desired) -> Result<Vec<String>, PolicyError> {
    let mut lines = Vec::new();
    let pf = desired.nic.address;
    // Attaching pods take this lock too, after that of their VF.
    let _lock = if hands.dry_run { None } else { Some(hands.journal.lock(pf)?) };
    let events = Events::of_devices()?;
    let renumbered = number(hands, desired, &events, &mut lines)?;
    let host = Netlink::open()?;
    let name = desired.nic.link.as_ref().ok_or(SysfsError::NoPfLink(pf))?;
    let link = host.link_by_name(name.as_str())?.ok_or(SysfsError::NoPfLink(pf))?;
    let vfs = hands.sysfs.virtual_functions(pf)?;
    let works: Vec<_> = vfs
        .iter()
        .filter_map(|vf| {
            let group = desired.groups.iter().find(|group| (group.first..=group.last).contains(&vf.index))?;
            Some(Work { hands, host: &host, events: &events, pf: &link, vf, group })
        })
        .collect();
    // One that a pod has keeps the others from being changed too.
    for work in &works {
        work.refuse_owned()?;
    }
    if !desired.externally_managed {
        set_link(hands, &host, &link, desired, &mut lines)?;
    }
    if hands.dry_run && renumbered {
        let described = desired.groups.iter().map(|group| {
            format!(
                "VFs {} to {} of {name}: {} (policy {})",
                group.first,
                group.last,
                driver(group),
                group.policy
            )
        });
        lines.extend(described);
        return Ok(lines);
    }
    for work in &works {
        lines.extend(work.bind()?);
        lines.extend(work.set_mtu()?);
    }
    Ok(lines)
}

/// Gives the PF its VFs; true if their number was not right.
fn number(
    hands: &Hands<'_>,
    desired: &Desired,
    events: &Events,
    lines: &mut Vec<String>,
) -> Result<bool, PolicyError> {
    let Desired { nic, num_vfs, externally_managed, .. } = desired;
    if nic.num_vfs == *num_vfs || (*externally_managed && nic.num_vfs > *num_vfs) {
        return Ok(false);
    }
    if *externally_managed {
        return Err(PolicyError::TooFew { pf: nic.address, wanted: *num_vfs, found: nic.num_vfs });
    }
    for vf in hands.sysfs.virtual_functions(nic.address)? {
        refuse_owned(hands, vf.address)?;
    }
    lines.push(format!("{}: {num_vfs} VFs instead of {}", nic.address, nic.num_vfs));
    if hands.dry_run {
        return Ok(true);
    }
    let file = hands.sysfs.device(nic.address).join("sriov_numvfs");
    // The kernel changes it only from and to zero.
    for number in [0, *num_vfs] {
        sysfs::write(&file, &number.to_string())?;
    }
    let ready = events.until(DRIVERS, || {
        let vfs = hands.sysfs.virtual_functions(nic.address)?;
        let mut driven = vfs.iter().map(|vf| Ok(is_driven(hands.sysfs, vf.address)?));
        let all = driven.try_fold(true, |all, one: Result<bool, PolicyError>| one.map(|one| all && one))?;
        Ok::<_, PolicyError>((all && vfs.len() as u64 == u64::from(*num_vfs)).then_some(()))
    })?;
    if ready.is_none() {
        tracing::warn!("not every VF of {} has a driver yet", nic.address);
    }
    Ok(true)
}

/// True if a driver is done with the VF: it has its interface, or is for virtual machines.
fn is_driven(sysfs: &Sysfs, vf: PciAddress) -> Result<bool, SysfsError> {
    match sysfs.mode(vf) {
        Ok(Mode::Vfio) => Ok(true),
        Ok(Mode::Netdevice) => Ok(sysfs.link(vf)?.is_some()),
        Err(SysfsError::NoDriver(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn set_link(
    hands: &Hands<'_>,
    host: &Netlink,
    link: &Link,
    desired: &Desired,
    lines: &mut Vec<String>,
) -> Result<(), PolicyError> {
    // Lowering it would cut off whoever relies on it.
    if let Some(mtu) = desired.mtu.filter(|mtu| *mtu > link.mtu) {
        lines.push(format!("{}: MTU {mtu} instead of {}", link.name, link.mtu));
        if !hands.dry_run {
            host.set_mtu(link.index, mtu)?;
        }
    }
    if !link.up && desired.num_vfs > 0 {
        lines.push(format!("{}: up", link.name));
        if !hands.dry_run {
            host.set_up(link.index)?;
        }
    }
    Ok(())
}

fn refuse_owned(hands: &Hands<'_>, vf: PciAddress) -> Result<(), PolicyError> {
    match hands.journal.read(vf)? {
        Some(entry) if entry.boot == crate::journal::this_boot()? => {
            Err(PolicyError::InUse { vf, owner: entry.owner })
        }
        _ => Ok(()),
    }
}

fn driver(group: &Group) -> &'static str {
    match group.device_type {
        DeviceType::Netdevice => "its network driver",
        DeviceType::VfioPci => VFIO,
    }
}

/// One VF and what is wanted of it.
struct Work<'a> {
    hands: &'a Hands<'a>,
    host: &'a Netlink,
    events: &'a Events,
    pf: &'a Link,
    vf: &'a VirtualFunction,
    group: &'a Group,
}

impl Work<'_> {
    /// True if `found` is the driver that the VF is to have.
    fn is_right(&self, found: Option<&str>) -> Result<bool, PolicyError> {
        Ok(match (self.group.device_type, found) {
            (DeviceType::VfioPci, Some(driver)) => driver == VFIO,
            (DeviceType::Netdevice, Some(_)) => self.hands.sysfs.mode(self.vf.address)? == Mode::Netdevice,
            (_, None) => false,
        })
    }

    /// Fails if the VF is to have another driver and a pod has it.
    fn refuse_owned(&self) -> Result<(), PolicyError> {
        let found = self.hands.sysfs.driver(self.vf.address)?;
        if self.is_right(found.as_deref())? { Ok(()) } else { refuse_owned(self.hands, self.vf.address) }
    }

    /// Gives the VF its driver, if it has another.
    fn bind(&self) -> Result<Option<String>, PolicyError> {
        let Self { hands, vf, group, .. } = self;
        let found = hands.sysfs.driver(vf.address)?;
        if self.is_right(found.as_deref())? {
            return Ok(None);
        }
        let _lock = self.lock()?;
        refuse_owned(hands, vf.address)?;
        let wanted = driver(group);
        if !hands.dry_run {
            match group.device_type {
                DeviceType::VfioPci => self.to_vfio(found.as_deref())?,
                DeviceType::Netdevice => self.to_network(found.as_deref())?,
            }
        }
        let found = found.unwrap_or_else(|| "none".to_owned());
        Ok(Some(format!("VF {} of {} ({}): {wanted} instead of {found}", vf.index, self.pf.name, vf.address)))
    }

    /// Keeps pods off the VF. The PF's lock is held already, which comes after a VF's: so this does not wait.
    fn lock(&self) -> Result<Option<Lock>, PolicyError> {
        if self.hands.dry_run {
            return Ok(None);
        }
        match self.hands.journal.try_lock(self.vf.address)? {
            Some(lock) => Ok(Some(lock)),
            None => Err(PolicyError::Busy(self.vf.address)),
        }
    }

    fn to_vfio(&self, found: Option<&str>) -> Result<(), PolicyError> {
        if found.is_some() && self.hands.sysfs.mode(self.vf.address)? == Mode::Netdevice {
            self.assign_address()?;
        }
        if !self.hands.sysfs.driver_folder(VFIO).exists() {
            // What it says if it fails is of no use: whether the driver is there is seen below.
            let _ = Command::new("modprobe").arg(VFIO).status();
        }
        self.unbind(found)?;
        let device = self.hands.sysfs.device(self.vf.address);
        let override_file = device.join("driver_override");
        sysfs::write(&override_file, VFIO)?;
        let probed = self.probe();
        // Left set, it would keep the network driver off for good.
        sysfs::write(&override_file, "\n")?;
        probed?;
        self.wait(VFIO, || Ok(self.hands.sysfs.driver(self.vf.address)?.as_deref() == Some(VFIO)))
    }

    /// A guest's driver asks the PF for its address, so the VF is assigned the one its network driver has. Even if that is
    /// reported already: some drivers report what the VF chose, and forget it when the VF resets.
    ///
    /// Its interface is found by the device behind it: the name may change between two looks, as udev renames new ones.
    fn assign_address(&self) -> Result<(), PolicyError> {
        let device = self.vf.address.to_string();
        let own = self.events.until(INTERFACE, || {
            let link = self.host.links()?.into_iter().find(|link| link.parent == device);
            Ok::<_, PolicyError>(link.and_then(|link| link.mac).filter(|mac| mac.is_unicast()))
        })?;
        match own {
            Some(mac) => Ok(self.host.set_vf_mac(self.pf.index, self.vf.index, mac)?),
            None => {
                tracing::warn!("VF {device} has no interface whose address a guest could be given");
                Ok(())
            }
        }
    }

    fn to_network(&self, found: Option<&str>) -> Result<(), PolicyError> {
        self.unbind(found)?;
        sysfs::write(&self.hands.sysfs.device(self.vf.address).join("driver_override"), "\n")?;
        self.probe()?;
        self.wait("its network driver", || {
            let driven = is_driven(self.hands.sysfs, self.vf.address)?;
            Ok(driven && self.hands.sysfs.mode(self.vf.address)? == Mode::Netdevice)
        })
    }

    fn unbind(&self, found: Option<&str>) -> Result<(), PolicyError> {
        let Some(driver) = found else { return Ok(()) };
        let file = self.hands.sysfs.driver_folder(driver).join("unbind");
        self.wait("a driver that lets go of it", || Ok(file.exists()))?;
        Ok(sysfs::write(&file, &self.vf.address.to_string())?)
    }

    fn probe(&self) -> Result<(), PolicyError> {
        Ok(sysfs::write(&self.hands.sysfs.drivers_probe(), &self.vf.address.to_string())?)
    }

    fn wait(&self, wanted: &str, so: impl Fn() -> Result<bool, SysfsError>) -> Result<(), PolicyError> {
        let reached = self.events.until(DRIVERS, || Ok::<_, PolicyError>(so()?.then_some(())))?;
        match reached {
            Some(()) => Ok(()),
            None => Err(PolicyError::Driver {
                vf: self.vf.address,
                wanted: wanted.to_owned(),
                found: self.hands.sysfs.driver(self.vf.address)?,
            }),
        }
    }

    /// Gives the VF's interface the policy's MTU, while it is on the host.
    fn set_mtu(&self) -> Result<Option<String>, PolicyError> {
        let Some(mtu) = self.group.mtu.filter(|_| self.group.device_type == DeviceType::Netdevice) else {
            return Ok(None);
        };
        let Some(name) = self.hands.sysfs.link(self.vf.address)? else { return Ok(None) };
        match self.host.link_by_name(name.as_str())? {
            Some(link) if link.mtu != mtu => {
                if !self.hands.dry_run {
                    self.host.set_mtu(link.index, mtu)?;
                }
                Ok(Some(format!("{name}: MTU {mtu} instead of {}", link.mtu)))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::node::nics;
    use crate::sysfs::tests::sysfs;

    /// What is said and whether the VFs are to be other ones, where 4 are and `wanted` are wanted.
    fn numbered(wanted: u32, externally_managed: bool) -> Result<(bool, Vec<String>), PolicyError> {
        let (root, sysfs) = sysfs(4);
        let journal = Journal::at(&root.path().join("journal"));
        let nic = nics(&sysfs).unwrap().remove(0);
        let desired = Desired { nic, num_vfs: wanted, mtu: None, externally_managed, groups: Vec::new() };
        let hands = Hands { sysfs: &sysfs, journal: &journal, dry_run: true };
        let mut lines = Vec::new();
        let renumbered = number(&hands, &desired, &Events::of_devices().unwrap(), &mut lines)?;
        Ok((renumbered, lines))
    }

    #[test]
    fn vfs_of_somebody_elses_need_to_be_enough_and_are_never_made() {
        for wanted in [1, 4] {
            assert_eq!(numbered(wanted, true).unwrap(), (false, vec![]), "{wanted}");
        }
        let error = numbered(5, true).unwrap_err();
        assert!(matches!(error, PolicyError::TooFew { wanted: 5, found: 4, .. }), "{error}");
    }

    #[test]
    fn ours_are_made_anew_unless_their_number_is_right() {
        assert_eq!(numbered(4, false).unwrap(), (false, vec![]));
        for wanted in [1, 5] {
            let (renumbered, lines) = numbered(wanted, false).unwrap();
            assert!(renumbered && lines == [format!("0000:01:00.0: {wanted} VFs instead of 4")], "{lines:?}");
        }
    }
}
