//! The enterprise's name servers hold copies of our zones: BIND, Knot and NSD, told by NOTIFY, fed by signed AXFR.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper's failure is the test's failure")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{Dns, dig, vmi, write, write_many};

/// How long a secondary may take to have a change. Its own refresh comes after 60 seconds: only NOTIFY is as fast.
const PATIENCE: Duration = Duration::from_secs(20);
const SECRET: &str = "c2VjcmV0IG9mIHRoZSBzZWNvbmRhcmllcyB0ZXN0";
const NETWORK: &str = "10.0.0.0/8";
/// More than one message of a transfer.
const MANY: usize = 1500;

/// A foreign server, killed when dropped.
struct Secondary(Child);

impl Drop for Secondary {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn run(program: &str, arguments: &[&str]) -> Secondary {
    let child = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Secondary(child.unwrap_or_else(|error| panic!("{program} (packages bind9, knot, nsd): {error}")))
}

/// A port of this test's own: below those that the kernel gives to clients, and one for each process.
fn own_port() -> u16 {
    20_000 + u16::try_from(std::process::id() % 10_000).unwrap()
}

fn await_answer(server: SocketAddr, name: &str, kind: &str, expected: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, got) = dig(server, &["+short", name, kind]);
        if got.trim() == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{name} {kind}: {got:?}, expected {expected:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Plays the whole story with the secondary that `start` makes: (directory, its own port, our port) → process.
fn holds_and_follows(start: fn(&Path, u16, u16) -> Secondary) {
    let dir = tempfile::tempdir().unwrap();
    let (vmis, place) = (dir.path().join("vmis"), dir.path().join("secondary"));
    fs::create_dir_all(&place).unwrap();
    let keys = dir.path().join("keys");
    fs::write(&keys, format!("# shared with the enterprise\nhmac-sha256:corp.key:{SECRET}\n")).unwrap();
    write(&vmis, &vmi("ns1", "vm1", &[("blue", &["10.1.0.5", "2001:db8::5"])]));
    write_many(&vmis, MANY);
    let port = own_port();
    let secondary = format!("127.0.0.1:{port},corp.key");
    let dns = Dns::start(
        &vmis,
        &[
            "--name-server-ip",
            "127.0.0.1",
            "--reverse",
            NETWORK,
            "--tsig-keys",
            keys.to_str().unwrap(),
            "--secondary",
            &secondary,
        ],
    );
    let _running = start(&place, port, dns.address.port());
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    await_answer(server, "blue.vm1.ns1.vm.example.com", "A", "10.1.0.5");
    await_answer(server, "vm1.ns1.vm.example.com", "AAAA", "2001:db8::5");
    await_answer(server, "vm1499.many.vm.example.com", "A", "10.7.5.250");
    await_answer(server, "5.0.1.10.in-addr.arpa", "PTR", "blue.vm1.ns1.vm.example.com.");

    write(&vmis, &vmi("ns1", "vm1", &[("blue", &["10.1.0.6"])]));
    await_answer(server, "blue.vm1.ns1.vm.example.com", "A", "10.1.0.6");
    await_answer(server, "vm1.ns1.vm.example.com", "AAAA", "");
    await_answer(server, "6.0.1.10.in-addr.arpa", "PTR", "blue.vm1.ns1.vm.example.com.");
    let serial = dns.serial().to_string();
    let (_, soa) = dig(server, &["+short", "vm.example.com", "SOA"]);
    assert_eq!(soa.split(' ').nth(2), Some(serial.as_str()));
}

fn bind(place: &Path, port: u16, primary: u16) -> Secondary {
    let path = place.display();
    let zone = |name: &str| {
        format!(
            "zone \"{name}\" {{ type secondary; file \"{path}/{name}\"; \
             primaries {{ 127.0.0.1 port {primary} key corp.key; }}; }};\n"
        )
    };
    let text = format!(
        "options {{ directory \"{path}\"; pid-file none; session-keyfile none; recursion no; notify no;\n\
         dnssec-validation no; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; }};\n\
         controls {{ }};\n\
         key corp.key {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n{}{}",
        zone("vm.example.com"),
        zone("10.in-addr.arpa"),
    );
    let config = place.join("named.conf");
    fs::write(&config, text).unwrap();
    run("/usr/sbin/named", &["-g", "-n", "1", "-c", config.to_str().unwrap()])
}

fn knot(place: &Path, port: u16, primary: u16) -> Secondary {
    let path = place.display();
    let text = format!(
        "server:\n  rundir: {path}\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n\
         database:\n  storage: {path}\n\
         key:\n  - id: corp.key\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
         remote:\n  - id: primary\n    address: 127.0.0.1@{primary}\n    key: corp.key\n\
         acl:\n  - id: notify\n    address: 127.0.0.1\n    key: corp.key\n    action: notify\n\
         template:\n  - id: default\n    storage: {path}\n    master: primary\n    acl: notify\n\
         zone:\n  - domain: vm.example.com\n  - domain: 10.in-addr.arpa\n"
    );
    let config = place.join("knot.conf");
    fs::write(&config, text).unwrap();
    run("/usr/sbin/knotd", &["-c", config.to_str().unwrap()])
}

fn nsd(place: &Path, port: u16, primary: u16) -> Secondary {
    let path = place.display();
    let zone = |name: &str| {
        format!(
            "zone:\n  name: {name}\n  zonefile: {path}/{name}\n  request-xfr: AXFR 127.0.0.1@{primary} corp.key\n  \
             allow-notify: 127.0.0.1 corp.key\n"
        )
    };
    let text = format!(
        "server:\n  ip-address: 127.0.0.1@{port}\n  server-count: 1\n  username: \"\"\n  chroot: \"\"\n  \
         database: \"\"\n  zonesdir: {path}\n  zonelistfile: {path}/zones\n  xfrdfile: {path}/xfrd\n  \
         xfrdir: {path}\n  pidfile: {path}/pid\n\
         remote-control:\n  control-enable: no\n\
         key:\n  name: corp.key\n  algorithm: hmac-sha256\n  secret: {SECRET}\n{}{}",
        zone("vm.example.com"),
        zone("10.in-addr.arpa"),
    );
    let config = place.join("nsd.conf");
    fs::write(&config, text).unwrap();
    run("/usr/sbin/nsd", &["-d", "-c", config.to_str().unwrap()])
}

#[test]
fn bind_holds_the_zones_and_follows_changes() {
    holds_and_follows(bind);
}

#[test]
fn knot_holds_the_zones_and_follows_changes() {
    holds_and_follows(knot);
}

#[test]
fn nsd_holds_the_zones_and_follows_changes() {
    holds_and_follows(nsd);
}

#[test]
fn only_those_listed_get_the_zone_and_every_message_is_signed() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    fs::write(&keys, format!("hmac-sha256:corp.key:{SECRET}\n")).unwrap();
    let vmis = dir.path().join("vmis");
    write_many(&vmis, MANY);
    let secondary = format!("127.0.0.1:{},corp.key", own_port());
    let dns = Dns::start(&vmis, &["--tsig-keys", keys.to_str().unwrap(), "--secondary", &secondary]);
    let axfr = |key: &[&str]| dig(dns.address, &[&["vm.example.com", "AXFR", "+onesoa"], key].concat()).1;
    assert!(axfr(&[]).contains("Transfer failed"));
    assert!(
        axfr(&["-y", "hmac-sha256:corp.key:d3Jvbmcgc2VjcmV0IHdyb25nIHNlY3JldA=="])
            .contains("Transfer failed")
    );
    assert!(axfr(&["-y", &format!("hmac-sha256:other.key:{SECRET}")]).contains("Transfer failed"));
    let whole = axfr(&["-y", &format!("hmac-sha256:corp.key:{SECRET}")]);
    // dig checks the chain of signatures and says so when it breaks.
    assert!(!whole.contains("verify") && !whole.contains("failed"), "{whole}");
    let addresses = whole.lines().filter(|line| line.split_whitespace().nth(3) == Some("A"));
    assert_eq!(addresses.count(), 2 * MANY);
    // An ordinary query may be signed as well, and a wrong signature is answered as the protocol says.
    let signed = format!("hmac-sha256:corp.key:{SECRET}");
    let (_, text) = dig(dns.address, &["-y", &signed, "vm0.many.vm.example.com"]);
    assert!(text.contains("10.7.0.1") && text.contains("TSIG") && !text.contains("verify"), "{text}");
    let (_, text) =
        dig(dns.address, &["-y", &format!("hmac-sha256:other.key:{SECRET}"), "vm0.many.vm.example.com"]);
    assert!(text.contains("NOTAUTH") && text.contains("BADKEY"), "{text}");
    // Nobody may tell us about our own zone, nor get it by UDP.
    let (_, text) = dig(dns.address, &["+opcode=notify", "vm.example.com", "SOA"]);
    assert!(text.contains("status: REFUSED"), "{text}");
}

/// The messages of a transfer of the whole zone, asked for with this additional section.
fn transfer(server: SocketAddr, additional: &[u8]) -> Vec<Vec<u8>> {
    let question = b"\x02vm\x07example\x03com\0\0\xfc\0\x01";
    let head = [0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!additional.is_empty())];
    let request = [&head[..], question, additional].concat();
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&u16::try_from(request.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&request).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut octets = Vec::new();
    stream.read_to_end(&mut octets).unwrap();
    let mut rest = octets.as_slice();
    let next = || {
        let (length, more) = rest.split_first_chunk()?;
        let (message, more) = more.split_at(u16::from_be_bytes(*length).into());
        rest = more;
        Some(message.to_vec())
    };
    std::iter::from_fn(next).collect()
}

