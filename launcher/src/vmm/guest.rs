//! One guest, from its configuration to its end: puts the parts together, in the order they need.

use std::fs::File;
use std::sync::{Arc, Barrier, Mutex};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::boot::{self, Sources, cpuid, registers};
use super::bus::Bus;
use super::event_loop::EventLoop;
use super::hotplug::Hotplug;
use super::legacy::{PowerPorts, SerialPort, gsi};
use super::machine::{Machine, failed};
use super::outcome::End;
use super::pci::{PciRoot, Wiring};
use super::vfio::Places;
use super::virtio::{self, Block, Device, Mailbox, Outbox, Rng, Transport, VhostSettings};
use super::{VmmError, acpi, memory, seccomp, vcpu};
use crate::control::{
    BACKEND_PATIENCE, Channel, Disk, Event, Nic, NicBackend, Passthrough, PciSlot, Place, VcpuCount,
    VmmConfig,
};

/// A guest that is ready to run.
pub(super) struct Guest {
    machine: Arc<Machine>,
    vcpus: Vec<VcpuFd>,
    bus: Arc<Bus>,
    places: Option<Places>,
    backends: Backends,
    /// Whether a tap has more than one queue.
    several_queues: bool,
    power_button: EventFd,
    /// Says how it ended, once it has.
    pub(super) end: End,
}

/// NICs with a vhost-user backend, as the main thread sees them.
pub(super) struct Backends {
    /// One per such NIC.
    pub(super) mailboxes: Vec<Arc<Mailbox>>,
    /// What all of them have to say.
    pub(super) outbox: Arc<Outbox>,
}

impl Guest {
    /// Builds the machine the configuration describes, up to the guest's first instruction.
    pub(super) fn prepare(config: VmmConfig) -> Result<Self, VmmError> {
        let VmmConfig {
            vcpus,
            memory,
            command_line,
            kvm,
            kernel,
            initrd,
            serial,
            disks,
            nics,
            places,
            passthrough,
        } = config;
        let lends = nics.iter().any(|nic| matches!(nic.backend, NicBackend::VhostUser { .. }));
        let several = |nic: &Nic| matches!(&nic.backend, NicBackend::Tap(queues) if queues.len() > 1);
        let several_queues = nics.iter().any(several);
        let users = if lends { memory::Users::Backends } else { memory::Users::Own };
        let machine = Arc::new(Machine::new(kvm, memory::map(memory, users)?)?);
        let end = End::new().map_err(|source| VmmError::Resource { what: "an eventfd", source })?;
        let serial = SerialPort::new(serial, interrupt_line(&machine, gsi::SERIAL)?)
            .map_err(|source| VmmError::Resource { what: "the serial port", source })?;
        let outbox = Outbox::new().map_err(|source| VmmError::Resource { what: "an eventfd", source })?;
        let mut backends = Backends { mailboxes: Vec::new(), outbox: Arc::new(outbox) };
        let wanted = nics.iter().filter_map(|nic| nic.slot);
        let mut pci = PciRoot::new(wanted.chain(places.iter().filter_map(|place| place.slot)))?;
        let devices = virtio_devices(&machine, &end, disks, nics, &mut backends)?;
        let places = plug_in(&machine, &end, &mut pci, devices, &places, passthrough)?;
        let hotplug = Hotplug::new(interrupt_line(&machine, gsi::HOTPLUG)?)
            .map_err(|source| VmmError::Resource { what: "an eventfd", source })?;
        let bus = Arc::new(Bus {
            serial: Arc::new(serial),
            power: PowerPorts::new(end.clone()),
            pci: Mutex::new(pci),
            hotplug,
        });
        let sources = Sources { kernel: File::from(kernel), initrd: initrd.map(File::from), command_line };
        let entry = boot::load(&machine.ram, sources)?;
        let slots = places.as_ref().map(Places::slots).unwrap_or_default();
        acpi::write(&machine.ram, vcpus, &slots).map_err(VmmError::Acpi)?;
        let power_button = interrupt_line(&machine, gsi::POWER_BUTTON)?;
        let vcpus = set_up_vcpus(&machine, vcpus, entry)?;
        Ok(Self { machine, vcpus, bus, places, backends, several_queues, power_button, end })
    }

