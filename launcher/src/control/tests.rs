use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::*;

fn file(text: &str) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    file.into()
}

fn text_of(descriptor: &OwnedFd) -> String {
    let mut text = String::new();
    File::from(descriptor.try_clone().unwrap()).read_to_string(&mut text).unwrap();
    text
}

fn config() -> VmmConfig {
    VmmConfig {
        vcpus: 2.try_into().unwrap(),
        memory: (64 << 20).try_into().unwrap(),
        command_line: "console=ttyS0".into(),
        kvm: file("kvm"),
        kernel: file("kernel"),
        initrd: Some(file("initrd")),
        serial: file("serial"),
        disks: vec![Disk {
            file: file("disk"),
            read_only: true,
            serial: String::from("cidata").try_into().unwrap(),
        }],
        nics: vec![Nic {
            backend: NicBackend::Tap(vec![file("queue 0"), file("queue 1")]),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            mtu: 1500.try_into().unwrap(),
            slot: None,
        }],
        places: vec![Place { slot: None }, Place { slot: Some(5.try_into().unwrap()) }],
        passthrough: Some(passthrough()),
    }
}

fn passthrough() -> Passthrough {
    Passthrough {
        container: file("container"),
        functions: vec![HostFunction {
            address: "0000:01:10.0".parse().unwrap(),
            group: file("group"),
            device: file("device"),
            place: 1,
        }],
    }
}

/// Where the one function is, and what its descriptors are.
fn shape(passthrough: &Passthrough) -> (String, usize, [String; 3]) {
    let Passthrough { container, functions } = passthrough;
    let [HostFunction { address, group, device, place }] = functions.as_slice() else {
        panic!("one function")
    };
    (address.to_string(), *place, [container, group, device].map(text_of))
}

/// A supervisor's end that says what it likes, and what the VMM's end makes of it.
fn config_from_liar(message: &str, descriptors: &[BorrowedFd<'_>]) -> Result<VmmConfig, ControlError> {
    let (liar, vmm) = Channel::pair().unwrap();
    socket::send(&liar.socket, message.as_bytes(), descriptors).unwrap();
    vmm.receive_config()
}

fn json(initrd: &str, disks: &str) -> String {
    format!(
        r#"{{"version":1,"vcpus":1,"memoryBytes":67108864,"commandLine":"","kvm":0,"kernel":1,
            "initrd":{initrd},"serial":2,"disks":{disks},"nics":[],"places":[],"passthrough":null}}"#
    )
}

#[test]
fn a_configuration_arrives_with_every_descriptor_in_its_place() {
    let (supervisor, vmm) = Channel::pair().unwrap();
    let sent = config();
    supervisor.send_config(&sent).unwrap();
    let got = vmm.receive_config().unwrap();
    assert_eq!((got.vcpus, got.memory, &got.command_line), (sent.vcpus, sent.memory, &sent.command_line));
    assert_eq!(text_of(&got.kvm), "kvm");
    assert_eq!(text_of(&got.kernel), "kernel");
    assert_eq!(text_of(got.initrd.as_ref().unwrap()), "initrd");
    assert_eq!(text_of(&got.serial), "serial");
    assert_eq!(text_of(&got.disks[0].file), "disk");
    assert_eq!((got.disks[0].read_only, got.disks[0].serial.as_str()), (true, "cidata"));
    let NicBackend::Tap(queues) = &got.nics[0].backend else { panic!("{:?}", got.nics[0]) };
    assert_eq!(queues.iter().map(text_of).collect::<Vec<_>>(), ["queue 0", "queue 1"]);
    assert_eq!((got.nics[0].mac, got.nics[0].mtu), (sent.nics[0].mac, sent.nics[0].mtu));
    assert_eq!(got.places, sent.places);
    let names = ["container", "group", "device"].map(str::to_owned);
    assert_eq!(shape(&got.passthrough.unwrap()), ("0000:01:10.0".to_owned(), 1, names));
}

