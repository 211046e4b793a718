//! What strangers send: it must cost them more than us.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use support::{Dns, vmi, write};

const NAME: &str = "vm1.ns1.vm.example.com";

fn dns(dir: &tempfile::TempDir) -> Dns {
    write(dir.path(), &vmi("ns1", "vm1", &[("blue", &["10.1.0.5"])]));
    Dns::start(dir.path(), &[])
}

#[test]
fn a_tcp_message_of_64_kilobytes_is_answered_and_the_connection_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let dns = dns(&dir);
    let mut stream = TcpStream::connect(dns.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut message = vec![0xff; 2 + 65535];
    // A query with one question, whose name is 65,523 octets of 0xff.
    message[2..14].copy_from_slice(&[0xab, 0xcd, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for _ in 0..3 {
        stream.write_all(&message).unwrap();
        let mut reply = [0; 14];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply, [0, 12, 0xab, 0xcd, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0], "FORMERR");
    }
}

#[test]
fn a_flood_of_half_open_connections_does_not_keep_others_out() {
    let dir = tempfile::tempdir().unwrap();
    let dns = dns(&dir);
    // One client address may hold 64; the rest is closed at once, and UDP does not care.
    let flood: Vec<TcpStream> = (0..300)
        .map(|_| {
            let mut stream = TcpStream::connect(dns.address).unwrap();
            stream.write_all(&[0]).unwrap();
            stream
        })
        .collect();
    assert_eq!(dns.dig(&["+notcp", "+short", NAME]), "10.1.0.5\n");
    assert_eq!(dns.dig(&["+tcp", "+short", "-b", "127.0.0.9", NAME]), "10.1.0.5\n", "another client");
    drop(flood);
    for _ in 0..200 {
        if support::dig(dns.address, &["+tcp", "+short", NAME]).1 == "10.1.0.5\n" {
            return;
        }
    }
    panic!("the flood's connections were not given back");
}

#[test]
fn garbage_by_udp_leaves_the_server_answering() {
    let dir = tempfile::tempdir().unwrap();
    let dns = dns(&dir);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut state = 1u32;
    for length in 0..2000usize {
        let octets: Vec<u8> = (0..length % 600)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            })
            .collect();
        socket.send_to(&octets, dns.address).unwrap();
    }
    assert_eq!(dns.short(NAME, "A"), ["10.1.0.5"]);
}
