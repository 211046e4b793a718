//! Eventfds between guest and host: a write of the guest's that wakes a thread (ioeventfd), a write of a thread's
//! that interrupts the guest (irqfd, with KVM's routing table saying where to).

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Pins of KVM's IOAPIC; message-signalled interrupts have numbers from here on.
const IOAPIC_PINS: u32 = 24;
/// Pins of one of the two PICs.
const PIC_PINS: u32 = 8;
/// The most numbers KVM routes (KVM_MAX_IRQ_ROUTES).
const MAX_GSI: u32 = 4096;

/// What KVM or the kernel refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WiringError {
    /// No descriptor for an event.
    #[error("cannot make an eventfd")]
    EventFd(#[source] io::Error),
    /// All interrupt numbers are taken.
    #[error("more than {MAX_GSI} interrupts are not supported")]
    NoInterruptLeft,
    /// A request failed.
    #[error("{operation} failed")]
    Kvm {
        /// The ioctl's name.
        operation: &'static str,
        /// What the kernel said.
        source: kvm_ioctls::Error,
    },
}

fn failed(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> WiringError {
    move |source| WiringError::Kvm { operation, source }
}

/// KVM's side of all devices' events. Shared; one per machine.
pub(crate) struct Wiring {
    vm: Arc<VmFd>,
    /// Where each message-signalled interrupt goes: address and data.
    routes: Mutex<Routes>,
}

#[derive(Default)]
struct Routes {
    messages: BTreeMap<u32, (u64, u32)>,
    allocated: u32,
    /// Given back, to be given out again.
    free: Vec<u32>,
}

impl Wiring {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, routes: Mutex::default() }
    }

    /// An event that interrupts the guest as [`Wiring::route`] says, and its number.
    pub(crate) fn interrupt(&self) -> Result<(EventFd, u32), WiringError> {
        let (event, gsi) = self.held_interrupt()?;
        self.bind(&event, gsi)?;
        Ok((event, gsi))
    }

    /// An event that interrupts the guest once it is bound ([`Wiring::bind`]), and its number.
    pub(crate) fn held_interrupt(&self) -> Result<(EventFd, u32), WiringError> {
        let mut routes = self.routes();
        let next = IOAPIC_PINS + routes.allocated;
        let gsi = routes.free.last().copied().unwrap_or(next);
        if gsi >= MAX_GSI {
            return Err(WiringError::NoInterruptLeft);
        }
        let event = event()?;
        match routes.free.pop() {
            Some(_) => {}
            None => routes.allocated += 1,
        }
        Ok((event, gsi))
    }

    /// Takes back what [`Wiring::interrupt`] gave.
    pub(crate) fn give_back(&self, event: &EventFd, gsi: u32) {
        match self.vm.unregister_irqfd(event, gsi) {
            Ok(()) => {
                let mut routes = self.routes();
                routes.messages.remove(&gsi);
                routes.free.push(gsi);
            }
            // A number is lost, of some thousands.
            Err(error) => tracing::error!("KVM_IRQFD failed: {error}"),
        }
    }

    /// Lets `event` interrupt the guest; at once, if it was signalled before.
    pub(crate) fn bind(&self, event: &EventFd, gsi: u32) -> Result<(), WiringError> {
        self.vm.register_irqfd(event, gsi).map_err(failed("KVM_IRQFD"))
    }

    /// Undoes [`Wiring::bind`]: from now on the event holds what is signalled.
    pub(crate) fn unbind(&self, event: &EventFd, gsi: u32) -> Result<(), WiringError> {
        self.vm.unregister_irqfd(event, gsi).map_err(failed("KVM_IRQFD"))
    }

    /// Sends interrupt `gsi` to where the guest wants it. Any address and data are allowed: KVM drops what makes no
    /// sense.
    pub(crate) fn route(&self, gsi: u32, address: u64, data: u32) -> Result<(), WiringError> {
        let mut routes = self.routes();
        if routes.messages.insert(gsi, (address, data)) == Some((address, data)) {
            return Ok(());
        }
        // KVM takes the table as a whole.
        let entries: Vec<_> = pins().chain(routes.messages.iter().map(message)).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_size| WiringError::NoInterruptLeft)?;
        self.vm.set_gsi_routing(&table).map_err(failed("KVM_SET_GSI_ROUTING"))
    }

    /// Makes writes of any size at guest-physical `address` signal `event`.
    pub(crate) fn connect(&self, event: &EventFd, address: u64) -> Result<(), WiringError> {
        let address = IoEventAddress::Mmio(address);
        self.vm.register_ioevent(event, &address, NoDatamatch).map_err(failed("KVM_IOEVENTFD"))
    }

    /// Undoes [`Wiring::connect`].
    pub(crate) fn disconnect(&self, event: &EventFd, address: u64) -> Result<(), WiringError> {
        let address = IoEventAddress::Mmio(address);
        self.vm.unregister_ioevent(event, &address, NoDatamatch).map_err(failed("KVM_IOEVENTFD"))
    }

    fn routes(&self) -> std::sync::MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A non-blocking event.
pub(crate) fn event() -> Result<EventFd, WiringError> {
    EventFd::new(EFD_NONBLOCK).map_err(WiringError::EventFd)
}

/// The fixed part of the table, as KVM has it by default: pins of IOAPIC and PICs by their number.
fn pins() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let ioapic = (0..IOAPIC_PINS).map(|pin| (pin, KVM_IRQCHIP_IOAPIC, pin));
    let master = (0..PIC_PINS).map(|pin| (pin, KVM_IRQCHIP_PIC_MASTER, pin));
    let slave = (0..PIC_PINS).map(|pin| (PIC_PINS + pin, KVM_IRQCHIP_PIC_SLAVE, pin));
    ioapic.chain(master).chain(slave).map(|(gsi, irqchip, pin)| kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 { irqchip: kvm_irq_routing_irqchip { irqchip, pin } },
        ..Default::default()
    })
}

#[expect(clippy::cast_possible_truncation, reason = "an address goes to KVM in halves")]
fn message((gsi, (address, data)): (&u32, &(u64, u32))) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: *address as u32,
        address_hi: (*address >> 32) as u32,
        data: *data,
        ..Default::default()
    };
    kvm_irq_routing_entry {
        gsi: *gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}
