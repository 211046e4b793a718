//! The messages as JSON. A configuration refers to descriptors by their index among those sent with it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use net_types::{Mac, PciAddress};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{
    Command, ControlError, Disk, DiskSerial, HostFunction, MemorySize, Mtu, Nic, NicBackend, Passthrough,
    PciSlot, Place, QueuePairs, VERSION, VcpuCount, VmmConfig,
};

/// What is read first, to tell a message of another release from a malformed one.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConfigMessage {
    version: u32,
    vcpus: VcpuCount,
    memory_bytes: MemorySize,
    command_line: String,
    kvm: usize,
    kernel: usize,
    initrd: Option<usize>,
    serial: usize,
    disks: Vec<DiskMessage>,
    nics: Vec<NicMessage>,
    places: Vec<Place>,
    passthrough: Option<PassthroughMessage>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
enum CommandMessage {
    PowerButton,
    Stop,
    Plug { passthrough: PassthroughMessage },
    Unplug { place: usize },
    Backend { nic: usize, socket: usize },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DiskMessage {
    file: usize,
    read_only: bool,
    serial: DiskSerial,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NicMessage {
    backend: NicBackendMessage,
    mac: Mac,
    mtu: Mtu,
    slot: Option<PciSlot>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum NicBackendMessage {
    Tap(Vec<usize>),
    VhostUser { socket: Option<usize>, pairs: QueuePairs },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PassthroughMessage {
    container: usize,
    functions: Vec<HostFunctionMessage>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HostFunctionMessage {
    address: PciAddress,
    group: usize,
    device: usize,
    place: usize,
}

pub(super) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ControlError> {
    serde_json::to_vec(message).map_err(ControlError::Malformed)
}

/// Decodes a message that comes without descriptors.
pub(super) fn decode<T: DeserializeOwned>(
    message: &[u8],
    descriptors: Vec<OwnedFd>,
) -> Result<T, ControlError> {
    if !descriptors.is_empty() {
        return Err(ControlError::ExtraDescriptors(descriptors.len()));
    }
    serde_json::from_slice(message).map_err(ControlError::Malformed)
}

pub(super) fn encode_config(config: &VmmConfig) -> Result<(Vec<u8>, Vec<BorrowedFd<'_>>), ControlError> {
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
    let mut descriptors = Vec::new();
    let mut attach = |descriptor| {
        descriptors.push(AsFd::as_fd(descriptor));
        descriptors.len() - 1
    };
    let message = ConfigMessage {
        version: VERSION,
        vcpus: *vcpus,
        memory_bytes: *memory,
        command_line: command_line.clone(),
        kvm: attach(kvm),
        kernel: attach(kernel),
        initrd: initrd.as_ref().map(&mut attach),
        serial: attach(serial),
        disks: disks
            .iter()
            .map(|Disk { file, read_only, serial }| DiskMessage {
                file: attach(file),
                read_only: *read_only,
                serial: serial.clone(),
            })
            .collect(),
        nics: nics
            .iter()
            .map(|Nic { backend, mac, mtu, slot }| NicMessage {
                backend: match backend {
                    NicBackend::Tap(queues) => {
                        NicBackendMessage::Tap(queues.iter().map(&mut attach).collect())
                    }
                    NicBackend::VhostUser { socket, pairs } => NicBackendMessage::VhostUser {
                        socket: socket.as_ref().map(&mut attach),
                        pairs: *pairs,
                    },
                },
                mac: *mac,
                mtu: *mtu,
                slot: *slot,
            })
            .collect(),
        places: places.clone(),
        passthrough: passthrough.as_ref().map(|passthrough| passthrough_message(passthrough, &mut attach)),
    };
    Ok((encode(&message)?, descriptors))
}

fn passthrough_message<'a>(
    passthrough: &'a Passthrough,
    mut attach: impl FnMut(&'a OwnedFd) -> usize,
) -> PassthroughMessage {
    let Passthrough { container, functions } = passthrough;
    PassthroughMessage {
        container: attach(container),
        functions: functions
            .iter()
            .map(|HostFunction { address, group, device, place }| HostFunctionMessage {
                address: *address,
                group: attach(group),
                device: attach(device),
                place: *place,
            })
            .collect(),
    }
}

pub(super) fn encode_command(command: &Command) -> Result<(Vec<u8>, Vec<BorrowedFd<'_>>), ControlError> {
    let mut descriptors = Vec::new();
    let mut attach = |descriptor| {
        descriptors.push(AsFd::as_fd(descriptor));
        descriptors.len() - 1
    };
    let message = match command {
        Command::PowerButton => CommandMessage::PowerButton,
        Command::Stop => CommandMessage::Stop,
        Command::Plug(passthrough) => {
            CommandMessage::Plug { passthrough: passthrough_message(passthrough, attach) }
        }
        Command::Unplug { place } => CommandMessage::Unplug { place: *place },
        Command::Backend { nic, socket } => CommandMessage::Backend { nic: *nic, socket: attach(socket) },
    };
    Ok((encode(&message)?, descriptors))
}

pub(super) fn decode_command(message: &[u8], descriptors: Vec<OwnedFd>) -> Result<Command, ControlError> {
    let message: CommandMessage = serde_json::from_slice(message).map_err(ControlError::Malformed)?;
    let mut sent = Descriptors::new(descriptors);
    let command = match message {
        CommandMessage::PowerButton => Command::PowerButton,
        CommandMessage::Stop => Command::Stop,
        CommandMessage::Plug { passthrough } => Command::Plug(sent.passthrough(passthrough)?),
        CommandMessage::Unplug { place } => Command::Unplug { place },
        CommandMessage::Backend { nic, socket } => {
            Command::Backend { nic, socket: sent.take(socket, || "socket".into())? }
        }
    };
    sent.finish(command)
}

pub(super) fn decode_config(message: &[u8], descriptors: Vec<OwnedFd>) -> Result<VmmConfig, ControlError> {
    let Versioned { version } = serde_json::from_slice(message).map_err(ControlError::Malformed)?;
    if version != VERSION {
        return Err(ControlError::Version { found: version });
    }
    let message: ConfigMessage = serde_json::from_slice(message).map_err(ControlError::Malformed)?;
    let ConfigMessage {
        version: _,
        vcpus,
        memory_bytes,
        command_line,
        kvm,
        kernel,
        initrd,
        serial,
        disks,
        nics,
        places,
        passthrough,
    } = message;
    let mut sent = Descriptors::new(descriptors);
    let config = VmmConfig {
        vcpus,
        memory: memory_bytes,
        command_line,
        kvm: sent.take(kvm, || "kvm".into())?,
        kernel: sent.take(kernel, || "kernel".into())?,
        initrd: initrd.map(|index| sent.take(index, || "initrd".into())).transpose()?,
        serial: sent.take(serial, || "serial".into())?,
        disks: disks
            .into_iter()
            .enumerate()
            .map(|(at, disk)| sent.disk(at, disk))
            .collect::<Result<_, _>>()?,
        nics: nics.into_iter().enumerate().map(|(at, nic)| sent.nic(at, nic)).collect::<Result<_, _>>()?,
        places,
        passthrough: passthrough.map(|message| sent.passthrough(message)).transpose()?,
    };
    sent.finish(config)
}

/// The descriptors of a message; each can be taken once.
struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter().map(Some).collect())
    }

    /// `whole`, if it has taken all of them.
    fn finish<T>(self, whole: T) -> Result<T, ControlError> {
        match self.0.iter().flatten().count() {
            0 => Ok(whole),
            left => Err(ControlError::ExtraDescriptors(left)),
        }
    }

    fn take(&mut self, index: usize, field: impl FnOnce() -> String) -> Result<OwnedFd, ControlError> {
        self.0
            .get_mut(index)
            .and_then(Option::take)
            .ok_or_else(|| ControlError::MissingDescriptor { field: field(), index })
    }

    fn disk(&mut self, at: usize, disk: DiskMessage) -> Result<Disk, ControlError> {
        let DiskMessage { file, read_only, serial } = disk;
        Ok(Disk { file: self.take(file, || format!("disks[{at}].file"))?, read_only, serial })
    }

    fn nic(&mut self, at: usize, nic: NicMessage) -> Result<Nic, ControlError> {
        let NicMessage { backend, mac, mtu, slot } = nic;
        let backend = match backend {
            NicBackendMessage::Tap(queues) => NicBackend::Tap(
                queues
                    .into_iter()
                    .enumerate()
                    .map(|(queue, index)| self.take(index, || format!("nics[{at}].queues[{queue}]")))
                    .collect::<Result<_, _>>()?,
            ),
            NicBackendMessage::VhostUser { socket, pairs } => {
                let socket =
                    socket.map(|index| self.take(index, || format!("nics[{at}].socket"))).transpose()?;
                NicBackend::VhostUser { socket, pairs }
            }
        };
        Ok(Nic { backend, mac, mtu, slot })
    }

    fn passthrough(&mut self, message: PassthroughMessage) -> Result<Passthrough, ControlError> {
        let PassthroughMessage { container, functions } = message;
        let container = self.take(container, || "passthrough.container".into())?;
        let functions = functions.into_iter().enumerate().map(|(at, function)| {
            let HostFunctionMessage { address, group, device, place } = function;
            let field = |name| format!("passthrough.functions[{at}].{name}");
            let group = self.take(group, || field("group"))?;
            let device = self.take(device, || field("device"))?;
            Ok(HostFunction { address, group, device, place })
        });
        Ok(Passthrough { container, functions: functions.collect::<Result<_, _>>()? })
    }
}
