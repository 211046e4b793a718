use serde_json::{Value, json};

use super::*;

fn vf() -> Device {
    Device::Pci { address: "0000:01:10.0".parse().unwrap(), pf: "0000:01:00.0".parse().ok() }
}

fn socket() -> Device {
    Device::VhostUser { socket: "/run/x.sock".into() }
}

#[test]
fn only_plain_files_of_the_specification_s_folders_are_touched() {
    let root = tempfile::tempdir().unwrap();
    let text = root.path().to_str().unwrap();
    let inside = |path: &str| is_inside(Path::new(&format!("{text}{path}")), &[text]);
    assert!(inside("/cni/default-net-pod-device.json") && inside("/dp/x.json"));
    for path in [
        "/cni",
        "/x.json",
        "/cni/../x.json",
        "/cni/../../etc/x.json",
        "/other/x.json",
        "/cni/a/x.json",
        "/cni/x",
    ] {
        assert!(!inside(path), "{path}");
    }
    std::os::unix::fs::symlink("/etc", root.path().join("cni")).unwrap();
    assert!(!inside("/cni/x.json"), "a folder that leads elsewhere");
    let relative = Path::new("var/run/k8s.cni.cncf.io/devinfo/cni/x.json");
    assert!(!is_inside(relative, &ROOTS));
    for attempt in [exists(Path::new("/etc/x.json"), &vf()).map(drop), write(Path::new("/x.json"), &vf())] {
        assert!(matches!(attempt, Err(DeviceInfoError::Outside { .. })), "{attempt:?}");
    }
}

#[test]
fn a_file_is_written_once_and_says_what_the_specification_wants() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("cni/x.json");
    for (device, expected) in [
        (
            vf(),
            json!({
                "type": "pci", "version": "1.1.0",
                "pci": {"pci-address": "0000:01:10.0", "pf-pci-address": "0000:01:00.0"},
            }),
        ),
        (
            socket(),
            json!({
                "type": "vhost-user", "version": "1.1.0",
                "vhost-user": {"mode": "client", "path": "/run/x.sock"},
            }),
        ),
    ] {
        create(&path, &device).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        create(&path, &Device::VhostUser { socket: "/run/y.sock".into() }).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "a file that is there stays");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_file_is_about_the_device_in_it_and_no_other() {
    let information = |value: Value| serde_json::from_value::<Information>(value).unwrap();
    let theirs = information(json!({
        "type": "pci", "version": "1.0.0", "pci": {"pci-address": "0000:01:10.0", "vendor": "x"}, "more": 1,
    }));
    assert!(theirs.is_about(&vf()) && !theirs.is_about(&socket()));
    let client = |mode: &str, path: &str| {
        information(
            json!({"type": "vhost-user", "version": "1.1.0", "vhost-user": {"mode": mode, "path": path}}),
        )
    };
    assert!(client("client", "/run/x.sock").is_about(&socket()));
    assert!(!client("server", "/run/x.sock").is_about(&socket()), "the other side of the socket");
    assert!(!client("client", "/run/y.sock").is_about(&socket()) && !client("client", "/").is_about(&vf()));
    let memif = information(json!({"type": "memif", "version": "1.1.0", "memif": {}}));
    assert!(!memif.is_about(&vf()) && !memif.is_about(&socket()));
    assert_eq!(memif.to_string(), "a device of type \"memif\"");
}
