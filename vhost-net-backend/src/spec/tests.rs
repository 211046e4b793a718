//! Links as written, right and wrong.

use net_types::Mac;

use super::*;
use crate::vhost::Role;
use crate::xdp::Steering;

fn kind(text: &str) -> EndKind {
    text.parse::<EndSpec>().unwrap().kind
}

#[test]
fn ends_are_read_as_written() {
    let link: LinkSpec = "vhost-user:/run/a.sock?client&queues=4&mtu=9000,tap:tap0".parse().unwrap();
    let settings = VhostSettings {
        socket: "/run/a.sock".into(),
        role: Role::Client,
        queue_pairs: 4.try_into().unwrap(),
        mtu: Some(9000),
    };
    let tap = TapSettings { name: "tap0".parse().unwrap(), netns: None };
    assert_eq!(link.ends.clone().map(|end| end.kind), [EndKind::VhostUser(settings), EndKind::Tap(tap)]);
    assert_eq!(link.text(), "vhost-user:/run/a.sock?client&queues=4&mtu=9000,tap:tap0");
    assert_eq!(link.to_string(), "vhost-user:/run/a.sock,tap:tap0");
    assert!("vhost-user:a,vhost-user:b".parse::<LinkSpec>().is_ok());
}

#[test]
fn a_nic_is_read_with_its_queues_and_what_is_the_guests() {
    let settings = |text: &str| match kind(text) {
        EndKind::AfXdp(settings) => (settings.interface.to_string(), settings.queues, settings.steering),
        other => panic!("{other:?}"),
    };
    assert_eq!(settings("af_xdp:eth0"), ("eth0".to_owned(), (0, 0), Steering::default()));
    let steering = Steering {
        mac: Some("02:00:00:00:00:07".parse().unwrap()),
        groups: true,
        vlan: Some("5".parse().unwrap()),
    };
    let all = settings("af_xdp:eth0:2-3?mac=02:00:00:00:00:07&groups&vlan=5");
    assert_eq!(all, ("eth0".to_owned(), (2, 3), steering));
}

#[test]
fn mistakes_are_named() {
    let message = |text: &str| text.parse::<LinkSpec>().unwrap_err().to_string();
    assert!(message("tap:a").contains("END,END"));
    assert!(message("tap:a,tap:b,tap:c").contains("END,END"));
    assert!(message("a/b=tap:a,tap:b").contains("link name \"a/b\""));
    assert!(message("..=tap:a,tap:b").contains("not only dots"));
    assert!(message("tap:a?netns=x,tap:b").contains("absolute path"));
    assert!(message("tap:a?vlan=4,tap:b").contains("source=MAC"));
    assert!(message("tap:a?bytes=0,tap:b").contains("1 or more"));
    assert!(message("tap:a?source=ff:ff:ff:ff:ff:ff,tap:b").contains("unicast"));
    assert!(message("tap:a,veth:b").contains("\"veth:b\""));
    assert!(message("tap:a,vhost-user:").contains("no socket path"));
    assert!(message("tap:a,vhost-user:/s?server").contains("client, queues=N"));
    assert!(message("tap:a,vhost-user:/s?queues=0").contains("1 to 64"));
    assert!(message("tap:a,vhost-user:/s?queues=65").contains("1 to 64"));
    assert!(message("tap:a,vhost-user:/s?mtu=67").contains("68 to 65535"));
    assert!(message("tap:a/b,tap:c").contains("\"tap:a/b\""));
    for queues in ["a", "1-", "3-1", "1024", "0-64"] {
        assert!(message(&format!("tap:a,af_xdp:eth0:{queues}")).contains("FIRST-LAST"), "{queues}");
    }
    assert!(message("tap:a,af_xdp:eth0?mac=01:00:00:00:00:01").contains("unicast"));
    assert!(message("tap:a,af_xdp:eth0?vlan=4095").contains("1 to 4094"));
    assert!(message("tap:a,af_xdp:eth0?groups").contains("only with mac"));
    assert_eq!(
        message("tap:a?bytes=1&observe&bytes=2,tap:b"),
        "option bytes of end \"tap:a?bytes=1&observe&bytes=2\" is there twice; each is allowed once"
    );
}

#[test]
fn no_link_has_one_end_twice() {
    for (first, second) in [
        ("tap:a", "tap:a?observe"),
        ("af_xdp:eth0:0", "af_xdp:eth0:1"),
        ("vhost-user:/s", "vhost-user:/s"),
        ("vhost-user:/s", "vhost-user:/s?client"),
    ] {
        let link = format!("{first},{second}");
        let end = first.trim_end_matches(":0");
        let refused = link.parse::<LinkSpec>().unwrap_err().to_string();
        assert_eq!(refused, format!("link {link:?} has {end} at both ends"));
    }
}

#[test]
fn ends_that_are_two_are_shown_as_two() {
    for text in ["tap:a?netns=/a,tap:a?netns=/b", "tap:a,tap:a?netns=/b", "af_xdp:a?netns=/a,af_xdp:a"] {
        let link: LinkSpec = text.parse().unwrap();
        assert_eq!(link.to_string(), text);
        let [first, second] = link.ends;
        assert_ne!(first.to_string(), second.to_string());
    }
}

#[test]
fn a_name_and_what_holds_for_an_end_are_read() {
    let text =
        "vm-1.a=vhost-user:/a?source=02:00:00:00:00:07&bytes=1000&packets=5&observe,tap:t?netns=/run/netns/x";
    let link: LinkSpec = text.parse().unwrap();
    assert_eq!(link.name.map(String::from).as_deref(), Some("vm-1.a"));
    let [guest, tap] = link.ends;
    let source: Option<Mac> = Some("02:00:00:00:00:07".parse().unwrap());
    assert_eq!((guest.policy.source, guest.observe), (source, true));
    assert_eq!(
        guest.policy.bytes.zip(guest.policy.packets).map(|(a, b)| (a.get(), b.get())),
        Some((1000, 5))
    );
    assert_eq!((tap.policy, tap.observe), (Policy::default(), false));
    let there = TapSettings { name: "t".parse().unwrap(), netns: Some("/run/netns/x".into()) };
    assert_eq!(tap.kind, EndKind::Tap(there));
    assert_eq!("vhost-user:/a?queues=2,tap:t".parse::<LinkSpec>().unwrap().name, None);
}