#[test]
fn a_transfer_asked_for_with_edns_has_it_in_every_message_and_no_other_has() {
    let dir = tempfile::tempdir().unwrap();
    write_many(dir.path(), MANY);
    let dns = Dns::start(dir.path(), &["--secondary", "127.0.0.1:5"]);
    // The root's name, type OPT, 1232 octets; then flags and data.
    let opt = [0, 0, 41, 4, 208];
    let plain = transfer(dns.address, &[]);
    let extended = transfer(dns.address, &[&opt[..], &[0; 6]].concat());
    assert!(
        plain.len() > 1 && plain.len() == extended.len(),
        "{} and {} messages",
        plain.len(),
        extended.len()
    );
    for (plain, extended) in plain.iter().zip(&extended) {
        assert_eq!((plain[10..12].to_vec(), extended[10..12].to_vec()), (vec![0, 0], vec![0, 1]));
        let (records, last) = extended.split_at(plain.len());
        assert_eq!((&records[12..], &last[..5]), (&plain[12..], &opt[..]));
    }
}

#[test]
fn a_secondary_without_a_key_is_known_by_its_address() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.5"])]));
    let dns = Dns::start(dir.path(), &["--secondary", "127.0.0.1:5"]);
    let (_, text) = dig(dns.address, &["vm.example.com", "AXFR"]);
    assert_eq!(text.lines().filter(|line| line.contains("10.1.0.5")).count(), 2, "{text}");
    let serial = dns.serial();
    let (_, text) = dig(dns.address, &["vm.example.com", &format!("IXFR={serial}")]);
    assert_eq!(text.lines().filter(|line| line.contains("IN\tSOA")).count(), 1, "nothing newer: {text}");
    let (_, text) = dig(dns.address, &["vm.example.com", &format!("IXFR={}", serial - 1)]);
    assert!(text.contains("10.1.0.5"), "a whole transfer instead of a difference: {text}");
}

