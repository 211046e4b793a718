use netlink::VfVlan;
use serde_json::json;

use super::*;

/// An entry for the VF at `address`, held by `container`.
pub(crate) fn entry(address: &str, container: &str) -> Entry {
    Entry {
        version: VERSION,
        boot: "b".into(),
        address: address.parse().unwrap(),
        pf: "0000:01:00.0".parse().unwrap(),
        index: 2,
        mode: Mode::Netdevice,
        owner: Owner {
            container: container.into(),
            if_name: "net1".parse().unwrap(),
            network: "blue".into(),
        },
        netns: Namespace { path: "/run/netns/x".into(), device: 4, inode: 77 },
        wanted: vec![
            Attribute::Vlan(VfVlan { id: 100, ..VfVlan::default() }),
            Attribute::Mac("02:00:00:00:00:01".parse().unwrap()),
        ],
        before: vec![Attribute::Vlan(VfVlan::default()), Attribute::Mac(Mac::ZERO)],
        link: Some(LinkBefore { name: "eth0v2".parse().unwrap(), mac: None, mtu: 1500, up: false }),
        device_info: None,
        attached: false,
    }
}

fn journal() -> (tempfile::TempDir, Journal) {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::at(&directory.path().join("sriov"));
    (directory, journal)
}

#[test]
fn an_entry_is_read_as_it_was_written_until_it_is_removed() {
    let (_directory, journal) = journal();
    let one = entry("0000:01:10.2", "c1");
    assert_eq!(journal.read(one.address).unwrap(), None);
    journal.write(&one).unwrap();
    let changed = Entry { attached: true, ..one.clone() };
    journal.write(&changed).unwrap();
    assert_eq!(journal.read(one.address).unwrap(), Some(changed));
    assert_eq!(journal.addresses().unwrap(), [one.address]);
    journal.remove(one.address).unwrap();
    journal.remove(one.address).unwrap();
    assert_eq!(journal.read(one.address).unwrap(), None);
}

#[test]
fn the_first_release_s_files_stay_readable() {
    let (_directory, journal) = journal();
    let text = json!({
        "version": 1, "boot": "b", "address": "0000:01:10.2", "pf": "0000:01:00.0", "index": 2,
        "mode": "netdevice",
        "owner": {"container": "c1", "ifName": "net1", "network": "blue"},
        "netns": {"path": "/run/netns/x", "device": 4, "inode": 77},
        "wanted": [{"vlan": {"id": 100, "qos": 0, "protocol": "802.1q"}}, {"mac": "02:00:00:00:00:01"}],
        "before": [{"vlan": {"id": 0, "qos": 0, "protocol": "802.1q"}}, {"mac": "00:00:00:00:00:00"}],
        "link": {"name": "eth0v2", "mac": null, "mtu": 1500, "up": false},
        "deviceInfo": null, "attached": false,
    });
    let expected = entry("0000:01:10.2", "c1");
    fs::create_dir_all(&journal.directory).unwrap();
    fs::write(journal.path(expected.address), text.to_string()).unwrap();
    assert_eq!(journal.read(expected.address).unwrap(), Some(expected));
}

#[test]
fn a_corrupt_file_is_set_aside_and_reported_once() {
    let (_directory, journal) = journal();
    let good = entry("0000:01:10.1", "c1");
    journal.write(&good).unwrap();
    let address: PciAddress = "0000:01:10.2".parse().unwrap();
    for (number, text) in ["", "{\"version\": 1", "{\"version\": 1}", "\0\0\0"].iter().enumerate() {
        fs::write(journal.path(address), text).unwrap();
        let (entries, failure) = journal.all().unwrap();
        assert_eq!(entries, std::slice::from_ref(&good), "what is readable is still read");
        assert!(matches!(failure, Some(JournalError::Corrupt { .. })), "{text:?}");
        assert_eq!(journal.read(address).unwrap(), None);
        let aside = journal.directory.join(format!("{address}.corrupt-{}", number + 1));
        assert_eq!(fs::read_to_string(aside).unwrap(), *text, "kept for whoever looks");
    }
    fs::copy(journal.path(good.address), journal.path(address)).unwrap();
    assert!(matches!(journal.read(address), Err(JournalError::Corrupt { .. })), "another VF's entry");
}

#[test]
fn a_later_release_s_file_is_left_where_it_is() {
    let (_directory, journal) = journal();
    let address: PciAddress = "0000:01:10.2".parse().unwrap();
    fs::create_dir_all(&journal.directory).unwrap();
    fs::write(journal.path(address), "{\"version\": 2, \"strange\": true}").unwrap();
    for _ in 0..2 {
        assert!(matches!(journal.read(address), Err(JournalError::Version { found: 2, .. })));
    }
}

#[test]
fn a_lock_keeps_others_out_until_it_is_dropped() {
    let (_directory, journal) = journal();
    let (one, other) = ("0000:01:10.1".parse().unwrap(), "0000:01:10.2".parse().unwrap());
    let held = journal.lock(one).unwrap();
    assert!(journal.try_lock(one).unwrap().is_none());
    assert!(journal.try_lock(other).unwrap().is_some());
    drop(held);
    assert!(journal.try_lock(one).unwrap().is_some());
}
