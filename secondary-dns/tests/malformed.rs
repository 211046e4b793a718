//! The messages of `malformed.txt`, by UDP and TCP, to one server that goes on answering. The same file seeds `fuzz/`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper's failure is the test's failure")]

#[path = "support/malformed.rs"]
mod malformed;
mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use malformed::{Case, cases};
use support::{Dns, vmi, write};

/// The response code's name; BADVERS is spelt in the OPT record at the end.
fn code(reply: &[u8]) -> &'static str {
    let upper = if reply[11] == 1 { u16::from(reply[reply.len() - 6]) << 4 } else { 0 };
    match upper | u16::from(reply[3] & 0xf) {
        0 => "NOERROR",
        1 => "FORMERR",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        9 => "NOTAUTH",
        16 => "BADVERS",
        other => panic!("code {other}"),
    }
}

/// EDNS is answered with EDNS, also in an error (RFC 6891 section 6.1.1); and nobody else gets it.
fn assert_edns(reply: &[u8], case: &Case) {
    let has_opt = |octets: &[u8]| octets.windows(3).any(|record| record == [0, 0, 41]);
    assert_eq!(has_opt(reply), has_opt(&case.octets), "{}", case.description);
}

fn by_udp(server: SocketAddr, case: &Case) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send_to(&case.octets, server).unwrap();
    // Answered in order: if the second message's reply comes first, the first has none.
    let Case { description, expected, .. } = case;
    let sentinel = cases().pop().unwrap();
    let mut second = sentinel.octets;
    second[..2].copy_from_slice(&[0x12, 0x34]);
    socket.send_to(&second, server).unwrap();
    let mut reply = [0; 1500];
    let length = socket.recv(&mut reply).unwrap();
    let got = if reply[..2] == [0x12, 0x34] { "silence" } else { code(&reply[..length]) };
    assert_eq!(got, *expected, "{description}, by UDP");
    if got != "silence" {
        assert_edns(&reply[..length], case);
    }
}

fn by_tcp(server: SocketAddr, case: &Case) {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let length = u16::try_from(case.octets.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], &case.octets].concat()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    let reply = reply.get(2..).filter(|reply| !reply.is_empty());
    assert_eq!(reply.map_or("silence", code), case.expected, "{}, by TCP", case.description);
    reply.inspect(|reply| assert_edns(reply, case));
}

#[test]
fn every_malformed_message_gets_what_it_deserves() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.5"])]));
    let dns = Dns::start(dir.path(), &["--threads", "1"]);
    for case in cases() {
        by_udp(dns.address, &case);
        by_tcp(dns.address, &case);
    }
}
