//! The CNI plugin: a VF in, the VF back.
//!
//! ADD finds the VF by its PCI address, checks everything, writes the journal and then sets what the network asks for
//! by way of the PF. A VF with a network driver moves to the pod; one with a vfio driver stays where it is, for a VMM to
//! open. DEL (and a failed ADD, by the same code) goes by the journal alone: wherever the VF's interface is by then,
//! it comes home, and every attribute that was set gets its former value.
//!
//! Two locks order concurrent calls: one per VF for the whole call, and one per PF while addresses are compared and
//! assigned, always in that order.

mod announce;
mod attach;
mod check;
mod config;
mod error;
mod interface;
mod release;
mod survey;

use cni::{Error, Ipam, Request, Success};

use crate::journal::Journal;
use crate::sysfs::Sysfs;
use config::Config;
use error::SriovError;

/// The plugin.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sriov;

/// What every operation works with.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) sysfs: Sysfs,
    pub(crate) journal: Journal,
    /// The kernel's identifier of this boot.
    pub(crate) boot: String,
}

impl Node {
    /// The one this runs on.
    fn open() -> Result<Self, SriovError> {
        Ok(Self { sysfs: Sysfs::host(), journal: Journal::host(), boot: crate::journal::this_boot()? })
    }
}

impl cni::Plugin for Sriov {
    fn add(&self, request: &Request) -> Result<Success, Error> {
        let config = Config::try_from(request)?;
        let ipam = Ipam::of(request)?;
        Ok(attach::add(&Node::open()?, &config, request, ipam.as_ref())?)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let attachment = request.attachment()?;
        // The addresses are freed whatever happens to the VF, and the VF whatever happens to the addresses.
        let freed = Ipam::of(request).and_then(|ipam| ipam.map_or(Ok(()), |ipam| ipam.del()));
        release::del(&Node::open()?, attachment, hinted_device(request))?;
        freed
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        Config::try_from(request)?;
        Ipam::of(request)?.map_or(Ok(()), |ipam| ipam.check())?;
        Ok(check::check(&Node::open()?, request)?)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let config = Config::try_from(request)?;
        Ipam::of(request)?.map_or(Ok(()), |ipam| ipam.status())?;
        Ok(check::status(&Node::open()?, &config)?)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let valid = request.valid_attachments()?;
        let freed = Ipam::of(request).and_then(|ipam| ipam.map_or(Ok(()), |ipam| ipam.gc()));
        release::gc(&Node::open()?, &request.network, &valid)?;
        freed
    }
}

/// Where DEL looks first. A configuration that has become invalid since ADD must not keep a VF from coming back, so it is
/// read no further.
fn hinted_device(request: &Request) -> Option<net_types::PciAddress> {
    request.config.get("deviceID")?.as_str()?.parse().ok()
}
