//! One vhost-user connection: the VMM's messages become running queues.
//!
//! The vhost crate parses and dispatches; this is what it dispatches to. Whatever changes what a running ring stands
//! on (memory, features, addresses, log) stops the rings, changes it, and starts them where they were. An error ends
//! the connection: a VMM that sends nonsense is not argued with.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};

use super::features::{self, Features};
use super::vring::{EventError, Vring, eventfd};
use super::{PortHandle, VhostSettings};
use crate::memory::{DirtyLog, GuestMemory, LogError, MAX_REGIONS, NewRegion, Region, TableError};
use crate::port::Queue;
use crate::ring::{LayoutError, NewRing, QueueSize, Ring, RingAddresses, RxQueue, TxQueue};
use crate::worker::Stopped;

/// Bytes of `struct virtio_net_config` that we fill: mac, status, max_virtqueue_pairs, mtu.
const CONFIG_LENGTH: usize = 12;

/// What a VMM asked for that cannot be.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("virtqueue {index} does not exist; there are {count}")]
    NoSuchQueue { index: u32, count: usize },
    #[error("features {0:#x} were not offered")]
    Features(u64),
    #[error("virtqueue {index} cannot start at {base}; at most 65535 is allowed")]
    Base { index: u32, base: u32 },
    #[error("memory table")]
    Memory(#[from] TableError),
    #[error("there is no memory region at {0:#x} to remove")]
    NoSuchRegion(u64),
    #[error("virtqueue {index}")]
    Layout { index: u32, source: LayoutError },
    #[error("virtqueue {index}: {use_of} eventfd")]
    Event { index: u32, use_of: &'static str, source: EventError },
    #[error("virtqueue {0} has no kick eventfd: a backend that polls forever was not asked for")]
    NoKick(u32),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("bytes {offset} to {offset}+{size} of a configuration space of {CONFIG_LENGTH}")]
    Config { offset: u32, size: u32 },
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("the guest cannot write its configuration")]
    ReadOnly,
}

impl From<SessionError> for Error {
    fn from(error: SessionError) -> Self {
        Self::ReqHandlerError(std::io::Error::other(error))
    }
}

fn unsupported<T>() -> Result<T> {
    Err(Error::InvalidOperation("not offered by this backend"))
}

/// The state of a connection.
pub(super) struct Session {
    port: PortHandle,
    settings: VhostSettings,
    features: Features,
    memory: Arc<GuestMemory>,
    log: Option<Arc<DirtyLog>>,
    vrings: Vec<Vring>,
}

impl Session {
    pub(super) fn new(port: PortHandle, settings: VhostSettings) -> Self {
        let vrings = (0..settings.queue_pairs.get() * 2).map(|_| Vring::default()).collect();
        let (features, memory) = (Features::default(), Arc::default());
        Self { port, settings, features, memory, log: None, vrings }
    }

    fn vring(&mut self, index: u32) -> std::result::Result<&mut Vring, SessionError> {
        let count = self.vrings.len();
        let place = usize::try_from(index).unwrap_or(usize::MAX);
        self.vrings.get_mut(place).ok_or(SessionError::NoSuchQueue { index, count })
    }

    /// Starts a queue, if all is known about it and it does not run.
    fn start_if_ready(&mut self, index: u32) -> std::result::Result<(), SessionError> {
        let (features, memory) = (self.features, Arc::clone(&self.memory));
        let log = self.log.clone().filter(|_| features.logs());
        let vring = self.vring(index)?;
        let enabled = vring.enabled || !features.rings_need_enabling();
        let (Some(size), Some(addresses), Some(kick)) = (vring.size, vring.addresses, &vring.kick) else {
            return Ok(());
        };
        if !enabled || vring.running {
            return Ok(());
        }
        let duplicate =
            |source: std::io::Error| SessionError::Event { index, use_of: "call", source: source.into() };
        let call = vring.call.as_ref().map(File::try_clone).transpose().map_err(duplicate)?;
        let (base, kick) = (vring.base, Arc::clone(kick));
        let rings = features.rings();
        let new = NewRing { memory, addresses, size, base, features: rings, kick, call, log };
        let ring = Ring::new(new).map_err(|source| SessionError::Layout { index, source })?;
        vring.running = true;
        let queue = if index.is_multiple_of(2) {
            Queue::Rx(RxQueue::new(ring, features.receives(), features.mergeable()))
        } else {
            Queue::Tx(TxQueue::new(ring, features.sends()))
        };
        Ok(self.port.start(index, queue)?)
    }

    /// Stops a queue, if it runs, and remembers where.
    fn stop(&mut self, index: u32) -> std::result::Result<(), SessionError> {
        if self.vring(index)?.running {
            let next = self.port.stop(index)?;
            let vring = self.vring(index)?;
            vring.running = false;
            vring.base = next.unwrap_or(vring.base);
        }
        Ok(())
    }

