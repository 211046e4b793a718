//! What `dig` sees of VMs in a status directory.

mod support;

use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::{Dns, vmi, write};
use vm_api::status_dir::StatusDir;

#[test]
fn a_vm_is_found_by_its_name_and_by_its_nics_names() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        &vmi(
            "ns1",
            "vm1",
            &[
                ("default", &["10.0.2.2"]),
                ("blue", &["10.1.0.5/24", "2001:db8::5/64", "fe80::5/64"]),
                ("red", &["10.2.0.5"]),
            ],
        ),
    );
    let dns = Dns::start(dir.path(), &["--name-server-ip", "192.0.2.53"]);
    for transport in ["+notcp", "+tcp"] {
        assert_eq!(dns.dig(&[transport, "+short", "blue.vm1.ns1.vm.example.com", "A"]), "10.1.0.5\n");
        assert_eq!(dns.dig(&[transport, "+short", "blue.vm1.ns1.vm.example.com", "AAAA"]), "2001:db8::5\n");
    }
    assert_eq!(dns.short("vm1.ns1.vm.example.com", "A"), ["10.1.0.5"]);
    assert_eq!(dns.short("RED.vm1.NS1.vm.example.COM", "A"), ["10.2.0.5"]);
    assert_eq!(dns.status("default.vm1.ns1.vm.example.com", "A"), ("NXDOMAIN".into(), 0));
    assert_eq!(dns.short("vm.example.com", "NS"), ["ns.vm.example.com."]);
    assert_eq!(dns.short("ns.vm.example.com", "A"), ["192.0.2.53"]);
    assert!(dns.stop());
}

#[test]
fn absence_is_told_apart_as_the_protocol_wants_it() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.5"])]));
    let dns = Dns::start(dir.path(), &[]);
    assert_eq!(dns.status("vm1.ns1.vm.example.com", "AAAA"), ("NOERROR".into(), 0));
    assert_eq!(dns.status("ns1.vm.example.com", "A"), ("NOERROR".into(), 0), "an empty non-terminal");
    assert_eq!(dns.status("ns2.vm.example.com", "A"), ("NXDOMAIN".into(), 0));
    assert_eq!(dns.status("vm.example.com", "NS"), ("NOERROR".into(), 0), "no name server known by address");
    assert_eq!(dns.status("example.com", "A"), ("REFUSED".into(), 0));
    let negative = dns.dig(&["vm2.ns1.vm.example.com"]);
    assert!(negative.contains("IN\tSOA\tns.vm.example.com. hostmaster.vm.example.com."), "{negative}");
}

#[test]
fn a_change_is_seen_and_the_serial_grows() {
    let dir = tempfile::tempdir().unwrap();
    let dns = Dns::start(dir.path(), &[]);
    let mut last = dns.serial();
    let mut grown = || {
        let serial = dns.serial();
        assert!(serial.wrapping_sub(last) as i32 > 0, "{serial} after {last}");
        last = serial;
    };
    // A namespace appears.
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.5"])]));
    dns.await_short("vm1.ns1.vm.example.com", "A", &["10.1.0.5"]);
    grown();
    // An address changes.
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.6"])]));
    dns.await_short("vm1.ns1.vm.example.com", "A", &["10.1.0.6"]);
    grown();
    // The VM and its namespace go.
    StatusDir::new(dir.path()).remove("ns1", "vm1").unwrap();
    dns.await_short("vm1.ns1.vm.example.com", "A", &[]);
    grown();
    // And come back.
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.7"])]));
    dns.await_short("vm1.ns1.vm.example.com", "A", &["10.1.0.7"]);
    grown();
}

#[test]
fn the_directory_may_be_made_later_moved_away_and_made_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("run/guestwire/vmi");
    let dns = Dns::start(&dir, &[]);
    assert_eq!(dns.status("vm1.ns1.vm.example.com", "A"), ("NXDOMAIN".into(), 0));
    write(&dir, &vmi("ns1", "vm1", &[("blue", &["10.1.0.5"])]));
    dns.await_short("vm1.ns1.vm.example.com", "A", &["10.1.0.5"]);
    fs::rename(&dir, parent.path().join("run/guestwire/old")).unwrap();
    dns.await_short("vm1.ns1.vm.example.com", "A", &[]);
    write(&dir, &vmi("ns1", "vm1", &[("blue", &["10.1.0.6"])]));
    dns.await_short("vm1.ns1.vm.example.com", "A", &["10.1.0.6"]);
    fs::remove_dir_all(&dir).unwrap();
    dns.await_short("vm1.ns1.vm.example.com", "A", &[]);
}