#[test]
fn a_vm_with_the_longest_names_and_most_addresses_does_not_stop_a_transfer() {
    let dir = tempfile::tempdir().unwrap();
    let label = "x".repeat(63);
    let addresses: Vec<String> = (0..256).map(|n| format!("2001:db8::1:{n:x}")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    // Several, since where in a message a name comes to lie is chance.
    let names: Vec<String> = (10..30).map(|n| format!("{}{n}", "x".repeat(61))).collect();
    let nics: Vec<(&str, &[&str])> = names.iter().map(|name| (name.as_str(), &*addresses)).collect();
    write(dir.path(), &vmi(&label, &label, &nics));
    write_many(dir.path(), MANY);
    let dns = Dns::start(dir.path(), &["--secondary", "127.0.0.1:5"]);
    let (_, text) = dig(dns.address, &["vm.example.com", "AXFR", "+onesoa"]);
    let owned = |name: String| text.lines().filter(|line| line.starts_with(&name)).count();
    for name in &names {
        assert_eq!(owned(format!("{name}.{label}.{label}.vm.example.com.")), 256);
    }
    assert_eq!(owned(format!("{label}.{label}.vm.example.com.")), 256);
    assert_eq!(text.lines().filter(|line| line.contains("IN\tA\t")).count(), 2 * MANY, "the others came too");
}

#[test]
fn a_name_too_long_for_the_zone_is_left_out_and_the_zone_can_still_be_copied() {
    let dir = tempfile::tempdir().unwrap();
    let label = "x".repeat(63);
    write(dir.path(), &vmi(&label, &label, &[(&label, &["10.1.0.5"]), ("blue", &["10.1.0.6"])]));
    let domain = [&*"d".repeat(40), &*"e".repeat(40), "example.com"].join(".");
    let dns = Dns::start(
        dir.path(),
        &["--domain", &domain, "--secondary", "127.0.0.1:5", "--reverse", "10.0.0.0/8"],
    );
    let zone = format!("vm.{domain}");
    let (_, text) = dig(dns.address, &[&zone, "AXFR", "+onesoa"]);
    assert!(text.contains(&format!("blue.{label}.{label}.{zone}.")), "{text}");
    let pointer = |address: &str| dig(dns.address, &["+short", "-x", address]).1.trim().to_owned();
    assert_eq!(pointer("10.1.0.6"), format!("blue.{label}.{label}.{zone}."));
    assert_eq!(pointer("10.1.0.5"), "", "its name would have 291 octets");
}