    /// Stops all queues, changes what they stand on, and starts them again.
    fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Self) -> std::result::Result<T, SessionError>,
    ) -> std::result::Result<T, SessionError> {
        let all = 0..u32::try_from(self.vrings.len()).unwrap_or(u32::MAX);
        all.clone().try_for_each(|index| self.stop(index))?;
        let result = change(self)?;
        all.clone().try_for_each(|index| self.start_if_ready(index))?;
        Ok(result)
    }

    fn replace_memory(&mut self, regions: Vec<Arc<Region>>) -> std::result::Result<(), SessionError> {
        let memory = Arc::new(GuestMemory::new(regions)?);
        self.change(|session| {
            session.memory = memory;
            Ok(())
        })
    }

    fn forget(&mut self) -> std::result::Result<(), SessionError> {
        for index in 0..u32::try_from(self.vrings.len()).unwrap_or(u32::MAX) {
            self.stop(index)?;
            *self.vring(index)? = Vring::default();
        }
        Ok(())
    }
}

fn map(region: &VhostUserMemoryRegion, file: File) -> std::result::Result<Arc<Region>, SessionError> {
    let file = OwnedFd::from(file);
    let VhostUserMemoryRegion {
        guest_phys_addr: guest,
        memory_size: size,
        user_addr: user,
        mmap_offset: offset,
    } = *region;
    Ok(Arc::new(Region::map(NewRegion { guest, size, user, offset, file })?))
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.forget()?;
        self.features = Features::default();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(Features::offered(self.settings.mtu).bits())
    }

    fn set_features(&mut self, bits: u64) -> Result<()> {
        let acknowledged = Features::offered(self.settings.mtu).acknowledge(bits);
        let features = acknowledged.map_err(SessionError::Features)?;
        if features != self.features {
            self.change(|session| {
                session.features = features;
                Ok(())
            })?;
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        Region::check_all(regions.iter().map(|region| region.memory_size)).map_err(SessionError::from)?;
        let regions = regions.iter().zip(files).map(|(region, file)| map(region, file));
        let regions = regions.collect::<std::result::Result<Vec<_>, _>>()?;
        self.replace_memory(regions)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = QueueSize::try_from(num).map_err(|source| SessionError::Layout { index, source })?;
        self.stop(index)?;
        self.vring(index)?.size = Some(size);
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let used_log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        self.stop(index)?;
        self.vring(index)?.addresses = Some(RingAddresses { descriptors, available, used, used_log });
        Ok(self.start_if_ready(index)?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let start = u16::try_from(base).map_err(|_too_large| SessionError::Base { index, base })?;
        self.stop(index)?;
        self.vring(index)?.base = start;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.stop(index)?;
        let vring = self.vring(index)?;
        // It stays stopped until it is kicked off again.
        vring.kick = None;
        vring.call = None;
        Ok(VhostUserVringState::new(index, vring.base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = u32::from(index);
        let kick = fd.ok_or(SessionError::NoKick(index))?;
        let kick = eventfd(kick).map_err(|source| SessionError::Event { index, use_of: "kick", source })?;
        self.stop(index)?;
        self.vring(index)?.kick = Some(Arc::new(kick));
        Ok(self.start_if_ready(index)?)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = u32::from(index);
        let event = |source| SessionError::Event { index, use_of: "call", source };
        let call = fd.map(eventfd).transpose().map_err(event)?;
        let for_ring = call.as_ref().map(File::try_clone).transpose().map_err(|error| event(error.into()))?;
        let vring = self.vring(index)?;
        vring.call = call;
        if vring.running {
            self.port.set_call(index, for_ring).map_err(SessionError::from)?;
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        // An error ends the connection, which says more than an eventfd.
        self.vring(index.into())?;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(features::protocol())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        match features & !features::protocol().bits() {
            0 => Ok(()),
            unknown => Err(SessionError::Features(unknown).into()),
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.settings.queue_pairs.get() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.vring(index)?.enabled = enable;
        if enable {
            self.start_if_ready(index)?;
        } else {
            self.stop(index)?;
        }
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let mut config = [0; CONFIG_LENGTH];
        let pairs = u16::try_from(self.settings.queue_pairs.get()).unwrap_or(u16::MAX);
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..12].copy_from_slice(&self.settings.mtu.unwrap_or_default().to_le_bytes());
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
        let bytes = config.get(start..end).ok_or(SessionError::Config { offset, size })?;
        Ok(bytes.to_vec())
    }

    fn set_config(&mut self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Err(SessionError::ReadOnly.into())
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _object: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        unsupported()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        let known = self.memory.regions().iter().map(|region| region.size());
        Region::check_all(known.chain([region.memory_size])).map_err(SessionError::from)?;
        let new = map(region, file)?;
        let regions = self.memory.regions().iter().cloned().chain([new]).collect();
        self.replace_memory(regions)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let VhostUserMemoryRegion { guest_phys_addr: guest, memory_size: size, user_addr: user, .. } =
            **region;
        let kept: Vec<_> =
            self.memory.regions().iter().filter(|region| !region.is(guest, size, user)).cloned().collect();
        if kept.len() == self.memory.regions().len() {
            return Err(SessionError::NoSuchRegion(guest).into());
        }
        Ok(self.replace_memory(kept)?)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let mapped = DirtyLog::map(&OwnedFd::from(file), log.mmap_offset, log.mmap_size);
        let mapped = Arc::new(mapped.map_err(SessionError::from)?);
        Ok(self.change(|session| {
            session.log = Some(mapped);
            Ok(())
        })?)
    }
}
