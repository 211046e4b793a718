//! A vCPU's thread: run the guest, serve what it cannot do itself, stop when the end has come.

use std::io;
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::VmmError;
use super::bus::Bus;
use super::outcome::{DeathWatch, End, Outcome};

/// KVM_SYSTEM_EVENT_SHUTDOWN, _RESET and _CRASH (`Documentation/virt/kvm/api.rst`, 5).
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;

/// Why a vCPU cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VcpuError {
    /// KVM_RUN failed.
    #[error("KVM_RUN failed on vCPU {index}")]
    Run {
        /// Which vCPU.
        index: usize,
        /// What the kernel said.
        source: kvm_ioctls::Error,
    },
    /// The guest's state is not one the hardware can enter.
    #[error("the hardware refused to enter the guest on vCPU {index}: reason {reason:#x}")]
    Entry {
        /// Which vCPU.
        index: usize,
        /// The hardware's reason.
        reason: u64,
    },
    /// KVM gave up on an instruction, or says something we do not know.
    #[error("KVM stopped vCPU {index}: {exit}")]
    Stopped {
        /// Which vCPU.
        index: usize,
        /// KVM's reason.
        exit: String,
    },
    /// The thread ended by a panic.
    #[error("the thread of vCPU {index} ended unexpectedly")]
    Died {
        /// Which vCPU.
        index: usize,
    },
}

/// Starts the thread of a vCPU. It waits at `start` twice before it runs the guest: once when the thread is set up,
/// once until the process is.
pub(crate) fn spawn(
    index: usize,
    mut vcpu: VcpuFd,
    bus: Arc<Bus>,
    end: End,
    start: Arc<Barrier>,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("vcpu{index}")).spawn(move || {
        let _watch = DeathWatch::new(end.clone(), VmmError::Vcpu(VcpuError::Died { index }));
        start.wait();
        start.wait();
        if let Err(error) = run(index, &mut vcpu, &bus, &end) {
            end.come(Outcome::Failed(VmmError::Vcpu(error)));
        }
    })
}

fn run(index: usize, vcpu: &mut VcpuFd, bus: &Bus, end: &End) -> Result<(), VcpuError> {
    while !end.has_come() {
        let exit = match vcpu.run() {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
            Err(source) => return Err(VcpuError::Run { index, source }),
        };
        match exit {
            VcpuExit::IoIn(port, data) => bus.port_read(port, data),
            VcpuExit::IoOut(port, data) => bus.port_write(port, data),
            VcpuExit::MmioRead(address, data) => bus.memory_read(address, data),
            VcpuExit::MmioWrite(address, data) => bus.memory_write(address, data),
            VcpuExit::Intr => {}
            // A triple fault: what resets a PC.
            VcpuExit::Shutdown | VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _) => end.come(Outcome::Reset),
            VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _) => end.come(Outcome::Shutdown),
            VcpuExit::FailEntry(reason, _cpu) => return Err(VcpuError::Entry { index, reason }),
            other => return Err(VcpuError::Stopped { index, exit: format!("{other:?}") }),
        }
    }
    Ok(())
}
