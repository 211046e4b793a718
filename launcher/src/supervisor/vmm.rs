//! One VMM process: everything it needs is opened here and handed over.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::ExitStatus;
use std::time::Duration;

use netns::{NetNs, NetNsError};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Pid;
use tap::{Queue, TapError};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr};
use tokio::time::timeout;

use super::spawn::{self, Confinement};
use super::{backends, limits, passthrough};
use crate::control::{
    self, Channel, Command, ControlError, Event, NicBackend, QueuePairs, Received, VmmConfig,
};
use crate::kvm::{self, KvmError};
use crate::ready::Ready;
use crate::vfio::{self, LockedMemory, VfioError};
use crate::vm::images::{ImageError, Located};
use crate::vm::layout::VmDir;
use crate::vm::plan::{Backing, PlannedDisk, PlannedNic};
use crate::vm::record::{Record, ToGuest, Wired};

/// Most bytes of a VMM's log that are taken over; a VMM is not trusted to be brief.
const LOG_BYTES: u64 = 256 << 10;
/// How long a VMM may take to end after it said that it does.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A running VMM. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Vmm {
    child: Child,
    channel: Ready<Channel>,
}

/// A VMM that was started.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) vmm: Vmm,
    /// The host's end of the serial line.
    pub(super) serial: UnixStream,
    /// The NICs, by their place in the configuration, whose vhost-user backend was not there.
    pub(super) unconnected: Vec<usize>,
}

