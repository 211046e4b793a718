//! The virtual machine monitor: one process, one guest, on KVM.
//!
//! Started by the supervisor with a control channel as its only means (see [`crate::control`]); everything it needs
//! comes as descriptors, and it opens nothing itself. It runs until the guest ends, the supervisor asks, or something
//! fails, says which by an event, and exits with an [`exit_code`]. A reset is an end too: the supervisor starts a
//! fresh process, so no state of the old guest survives.
//!
//! One thread per vCPU ([`vcpu`]) reaches devices through the [`bus`]; one thread per virtio device serves its queues
//! ([`virtio`]); the main thread has the console and the control channel ([`event_loop`]). Process exit ends them all:
//! no thread is joined, because nothing outlives the guest.

mod acpi;
mod boot;
mod bus;
mod event_loop;
mod legacy;
mod machine;
mod memory;
mod outcome;
mod pci;
mod seccomp;
mod vcpu;
mod virtio;

use std::fs::File;
use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Barrier, Mutex};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::control::{
    Channel, ControlError, Disk, Event, Nic, VMM_CHANNEL_FD, VcpuCount, VmmConfig, exit_code,
};
use boot::{LoadError, Sources, cpuid, registers};
use bus::Bus;
use event_loop::EventLoop;
use legacy::{PowerPorts, SerialPort, gsi};
use machine::{Machine, MachineError, failed};
use outcome::{End, Outcome};
use pci::{PciRoot, Wiring};
use virtio::{Block, BlockError, Device, Net, NetError, Rng, Transport, TransportError};

/// Why a guest did not start or could not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmmError {
    #[error("guest memory")]
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
            tracing::error!("{}", with_causes(&error));
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
            let message = with_causes(error);
            tracing::error!("{message}");
            (Event::Error { message }, exit_code::FAILED)
        }
    };
    if let Err(error) = channel.send_event(&event) {
        tracing::warn!("{}", with_causes(&error));
    }
    code
}

/// An error and everything that caused it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// A guest that is ready to run.
struct Guest {
    machine: Machine,
    vcpus: Vec<VcpuFd>,
    bus: Arc<Bus>,
    power_button: EventFd,
    end: End,
}

impl Guest {
    /// Builds the machine the configuration describes, up to the guest's first instruction.
    fn prepare(config: VmmConfig) -> Result<Self, VmmError> {
        let VmmConfig { vcpus, memory, command_line, kvm, kernel, initrd, serial, disks, nics } = config;
        let machine = Machine::new(kvm, memory::map(memory)?)?;
        let end = End::new().map_err(|source| VmmError::Resource { what: "an eventfd", source })?;
        let serial = SerialPort::new(serial, interrupt_line(&machine, gsi::SERIAL)?)
            .map_err(|source| VmmError::Resource { what: "the serial port", source })?;
        let pci = devices(&machine, &end, disks, nics)?;
        let bus = Arc::new(Bus {
            serial: Arc::new(serial),
            power: PowerPorts::new(end.clone()),
            pci: Mutex::new(pci),
        });
        let sources = Sources { kernel: File::from(kernel), initrd: initrd.map(File::from), command_line };
        let entry = boot::load(&machine.ram, sources)?;
        acpi::write(&machine.ram, vcpus).map_err(VmmError::Acpi)?;
        let power_button = interrupt_line(&machine, gsi::POWER_BUTTON)?;
        let vcpus = set_up_vcpus(&machine, vcpus, entry)?;
        Ok(Self { machine, vcpus, bus, power_button, end })
    }

    /// Runs until the end; its reason is in `self.end`.
    fn run(self, channel: &Channel) -> Result<(), VmmError> {
        let Self { machine: _machine, vcpus, bus, power_button, end } = self;
        let event_loop = EventLoop::new(channel, Arc::clone(&bus.serial), power_button, end.clone())
            .map_err(|source| VmmError::Resource { what: "the event loop", source })?;
        let start = Arc::new(Barrier::new(vcpus.len() + 1));
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            vcpu::spawn(index, vcpu, Arc::clone(&bus), end.clone(), Arc::clone(&start))
                .map_err(|source| VmmError::Resource { what: "a vCPU thread", source })?;
        }
        // Every thread is through its beginnings; none has run the guest.
        start.wait();
        seccomp::confine()?;
        channel.send_event(&Event::Running)?;
        start.wait();
        event_loop.run();
        Ok(())
    }
}

/// The PCI bus with all devices: disks first, then NICs, each in the order of the configuration.
fn devices(machine: &Machine, end: &End, disks: Vec<Disk>, nics: Vec<Nic>) -> Result<PciRoot, VmmError> {
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    for (index, disk) in disks.into_iter().enumerate() {
        devices.push(Box::new(Block::new(disk).map_err(|source| VmmError::Disk { index, source })?));
    }
    for (index, nic) in nics.into_iter().enumerate() {
        devices.push(Box::new(Net::new(nic).map_err(|source| VmmError::Nic { index, source })?));
    }
    devices.push(Box::new(Rng::new()));
    let wiring = Arc::new(Wiring::new(Arc::clone(&machine.vm)));
    let mut root = PciRoot::new();
    for device in devices {
        let (ram, wiring) = (Arc::clone(&machine.ram), Arc::clone(&wiring));
        let transport = Transport::new(device, &mut root, ram, wiring, end.clone())?;
        root.add(Box::new(transport))?;
    }
    Ok(root)
}

/// An event that raises an IOAPIC pin.
fn interrupt_line(machine: &Machine, gsi: u32) -> Result<EventFd, VmmError> {
    let event =
        EventFd::new(EFD_NONBLOCK).map_err(|source| VmmError::Resource { what: "an eventfd", source })?;
    machine.vm.register_irqfd(&event, gsi).map_err(failed("KVM_IRQFD"))?;
    Ok(event)
}

fn set_up_vcpus(machine: &Machine, count: VcpuCount, entry: u64) -> Result<Vec<VcpuFd>, VmmError> {
    registers::write_tables(&machine.ram)?;
    let supported = cpuid::supported(&machine.kvm)?;
    let vcpus = machine.create_vcpus(count)?;
    for (index, vcpu) in (0..).zip(&vcpus) {
        cpuid::set(vcpu, &supported, index, count)?;
        registers::set_msrs(vcpu)?;
        if index == 0 {
            registers::enter_kernel(vcpu, entry)?;
        }
    }
    Ok(vcpus)
}
