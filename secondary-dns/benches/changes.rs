//! How soon a change is answered: 10,000 names, 100 changes a second, from the moment a VM's status file is in place
//! until a query gets the new address.
//!
//! Target: p99 within 20 ms. Run by `cargo bench -p secondary-dns --bench changes [-- SECONDS]`.

#![expect(clippy::unwrap_used, reason = "a benchmark's failure is its result")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use support::{Dns, vmi, write, write_many};

/// Two names each.
const VMS: usize = 5_000;
const PERIOD: Duration = Duration::from_millis(10);

fn main() {
    let seconds = std::env::args().filter_map(|word| word.parse().ok()).next().unwrap_or(10u32);
    let dir = tempfile::tempdir().unwrap();
    write_many(dir.path(), VMS);
    let dns = Dns::start(dir.path(), &[]);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(dns.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let began = Instant::now();
    let mut took: Vec<Duration> = (0..seconds * 100)
        .map(|n| {
            std::thread::sleep((PERIOD * n).saturating_sub(began.elapsed()));
            let name = format!("vm{}", n as usize * 7 % VMS);
            let [_, a, b, c] = n.to_be_bytes();
            let address = Ipv4Addr::new(11, a, b, c);
            write(dir.path(), &vmi("many", &name, &[("blue", &[&address.to_string()])]));
            let changed = Instant::now();
            while ask(&socket, &name) != Some(address) {}
            changed.elapsed()
        })
        .collect();
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    let rate = f64::from(seconds * 100) / began.elapsed().as_secs_f64();
    println!("{} names, {rate:.0} changes/s: status change to answer", 2 * VMS);
    println!("p50 {:?}, p99 {:?} (target 20 ms), worst {:?}", at(50), at(99), at(100));
}

/// Asks for the A record of a VM's name.
fn ask(socket: &UdpSocket, vm: &str) -> Option<Ipv4Addr> {
    let mut message = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [vm, "many", "vm", "example", "com"] {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send(&message).unwrap();
    let mut reply = [0; 512];
    let length = socket.recv(&mut reply).unwrap();
    let data: [u8; 4] = reply.get(length.checked_sub(4)?..length)?.try_into().unwrap();
    (reply[7] == 1).then_some(Ipv4Addr::from(data))
}