/// Why a VMM could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error("{what}")]
    File { what: String, source: ImageError },
    #[error("disk {0} is used by another VM")]
    DiskInUse(String),
    #[error("disk {disk}: cannot {operation}")]
    Disk { disk: String, operation: &'static str, source: io::Error },
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    #[error("cannot open the tap of interface {interface}")]
    Tap { interface: String, source: TapError },
    #[error("cannot hand PCI functions to the guest")]
    Vfio(#[from] VfioError),
    #[error("cannot have as many open descriptors as the NICs' queues need")]
    Limit(#[source] io::Error),
    #[error("cannot make the serial line")]
    Serial(#[source] io::Error),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("cannot start the VMM")]
    Spawn(#[source] io::Error),
}

/// Whether disks that are thrown away with an instance are made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disks {
    /// A new instance.
    Fresh,
    /// The guest has only restarted.
    Kept,
}

impl Vmm {
    /// Starts one for the VM of `record`.
    pub(super) fn start(
        directory: &VmDir,
        record: &Record,
        netns: &NetNs,
        disks: Disks,
    ) -> Result<Started, StartError> {
        let plan = &record.plan;
        if disks == Disks::Fresh {
            copy_disks(directory, &plan.disks)?;
        }
        let file = |located: &Located, what: &str| {
            located
                .open()
                .map(OwnedFd::from)
                .map_err(|source| StartError::File { what: what.to_owned(), source })
        };
        let (ours, theirs) = StdUnixStream::pair().map_err(StartError::Serial)?;
        ours.set_nonblocking(true).map_err(StartError::Serial)?;
        let needs = limits::needs(record);
        limits::raise_own(needs.own_descriptors).map_err(StartError::Limit)?;
        let nics = plan.nics.iter().zip(&record.nics);
        let config = VmmConfig {
            vcpus: plan.vcpus,
            memory: plan.memory,
            command_line: plan.command_line.clone(),
            kvm: kvm::open()?,
            kernel: file(&plan.kernel, "kernel")?,
            initrd: plan.initrd.as_ref().map(|initrd| file(initrd, "initrd")).transpose()?,
            serial: theirs.into(),
            disks: plan.disks.iter().map(|disk| open_disk(directory, disk)).collect::<Result<_, _>>()?,
            nics: nics
                .filter_map(|(nic, wired)| open_nic(netns, nic, wired).transpose())
                .collect::<Result<_, _>>()?,
            places: passthrough::places(record),
            passthrough: passthrough::open(record)?,
        };
        let (channel, vmm_channel) = Channel::pair()?;
        let vmm_channel = OwnedFd::from(vmm_channel);
        let confinement =
            Confinement { owner: record.owner, descriptors: needs.descriptors, threads: needs.threads };
        let command =
            spawn::confined(&["vmm"], vmm_channel.as_fd(), confinement).map_err(StartError::Spawn)?;
        let mut command = tokio::process::Command::from(command);
        let mut child = command.kill_on_drop(true).spawn().map_err(StartError::Spawn)?;
        drop(vmm_channel);
        if let Some(log) = child.stderr.take() {
            tokio::spawn(take_over_log(log));
        }
        channel.send_config(&config)?;
        let channel = Ready::new(channel).map_err(StartError::Spawn)?;
        let serial = UnixStream::from_std(ours).map_err(StartError::Serial)?;
        Ok(Started { vmm: Self { child, channel }, serial, unconnected: unconnected(&config) })
    }

    /// The next event; none when the VMM has closed the channel, or says what is no event.
    pub(super) async fn event(&self) -> Option<Event> {
        loop {
            match self.channel.get().receive_event() {
                Ok(Received::Message(event)) => return Some(event),
                Ok(Received::Closed) => return None,
                Ok(Received::Nothing) => self.channel.readable().await.ok()?,
                Err(error) => {
                    tracing::error!("the VMM is not to be trusted: {}", crate::chain(&error));
                    return None;
                }
            }
        }
    }

    /// Asks something of the VMM; one that is gone is noticed elsewhere.
    pub(super) fn command(&self, command: &Command) {
        if let Err(error) = self.channel.get().send_command(command) {
            tracing::debug!("{command:?}: {}", crate::chain(&error));
        }
    }

    /// Lets it lock this many bytes of memory.
    pub(super) fn allow_locked_memory(&self, bytes: u64) -> Result<(), LockedMemory> {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        // One that has ended locks nothing.
        pid.map_or(Ok(()), |pid| vfio::allow_locked_memory_of(pid, bytes))
    }

    /// Waits for the end of a VMM that is about to end, and sees to it that it does.
    pub(super) async fn end(mut self) -> io::Result<ExitStatus> {
        if let Ok(ended) = timeout(LAST_WORDS, self.child.wait()).await {
            return ended;
        }
        tracing::warn!("the VMM does not end; it is killed");
        self.child.kill().await?;
        self.child.wait().await
    }
}

/// Copies what is not to be changed.
fn copy_disks(directory: &VmDir, disks: &[PlannedDisk]) -> Result<(), StartError> {
    for disk in disks {
        let Backing::CopyOf(original) = &disk.backing else { continue };
        let failed =
            |source| StartError::Disk { disk: disk.name.clone(), operation: "copy the image", source };
        let mut from = original
            .open()
            .map_err(|source| StartError::File { what: format!("disk {}", disk.name), source })?;
        let mut to = File::create(directory.disk_copy(&disk.name)).map_err(failed)?;
        io::copy(&mut from, &mut to).map_err(failed)?;
    }
    Ok(())
}

fn open_disk(directory: &VmDir, disk: &PlannedDisk) -> Result<control::Disk, StartError> {
    let PlannedDisk { name, serial, read_only, backing } = disk;
    let located = match backing {
        Backing::Seed => Located::on_node(&directory.seed()),
        Backing::CopyOf(_) => Located::on_node(&directory.disk_copy(name)),
        Backing::File(file) => file.clone(),
    };
    let opened = if *read_only { located.open() } else { located.open_for_writing() };
    let file = opened.map_err(|source| StartError::File { what: format!("disk {name}"), source })?;
    // Two guests writing to one disk would ruin it; readers may share it with readers.
    let lock = if *read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match flock(&file, lock) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(StartError::DiskInUse(name.clone())),
        Err(errno) => {
            return Err(StartError::Disk { disk: name.clone(), operation: "lock", source: errno.into() });
        }
    }
    Ok(control::Disk { file: file.into(), read_only: *read_only, serial: serial.clone() })
}

/// A virtio NIC; none if the guest has a function of the hardware.
fn open_nic(netns: &NetNs, nic: &PlannedNic, wired: &Wired) -> Result<Option<control::Nic>, StartError> {
    let (backend, mtu) = match &wired.to_guest {
        ToGuest::Function(_) | ToGuest::Unplugged => return Ok(None),
        ToGuest::Tap { tap, mtu } => {
            let several = nic.pairs > QueuePairs::ONE;
            let queues = netns
                .run(|| {
                    (0..nic.pairs.count()).map(|_| Queue::open(tap, several)).collect::<Result<Vec<_>, _>>()
                })?
                .map_err(|source| StartError::Tap { interface: nic.name.clone(), source })?;
            (NicBackend::Tap(queues.into_iter().map(OwnedFd::from).collect()), *mtu)
        }
        ToGuest::VhostUser { socket, mtu, control: _ } => {
            let socket = match backends::connect(socket) {
                Ok(socket) => Some(socket),
                Err(error) => {
                    let socket = socket.display();
                    tracing::warn!(interface = nic.name, "no backend at {socket} yet: {error}");
                    None
                }
            };
            (NicBackend::VhostUser { socket, pairs: nic.pairs }, *mtu)
        }
    };
    Ok(Some(control::Nic { backend, mac: wired.mac, mtu, slot: nic.slot }))
}

/// The NICs whose backend was not there.
fn unconnected(config: &VmmConfig) -> Vec<usize> {
    let nics = config.nics.iter().enumerate().filter_map(|(nic, config)| match config.backend {
        NicBackend::VhostUser { socket: None, .. } => Some(nic),
        NicBackend::VhostUser { socket: Some(_), .. } | NicBackend::Tap(_) => None,
    });
    nics.collect()
}

/// Puts the VMM's log lines into the supervisor's own log, which keeps them apart.
async fn take_over_log(log: ChildStderr) {
    let mut lines = BufReader::new(log.take(LOG_BYTES)).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::info!(target: "vmm", "vmm: {}", line.escape_debug());
    }
}