#[test]
fn events_and_commands_arrive_and_a_closed_peer_is_seen() {
    let (supervisor, vmm) = Channel::pair().unwrap();
    assert_eq!(supervisor.receive_event().unwrap(), Received::Nothing);
    let failed = Event::Error { message: "KVM_RUN failed".into() };
    let (plugged, unplugged) = (Event::Plugged { places: vec![1] }, Event::Unplugged { place: 1 });
    for event in [Event::Running, plugged, unplugged, Event::Shutdown, Event::Reset, Event::Stopped, failed] {
        vmm.send_event(&event).unwrap();
        assert_eq!(supervisor.receive_event().unwrap(), Received::Message(event));
    }
    for command in [Command::PowerButton, Command::Stop, Command::Unplug { place: 3 }] {
        supervisor.send_command(&command).unwrap();
        let Received::Message(received) = vmm.receive_command().unwrap() else { panic!("no command") };
        assert_eq!(format!("{received:?}"), format!("{command:?}"));
    }
    supervisor.send_command(&Command::Backend { nic: 2, socket: file("socket") }).unwrap();
    match vmm.receive_command().unwrap() {
        Received::Message(Command::Backend { nic: 2, socket }) => assert_eq!(text_of(&socket), "socket"),
        other => panic!("{other:?}"),
    }
    supervisor.send_command(&Command::Plug(passthrough())).unwrap();
    let Received::Message(Command::Plug(plugged)) = vmm.receive_command().unwrap() else { panic!("no plug") };
    assert_eq!(shape(&plugged), shape(&passthrough()));
    vmm.send_event(&Event::Reset).unwrap();
    drop(vmm);
    assert_eq!(supervisor.receive_event().unwrap(), Received::Message(Event::Reset));
    assert_eq!(supervisor.receive_event().unwrap(), Received::Closed);
    assert!(matches!(supervisor.send_command(&Command::Stop), Err(ControlError::Send(_))));
}

