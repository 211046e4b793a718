//! Unplugging and plugging NICs that are PCI functions, while the guest runs.
//!
//! Unplugging: the guest is asked, by its ACPI ([`vmm::hotplug`](crate::vmm)); when it has let go and the VMM holds nothing
//! of the function any more, the network's plugins give it back (DEL). A guest may take its time, or never do it: whoever
//! asked is told so after a while, and the wish stays until the guest lets go or ends. Plugging: the plugins attach
//! a function, the same or another (ADD); it is opened, and the VMM puts it in the NIC's place.
//!
//! The record says at any time which NICs have a function, so a guest that starts again finds what was left to it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use super::passthrough;
use super::requests::{Answer, Asked, Request};
use super::status::Publisher;
use super::vmm::Vmm;
use crate::control::{Command, Event};
use crate::vfio::{self, VfioError};
use crate::vm::layout::{Layout, VmDir};
use crate::vm::record::{Record, RecordError, ToGuest};
use crate::vm::setup::{self, SetupError};

/// How long a guest may take to let go, and a VMM to plug, before whoever asked is told that it has not.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a NIC is not plugged or unplugged.
#[derive(Debug, thiserror::Error)]
pub(super) enum HotplugError {
    #[error("there is no interface {interface}; there are: {known}")]
    Unknown { interface: String, known: String },
    #[error(
        "interface {interface} is no PCI function (sriov: {{}}); only those can be plugged and unplugged"
    )]
    NoFunction { interface: String },
    #[error("interface {interface} is being plugged or unplugged")]
    Busy { interface: String },
    #[error(
        "interface {interface} shares its IOMMU group with interface {partner} of this VM; neither can be unplugged alone"
    )]
    Partner { interface: String, partner: String },
    #[error(
        "the guest has not let go of interface {0} within {wait} s, and still has it; when it lets go, or ends, the \
         interface is unplugged",
        wait = PATIENCE.as_secs()
    )]
    Kept(String),
    #[error("the VMM has not answered within {} s", PATIENCE.as_secs())]
    Silent,
    #[error("the guest does not run")]
    NotRunning,
    #[error("the guest ended meanwhile; interface {0} will be there at its next start")]
    Ended(String),
    #[error("the VMM cannot give it to the guest: {0}")]
    Vmm(String),
    #[error("the VMM said that it had closed the device of interface {interface}, and has not")]
    NotClosed { interface: String, source: VfioError },
    #[error("the network's plugins")]
    Plugins(#[from] SetupError),
    #[error("the device")]
    Device(#[from] VfioError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("a task ended unexpectedly")]
    Task(#[source] tokio::task::JoinError),
}

/// What is under way with a NIC.
#[derive(Debug)]
struct Waiting {
    what: Way,
    until: Instant,
    /// Who is to be told; none once it has been told that it takes too long.
    answer: Option<oneshot::Sender<Answer>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

/// What there is to do it with.
pub(super) struct Scene<'a> {
    pub(super) layout: &'a Layout,
    pub(super) directory: &'a VmDir,
    pub(super) record: &'a mut Record,
    pub(super) status: &'a mut Publisher,
}

/// What is under way, by the NIC's index.
#[derive(Debug, Default)]
pub(super) struct Hotplug(BTreeMap<usize, Waiting>);

impl Hotplug {
    /// Answers a request, or begins what it asks.
    pub(super) async fn asked(&mut self, asked: Asked, vmm: &Vmm, scene: &mut Scene<'_>) {
        let Asked { request, answer } = asked;
        let (interface, way) = match &request {
            Request::Plug { interface } => (interface, Way::In),
            Request::Unplug { interface } => (interface, Way::Out),
        };
        let begun = match self.find(scene.record, interface, way) {
            Ok(index) => match way {
                Way::In => plug(index, vmm, scene).await.map(|begun| begun.then_some(index)),
                Way::Out => unplug(index, vmm, scene.record).map(|begun| begun.then_some(index)),
            },
            Err(error) => Err(error),
        };
        match begun {
            Ok(Some(index)) => {
                let until = Instant::now() + PATIENCE;
                self.0.insert(index, Waiting { what: way, until, answer: Some(answer) });
            }
            Ok(None) => done(Some(answer), interface, way),
            Err(error) => fail(Some(answer), &error),
        }
    }

    /// The NIC that is called `interface`, if something can be done with it now.
    fn find(&self, record: &Record, interface: &str, way: Way) -> Result<usize, HotplugError> {
        let nics = &record.plan.nics;
        let Some(index) = nics.iter().position(|nic| nic.name == interface) else {
            let known: Vec<_> = nics.iter().map(|nic| nic.name.as_str()).collect();
            return Err(HotplugError::Unknown { interface: interface.to_owned(), known: known.join(", ") });
        };
        if passthrough::place_of(record, index).is_none() {
            return Err(HotplugError::NoFunction { interface: interface.to_owned() });
        }
        match self.0.get(&index) {
            // Asking again reminds the guest, which may have been too busy to hear.
            Some(Waiting { what: Way::Out, answer: None, .. }) if way == Way::Out => Ok(index),
            None => Ok(index),
            Some(_) => Err(HotplugError::Busy { interface: interface.to_owned() }),
        }
    }

    /// Takes what the VMM says of it. An error means that the VMM is not to be trusted.
    pub(super) async fn heard(&mut self, event: Event, scene: &mut Scene<'_>) -> Result<(), HotplugError> {
        match event {
            Event::Plugged { places } => {
                for index in self.under_way(&places, Way::In, scene.record) {
                    self.finish(index, Way::In, scene, Ok(()));
                }
            }
            Event::NotPlugged { places, message } => {
                for index in self.under_way(&places, Way::In, scene.record) {
                    check_closed(index, scene.record)?;
                    let gone = give_back(index, scene).await;
                    let why = HotplugError::Vmm(message.clone());
                    self.finish(index, Way::In, scene, Err(gone.err().unwrap_or(why)));
                }
            }
            Event::Unplugged { place } => {
                for index in self.under_way(&[place], Way::Out, scene.record) {
                    check_closed(index, scene.record)?;
                    let gone = give_back(index, scene).await;
                    self.finish(index, Way::Out, scene, gone);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The NICs of `places` for which this is under way. Whatever else the VMM says is no news.
    fn under_way(&self, places: &[usize], way: Way, record: &Record) -> Vec<usize> {
        let nics = places.iter().filter_map(|place| passthrough::nic_of(record, *place));
        nics.filter(|nic| self.0.get(nic).is_some_and(|waiting| waiting.what == way)).collect()
    }

    /// It has come to an end.
    fn finish(&mut self, index: usize, way: Way, scene: &mut Scene<'_>, result: Result<(), HotplugError>) {
        let answer = self.0.remove(&index).and_then(|waiting| waiting.answer);
        scene.status.interfaces(scene.record);
        let name = scene.record.plan.nics.get(index).map_or("", |nic| &nic.name);
        match result {
            Ok(()) => done(answer, name, way),
            Err(error) => {
                tracing::error!(interface = name, "{}", crate::chain(&error));
                fail(answer, &error);
            }
        }
    }

    /// Waits until somebody has waited long enough.
    pub(super) async fn expired(&self) {
        let waiting = self.0.values().filter(|waiting| waiting.answer.is_some());
        match waiting.map(|waiting| waiting.until).min() {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    /// Tells those who have.
    pub(super) fn expire(&mut self, record: &Record) {
        let now = Instant::now();
        for (index, waiting) in self.0.iter_mut().filter(|(_, waiting)| waiting.until <= now) {
            let name = record.plan.nics.get(*index).map(|nic| nic.name.clone()).unwrap_or_default();
            fail(
                waiting.answer.take(),
                &match waiting.what {
                    Way::Out => HotplugError::Kept(name),
                    Way::In => HotplugError::Silent,
                },
            );
        }
    }

    /// The guest's run has ended, and its VMM with it: nobody holds anything any more.
    pub(super) async fn ended(mut self, scene: &mut Scene<'_>) {
        while let Some((index, Waiting { what, until, answer })) = self.0.pop_first() {
            let result = match what {
                Way::Out => give_back(index, scene).await,
                Way::In => {
                    let name = scene.record.plan.nics.get(index).map(|nic| nic.name.clone());
                    Err(HotplugError::Ended(name.unwrap_or_default()))
                }
            };
            self.0.insert(index, Waiting { what, until, answer });
            self.finish(index, what, scene, result);
        }
    }
}

/// Answers a request when no guest runs.
pub(super) fn refuse(asked: Asked) {
    fail(Some(asked.answer), &HotplugError::NotRunning);
}

fn done(answer: Option<oneshot::Sender<Answer>>, interface: &str, way: Way) {
    let message = match way {
        Way::In => format!("{interface} is plugged"),
        Way::Out => format!("{interface} is unplugged"),
    };
    tracing::info!("{message}");
    if let Some(answer) = answer {
        // Whoever asked may have gone.
        let _ = answer.send(Answer::Done { message });
    }
}

fn fail(answer: Option<oneshot::Sender<Answer>>, error: &HotplugError) {
    if let Some(answer) = answer {
        let _ = answer.send(Answer::Failed { message: crate::chain(error).to_string() });
    }
}

/// Asks the guest to let go; false if it has nothing to let go of.
fn unplug(index: usize, vmm: &Vmm, record: &Record) -> Result<bool, HotplugError> {
    let Some(place) = passthrough::place_of(record, index) else { return Ok(false) };
    if passthrough::function_of(record, index).is_none() {
        return Ok(false);
    }
    if let Some(partner) = passthrough::partner(record, index) {
        let interface = record.plan.nics.get(index).map(|nic| nic.name.clone()).unwrap_or_default();
        return Err(HotplugError::Partner { interface, partner: partner.to_owned() });
    }
    vmm.command(&Command::Unplug { place });
    Ok(true)
}

/// Attaches a function and hands it to the VMM; false if the NIC has one.
async fn plug(index: usize, vmm: &Vmm, scene: &mut Scene<'_>) -> Result<bool, HotplugError> {
    if passthrough::function_of(scene.record, index).is_some() {
        return Ok(false);
    }
    let (layout, record) = (scene.layout.clone(), scene.record.clone());
    let attached = spawn_blocking(move || {
        let (Some(nic), Some(wired)) = (record.plan.nics.get(index), record.nics.get(index)) else {
            return Ok(None);
        };
        setup::attach_function(&layout, &record, nic, wired.mac).map(Some)
    });
    let Some(attached) = attached.await.map_err(HotplugError::Task)?? else { return Ok(false) };
    if let Some(wired) = scene.record.nics.get_mut(index) {
        *wired = attached;
    }
    let handed = scene.record.write(scene.directory).map_err(HotplugError::from);
    let handed = handed.and_then(|()| hand_over(index, vmm, scene.record));
    if handed.is_err()
        && let Err(error) = give_back(index, scene).await
    {
        tracing::error!("{}", crate::chain(&error));
    }
    handed.map(|()| true)
}

fn hand_over(index: usize, vmm: &Vmm, record: &Record) -> Result<(), HotplugError> {
    let (Some(address), Some(place)) =
        (passthrough::function_of(record, index), passthrough::place_of(record, index))
    else {
        return Ok(());
    };
    // Each container pins all of the guest's memory, and the kernel counts it each time.
    let containers = record.nics.iter().filter(|nic| matches!(nic.to_guest, ToGuest::Function(_))).count();
    let memory = u64::from(record.plan.memory).saturating_mul(containers as u64);
    vmm.allow_locked_memory(memory).map_err(VfioError::from)?;
    let passthrough = passthrough::open_in(&[(address, place)])?;
    vmm.command(&Command::Plug(passthrough));
    Ok(())
}

/// Fails if the VMM still has what it says it has closed. The VF of a guest that is hostile must not lose its VLAN while
/// the guest can use it.
fn check_closed(index: usize, record: &Record) -> Result<(), HotplugError> {
    let Some(address) = passthrough::function_of(record, index) else { return Ok(()) };
    let interface = || record.plan.nics.get(index).map(|nic| nic.name.clone()).unwrap_or_default();
    vfio::check_free(address).map_err(|source| HotplugError::NotClosed { interface: interface(), source })
}

/// Gives the function of NIC `index` back to the node.
async fn give_back(index: usize, scene: &mut Scene<'_>) -> Result<(), HotplugError> {
    let (layout, record) = (scene.layout.clone(), scene.record.clone());
    let detached = spawn_blocking(move || match record.plan.nics.get(index) {
        Some(nic) => setup::detach(&layout, &record, nic),
        None => Ok(()),
    });
    let detached = detached.await.map_err(HotplugError::Task)?;
    // Even if DEL failed: the guest has it no more, and `down` calls DEL again.
    if let Some(wired) = scene.record.nics.get_mut(index) {
        wired.to_guest = ToGuest::Unplugged;
    }
    scene.record.write(scene.directory)?;
    Ok(detached?)
}