#[test]
fn changes_beyond_what_the_kernel_queues_are_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.5"])]));
    write(dir.path(), &vmi("ns1", "gone", &[("blue", &["10.1.0.6"])]));
    let dns = Dns::start(dir.path(), &[]);
    dns.signal(Signal::SIGSTOP);
    let limit: usize =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    // Each renaming is two events; they fill the queue while nobody reads it.
    let (from, to) = (dir.path().join("ns1/.a"), dir.path().join("ns1/.b"));
    fs::write(&from, "").unwrap();
    for _ in 0..=limit / 4 {
        fs::rename(&from, &to).unwrap();
        fs::rename(&to, &from).unwrap();
    }
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.7"])]));
    write(dir.path(), &vmi("ns2", "vm2", &[("blue", &["10.1.0.8"])]));
    StatusDir::new(dir.path()).remove("ns1", "gone").unwrap();
    dns.signal(Signal::SIGCONT);
    dns.await_short("vm1.ns1.vm.example.com", "A", &["10.1.0.7"]);
    dns.await_short("vm2.ns2.vm.example.com", "A", &["10.1.0.8"]);
    dns.await_short("gone.ns1.vm.example.com", "A", &[]);
}

#[test]
fn a_broken_file_keeps_what_it_said_and_a_lying_one_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.5"])]));
    let dns = Dns::start(dir.path(), &[]);
    fs::write(dir.path().join("ns1/vm1.json"), "{ \"half").unwrap();
    // A file that claims another VM's name.
    fs::write(
        dir.path().join("ns1/liar.json"),
        serde_json::to_vec(&vmi("ns1", "vm1", &[("blue", &["10.66.0.6"])])).unwrap(),
    )
    .unwrap();
    // The next file's turn comes after theirs.
    write(dir.path(), &vmi("ns1", "vm2", &[("blue", &["10.1.0.9"])]));
    dns.await_short("vm2.ns1.vm.example.com", "A", &["10.1.0.9"]);
    assert_eq!(dns.short("vm1.ns1.vm.example.com", "A"), ["10.1.0.5"]);
    assert_eq!(dns.status("liar.ns1.vm.example.com", "A"), ("NXDOMAIN".into(), 0));
}

#[test]
fn an_answer_too_long_for_udp_comes_by_tcp() {
    let dir = tempfile::tempdir().unwrap();
    let addresses: Vec<String> = (1..=200).map(|n| format!("10.1.0.{n}")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &addresses)]));
    let dns = Dns::start(dir.path(), &[]);
    assert_eq!(dns.short("vm1.ns1.vm.example.com", "A").len(), 200, "dig follows the truncation");
    let cut = dns.dig(&["+ignore", "+noedns", "vm1.ns1.vm.example.com"]);
    assert!(cut.contains("flags: qr aa tc"), "{cut}");
}

#[test]
fn reverse_zones_answer_with_the_nics_name() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.5", "2001:db8::5"])]));
    let dns = Dns::start(dir.path(), &["--reverse", "10.1.0.0/16", "--reverse", "2001:db8::/32"]);
    for address in ["10.1.0.5", "2001:db8::5"] {
        assert_eq!(dns.dig(&["+short", "-x", address]), "blue.vm1.ns1.vm.example.com.\n");
    }
    assert!(dns.dig(&["-x", "10.2.0.5"]).contains("status: REFUSED"));
    assert!(dns.dig(&["-x", "10.1.0.6"]).contains("status: NXDOMAIN"));
}

#[test]
fn a_flood_is_limited_and_tcp_is_not() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.5"])]));
    let dns = Dns::start(dir.path(), &["--rate-limit", "1"]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let query = b"\0\x01\0\0\0\x01\0\0\0\0\0\0\x03vm1\x03ns1\x02vm\x07example\x03com\0\0\x01\0\x01";
    for _ in 0..100 {
        socket.send_to(query, dns.address).unwrap();
    }
    let mut reply = [0; 512];
    let replies: Vec<bool> =
        std::iter::from_fn(|| socket.recv(&mut reply).ok().map(|_| reply[2] & 0x02 != 0)).collect();
    let truncated = replies.iter().filter(|truncated| **truncated).count();
    let answered = replies.len() - truncated;
    // At once, or as slowly as a busy machine sends: some seconds' worth.
    assert!((1..=20).contains(&answered) && (40..=50).contains(&truncated), "{answered}, {truncated}");
    for _ in 0..5 {
        assert_eq!(dns.dig(&["+tcp", "+short", "vm1.ns1.vm.example.com"]), "10.1.0.5\n");
    }
}

#[test]
fn the_server_says_who_it_is_to_those_who_ask() {
    let dir = tempfile::tempdir().unwrap();
    let dns = Dns::start(dir.path(), &["--nsid", "node-7"]);
    assert!(dns.dig(&["+nsid", "vm.example.com", "SOA"]).contains("(\"node-7\")"));
}