    /// Runs until the end; its reason is in `self.end`.
    pub(super) fn run(self, channel: &Channel) -> Result<(), VmmError> {
        let Self { machine: _machine, vcpus, bus, places, backends, several_queues, power_button, end } =
            self;
        let extras = seccomp::Extras {
            host_functions: places.is_some(),
            backends: !backends.mailboxes.is_empty(),
            several_queues,
        };
        let event_loop =
            EventLoop::new(channel, Arc::clone(&bus), power_button, places, backends, end.clone())
                .map_err(|source| VmmError::Resource { what: "the event loop", source })?;
        let start = Arc::new(Barrier::new(vcpus.len() + 1));
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            vcpu::spawn(index, vcpu, Arc::clone(&bus), end.clone(), Arc::clone(&start))
                .map_err(|source| VmmError::Resource { what: "a vCPU thread", source })?;
        }
        // Every thread is through its beginnings; none has run the guest.
        start.wait();
        seccomp::confine(extras)?;
        channel.send_event(&Event::Running)?;
        start.wait();
        if let Some(places) = event_loop.run() {
            // With the bus held, no vCPU that still runs switches a function on again.
            let _bus = bus.pci();
            places.reset();
        }
        Ok(())
    }
}

/// A virtio device, and where the guest finds it; in the first free slot if nowhere in particular.
type Placed = (Device, Option<PciSlot>);

/// All virtio devices: disks, NICs, randomness, each in the order of the configuration.
fn virtio_devices(
    machine: &Machine,
    end: &End,
    disks: Vec<Disk>,
    nics: Vec<Nic>,
    backends: &mut Backends,
) -> Result<Vec<Placed>, VmmError> {
    let mut devices: Vec<Placed> = Vec::new();
    for (index, disk) in disks.into_iter().enumerate() {
        let disk = Block::new(disk).map_err(|source| VmmError::Disk { index, source })?;
        devices.push((disk.device(), None));
    }
    for (index, nic) in nics.into_iter().enumerate() {
        let slot = nic.slot;
        devices.push((network_device(machine, end, index, nic, backends)?, slot));
    }
    devices.push((Rng::device(), None));
    Ok(devices)
}

fn network_device(
    machine: &Machine,
    end: &End,
    index: usize,
    nic: Nic,
    backends: &mut Backends,
) -> Result<Device, VmmError> {
    let Nic { backend, mac, mtu, slot: _ } = nic;
    match backend {
        NicBackend::Tap(queues) => {
            virtio::net(queues, mac, mtu).map_err(|source| VmmError::Nic { index, source })
        }
        NicBackend::VhostUser { socket, pairs } => {
            let patience = BACKEND_PATIENCE;
            let settings = VhostSettings { nic: index, socket, pairs, mac, mtu, patience };
            let (ram, outbox) = (Arc::clone(&machine.ram), Arc::clone(&backends.outbox));
            let (net, mailbox) = virtio::vhost_user(settings, ram, outbox, end.clone())
                .map_err(|source| VmmError::Resource { what: "a vhost-user device", source })?;
            backends.mailboxes.push(mailbox);
            Ok(net)
        }
    }
}

/// Puts the devices on the bus, the places for the host's functions last.
fn plug_in(
    machine: &Arc<Machine>,
    end: &End,
    root: &mut PciRoot,
    devices: Vec<Placed>,
    places: &[Place],
    passthrough: Option<Passthrough>,
) -> Result<Option<Places>, VmmError> {
    let wiring = Arc::new(Wiring::new(Arc::clone(&machine.vm)));
    for (device, slot) in devices {
        let (ram, wiring) = (Arc::clone(&machine.ram), Arc::clone(&wiring));
        let transport = Transport::new(device, root, ram, wiring, end.clone())?;
        root.add(Box::new(transport), slot)?;
    }
    if places.is_empty() {
        return passthrough.map_or(Ok(None), |_nowhere| Err(VmmError::NoPlaces));
    }
    let mut places = Places::new(places, machine, &wiring, root)?;
    if let Some(passthrough) = passthrough {
        places.fill(passthrough, root)?;
    }
    Ok(Some(places))
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
