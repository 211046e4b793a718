//! The virtual machine monitor: one process, one guest, on KVM.
//!
//! Started by the supervisor with a control channel as its only means (see [`crate::control`]); everything it needs
//! comes as descriptors, and it opens nothing itself. It runs until the guest ends, the supervisor asks, or something
//! fails, says which by an event, and exits with an [`exit_code`]. A reset is an end too: the supervisor starts a
//! fresh process, so no state of the old guest survives.
//!
//! One thread per vCPU ([`vcpu`]) reaches devices through the [`bus`]; one thread per virtio device serves its queues
//! ([`virtio`]); functions of the host work by themselves ([`mod@vfio`]), and come and go by [`hotplug`]; the main thread has the
//! console and the control channel ([`event_loop`]). Process exit ends them all: no thread is joined, because nothing
//! outlives the guest.

mod acpi;
mod boot;
mod bus;
mod event_loop;
mod guest;
mod hotplug;
mod legacy;
mod machine;
mod memory;
mod outcome;
mod pci;
mod seccomp;
mod vcpu;
mod vfio;
mod virtio;

use std::io;
use std::process::ExitCode;

pub(crate) use self::memory::GuestRam;
use crate::control::{Channel, ControlError, Event, VMM_CHANNEL_FD, exit_code};
use crate::vfio::VfioError;
use boot::LoadError;
use guest::Guest;
use machine::MachineError;
use net_types::PciAddress;
use outcome::Outcome;
use vfio::PassthroughError;
use virtio::{BlockError, NetError, TransportError};

/// Why a guest did not start or could not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmmError {
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    #[error("the virtual machine could not be set up")]
    Machine(#[from] MachineError),
    #[error("the guest could not be loaded")]
    Load(#[from] LoadError),
    #[error("the ACPI tables do not fit into guest memory")]
    Acpi(#[source] vm_memory::GuestMemoryError),
    #[error("cannot make {what}")]
    Resource { what: &'static str, source: io::Error },
    #[error("the control channel failed")]
    Control(#[from] ControlError),
    #[error("epoll failed")]
    Epoll(#[source] io::Error),
    #[error("disks[{index}] cannot be used")]
    Disk { index: usize, source: BlockError },
    #[error("nics[{index}] cannot be used")]
    Nic { index: usize, source: NetError },
    #[error("devices cannot be let into guest memory")]
    Vfio(#[source] VfioError),
    #[error("PCI device {address} cannot be handed to the guest")]
    Passthrough { address: PciAddress, source: PassthroughError },
    #[error("the guest's machine has no place for PCI functions of the host")]
    NoPlaces,
    #[error("a device could not be made")]
    Device(#[from] TransportError),
    #[error("the devices do not fit on the bus")]
    BusFull(#[from] pci::BusFull),
    #[error("the thread of a {name} device ended unexpectedly")]
    DeviceDied { name: &'static str },
    #[error("the process could not be confined")]
    Confine(#[from] seccomp::ConfineError),
    #[error("the run ended without a reason")]
    NoOutcome,
    #[error("the guest stopped")]
    Vcpu(#[source] vcpu::VcpuError),
}

/// The `vmm` role: takes the channel, runs the guest it describes, and ends with an [`exit_code`].
pub(crate) fn main() -> ExitCode {
    let channel = match crate::inherited::take(VMM_CHANNEL_FD)
        .map_err(ControlError::NotAChannel)
        .and_then(Channel::from_fd)
    {
        Ok(channel) => channel,
        Err(error) => {
            tracing::error!("{}", crate::chain(&error));
            return ExitCode::from(exit_code::FAILED);
        }
    };
    ExitCode::from(run(&channel))
}

/// Runs one guest on an open channel, from configuration to exit code.
fn run(channel: &Channel) -> u8 {
    let prepared = channel.receive_config().map_err(VmmError::from).and_then(Guest::prepare);
    let ended = prepared.and_then(|guest| {
        let end = guest.end.clone();
        guest.run(channel).map(|()| end)
    });
    match ended {
        Ok(end) => match end.outcome() {
            Some(outcome) => conclude(channel, outcome),
            None => conclude(channel, &Outcome::Failed(VmmError::NoOutcome)),
        },
        Err(error) => conclude(channel, &Outcome::Failed(error)),
    }
}

/// The last word to the supervisor, and the exit code that goes with it.
fn conclude(channel: &Channel, outcome: &Outcome) -> u8 {
    let (event, code) = match outcome {
        Outcome::Shutdown => (Event::Shutdown, exit_code::CLEAN),
        Outcome::Stopped => (Event::Stopped, exit_code::CLEAN),
        Outcome::Reset => (Event::Reset, exit_code::RESET),
        Outcome::Failed(error) => {
            let message = crate::chain(error).to_string();
            tracing::error!("{message}");
            (Event::Error { message }, exit_code::FAILED)
        }
    };
    if let Err(error) = channel.send_event(&event) {
        tracing::warn!("{}", crate::chain(&error));
    }
    code
}