#[test]
fn the_apex_has_its_name_server_with_all_its_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let dns = Dns::start(dir.path(), &["--name-server-ip", "192.0.2.53", "--name-server-ip", "2001:db8::53"]);
    let text = dns.dig(&["+noall", "+additional", "vm.example.com", "NS"]);
    let glue: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(glue[0], ["ns.vm.example.com.", "30", "IN", "A", "192.0.2.53"], "{text}");
    assert_eq!(glue[1], ["ns.vm.example.com.", "30", "IN", "AAAA", "2001:db8::53"], "{text}");
    assert_eq!(dns.short("ns.vm.example.com", "AAAA"), ["2001:db8::53"]);
}

#[test]
fn any_gets_one_rrset() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.5", "10.1.0.6", "2001:db8::5"])]));
    let dns = Dns::start(dir.path(), &[]);
    assert_eq!(dns.short("vm1.ns1.vm.example.com", "ANY"), ["10.1.0.5", "10.1.0.6"]);
}

#[test]
fn the_question_comes_back_in_the_case_it_was_asked_in() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.5"])]));
    let dns = Dns::start(dir.path(), &[]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let query = b"\0\x01\0\0\0\x01\0\0\0\0\0\0\x03vM1\x03Ns1\x02Vm\x07eXAMple\x03cOm\0\0\x01\0\x01";
    socket.send_to(query, dns.address).unwrap();
    let mut reply = [0; 512];
    let length = socket.recv(&mut reply).unwrap();
    assert_eq!(reply[12..query.len()], query[12..]);
    assert_eq!((reply[7], &reply[length - 4..length]), (1, &[10, 1, 0, 5][..]));
}

#[test]
fn untrusted_addresses_are_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = vmi("ns1", "vm1", &[("blue", &["10.1.0.5"])]);
    seen.status.interfaces[0].info_source = "wire".to_owned();
    write(dir.path(), &seen);
    let dns = Dns::start(dir.path(), &["--trust", "guest-agent,multus-status"]);
    assert_eq!(dns.status("vm1.ns1.vm.example.com", "A"), ("NOERROR".into(), 0));
}

#[test]
fn how_long_answers_may_be_cached_and_whether_readiness_counts_is_the_administrators_choice() {
    let dir = tempfile::tempdir().unwrap();
    let ready = |status: &str| {
        let mut vmi = vmi("ns1", "vm1", &[("blue", &["10.1.0.5"])]);
        let condition = serde_json::json!([{"type": "Ready", "status": status}]);
        vmi.status.conditions = serde_json::from_value(condition).unwrap();
        vmi
    };
    write(dir.path(), &ready("False"));
    let all = Dns::start(dir.path(), &[]);
    let some = Dns::start(dir.path(), &["--only-ready", "--ttl", "77", "--negative-ttl", "7"]);
    let record = |dns: &Dns, name: &str| {
        let text = dns.dig(&["+noall", "+answer", "+authority", name]);
        text.split_whitespace().skip(1).take(3).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(record(&all, "vm1.ns1.vm.example.com"), ["30", "IN", "A"]);
    assert_eq!(record(&all, "vm2.ns1.vm.example.com"), ["5", "IN", "SOA"]);
    assert_eq!(some.status("vm1.ns1.vm.example.com", "A"), ("NXDOMAIN".into(), 0), "it is not ready");
    assert_eq!(record(&some, "vm1.ns1.vm.example.com"), ["7", "IN", "SOA"]);
    write(dir.path(), &ready("True"));
    some.await_short("vm1.ns1.vm.example.com", "A", &["10.1.0.5"]);
    assert_eq!(record(&some, "vm1.ns1.vm.example.com"), ["77", "IN", "A"]);
    write(dir.path(), &ready("False"));
    some.await_short("vm1.ns1.vm.example.com", "A", &[]);
}

#[test]
fn a_server_on_every_address_replies_from_the_one_it_was_asked_on() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.5"])]));
    for (listen, addresses) in
        [("0.0.0.0:0", &["127.0.0.1", "127.0.0.77"][..]), ("[::]:0", &["127.0.0.77", "::1"])]
    {
        let dns = Dns::start_on(listen, dir.path(), &[]);
        for address in addresses {
            // dig ignores replies that come from elsewhere.
            let server = std::net::SocketAddr::new(address.parse().unwrap(), dns.address.port());
            let (_, text) = support::dig(server, &["+notcp", "+short", "vm1.ns1.vm.example.com"]);
            assert_eq!(text, "10.1.0.5\n", "{listen} asked on {address}");
        }
    }
}