#[test]
fn the_wire_form_is_the_one_written_down() {
    let as_text = |event: &Event| String::from_utf8(wire::encode(event).unwrap()).unwrap();
    assert_eq!(as_text(&Event::Running), r#"{"event":"running"}"#);
    assert_eq!(as_text(&Event::Error { message: "x".into() }), r#"{"event":"error","message":"x"}"#);
    let as_text = |command: &Command| String::from_utf8(wire::encode_command(command).unwrap().0).unwrap();
    assert_eq!(as_text(&Command::PowerButton), r#"{"command":"power-button"}"#);
    assert_eq!(as_text(&Command::Unplug { place: 1 }), r#"{"command":"unplug","place":1}"#);
}

#[test]
fn too_few_descriptors_are_an_error_that_names_the_field() {
    let (kvm, kernel, serial) = (file("kvm"), file("kernel"), file("serial"));
    let three = [kvm.as_fd(), kernel.as_fd(), serial.as_fd()];
    assert!(config_from_liar(&json("null", "[]"), &three).is_ok());
    let error =
        config_from_liar(&json("null", r#"[{"file":3,"readOnly":true,"serial":""}]"#), &three).unwrap_err();
    assert!(error.to_string().starts_with("disks[0].file refers to descriptor 3"), "{error}");
    let error = config_from_liar(&json("null", "[]"), &three[..2]).unwrap_err();
    assert!(error.to_string().starts_with("serial refers to descriptor 2"), "{error}");
    let error = config_from_liar(&json("1", "[]"), &three).unwrap_err();
    assert!(error.to_string().starts_with("initrd refers to descriptor 1"), "used twice: {error}");
}

#[test]
fn extra_descriptors_are_an_error_and_are_closed() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (kvm, kernel, serial) = (file("kvm"), file("kernel"), file("serial"));
    let four = [kvm.as_fd(), kernel.as_fd(), serial.as_fd(), theirs.as_fd()];
    let error = config_from_liar(&json("null", "[]"), &four).unwrap_err();
    assert!(matches!(error, ControlError::ExtraDescriptors(1)), "{error}");
    drop(theirs);
    // The end of the stream comes only when the receiver's duplicate is closed too.
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);

    let (liar, vmm) = Channel::pair().unwrap();
    socket::send(&liar.socket, br#"{"command":"backend","nic":0,"socket":0}"#, &[]).unwrap();
    assert!(matches!(vmm.receive_command(), Err(ControlError::MissingDescriptor { .. })));
    socket::send(&liar.socket, br#"{"command":"stop"}"#, &[kvm.as_fd()]).unwrap();
    assert!(matches!(vmm.receive_command(), Err(ControlError::ExtraDescriptors(1))));

    let (liar, supervisor) = Channel::pair().unwrap();
    socket::send(&liar.socket, br#"{"event":"running"}"#, &[kvm.as_fd()]).unwrap();
    assert!(matches!(supervisor.receive_event(), Err(ControlError::ExtraDescriptors(1))));
}

#[test]
fn garbage_and_other_versions_are_told_apart() {
    assert!(matches!(config_from_liar("{\"version\":", &[]), Err(ControlError::Malformed(_))));
    assert!(matches!(config_from_liar("[1,2]", &[]), Err(ControlError::Malformed(_))));
    assert!(matches!(
        config_from_liar(r#"{"version":2,"shape":"unknown"}"#, &[]),
        Err(ControlError::Version { found: 2 })
    ));
    let error = config_from_liar(&json("null", "[]").replace("\"vcpus\":1", "\"vcpus\":0"), &[]).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.starts_with("0 vCPUs are not supported; 1 to 254 are"), "{cause}");

    let (liar, vmm) = Channel::pair().unwrap();
    for message in [&b"\xff\xfe"[..], b"{}", br#"{"command":"reboot"}"#] {
        socket::send(&liar.socket, message, &[]).unwrap();
        assert!(matches!(vmm.receive_command(), Err(ControlError::Malformed(_))));
    }
}

#[test]
fn more_descriptors_than_a_message_can_have_arrive_in_order() {
    let (supervisor, vmm) = Channel::pair().unwrap();
    let queues: Vec<_> = (0..600).map(|number| file(&number.to_string())).collect();
    let mut sent = config();
    sent.nics[0].backend = NicBackend::Tap(queues);
    supervisor.send_config(&sent).unwrap();
    let got = vmm.receive_config().unwrap();
    let NicBackend::Tap(queues) = &got.nics[0].backend else { panic!("{:?}", got.nics) };
    assert_eq!(queues.len(), 600);
    for number in [0, 252, 253, 506, 599] {
        assert_eq!(text_of(&queues[number]), number.to_string());
    }
    assert_eq!(text_of(&got.kernel), "kernel");
    let last = ["container", "group", "device"].map(str::to_owned);
    assert_eq!(shape(&got.passthrough.unwrap()).2, last);

    // Without an end of its own: there is one all the same.
    let (liar, vmm) = Channel::pair().unwrap();
    let one = file("");
    let many = vec![one.as_fd(); socket::MAX_DESCRIPTORS];
    for _ in 0..9 {
        socket::send(&liar.socket, br#"{"more":true}"#, &many).unwrap();
    }
    assert!(matches!(vmm.receive_config(), Err(ControlError::TooLarge)));
    let (liar, vmm) = Channel::pair().unwrap();
    socket::send(&liar.socket, br#"{"more":true}"#, &[]).unwrap();
    assert!(matches!(vmm.receive_config(), Err(ControlError::TooLarge)));
}

#[test]
fn oversized_messages_are_refused_on_both_sides() {
    let (liar, vmm) = Channel::pair().unwrap();
    let large = vec![b' '; socket::MAX_MESSAGE + 1];
    assert!(matches!(socket::send(&liar.socket, &large, &[]), Err(ControlError::TooLarge)));
    rustix::net::send(&liar.socket, &large, rustix::net::SendFlags::empty()).unwrap();
    assert!(matches!(vmm.receive_config(), Err(ControlError::TooLarge)));
}

#[test]
fn a_channel_that_closes_early_gives_no_configuration() {
    let (supervisor, vmm) = Channel::pair().unwrap();
    drop(supervisor);
    assert!(matches!(vmm.receive_config(), Err(ControlError::NoConfig)));
}

#[test]
fn only_a_seqpacket_socket_is_a_channel() {
    let (stream, _peer) = UnixStream::pair().unwrap();
    assert!(matches!(Channel::from_fd(stream.into()), Err(ControlError::NotAChannel(_))));
    assert!(matches!(Channel::from_fd(file("")), Err(ControlError::NotAChannel(_))));
    let (one, _other) = Channel::pair().unwrap();
    Channel::from_fd(one.into()).unwrap();
}

#[test]
fn values_out_of_range_are_refused() {
    assert!(VcpuCount::try_from(255).is_err());
    assert!(MemorySize::try_from((64 << 20) + 1).is_err());
    assert!(MemorySize::try_from(1 << 20).is_err());
    assert!(Mtu::try_from(67).is_err());
    assert!(QueuePairs::try_from(0).is_err() && QueuePairs::try_from(257).is_err());
    assert!(DiskSerial::try_from("x".repeat(21)).is_err());
    assert!(DiskSerial::try_from("a\0b".to_owned()).is_err());
}
