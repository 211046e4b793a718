//! A NIC and a guest with different numbers of queues: each of the guest's gets its flows, and each of the NIC's.

use std::io::Read as _;
use std::time::Duration;

use e2e::{Sandbox, eventually};

use crate::vhost_guests::{Guest, await_socket, backend};
use crate::vhost_steering::Wire;

const LIMIT: Duration = Duration::from_secs(20);
/// Fewer than a ring has entries: a guest that gets no CPU for a while loses none.
const FLOWS: u16 = 32;

/// A TCP segment from one of the flows' ports.
fn segment(flow: u16) -> Vec<u8> {
    let mut bytes = [[2, 0, 0, 0, 0, 7].as_slice(), &[2, 0, 0, 0, 0, 9], &[8, 0, 0x45, 0, 0, 46]].concat();
    bytes.extend([0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 9, 192, 0, 2, 2]);
    bytes.extend(flow.to_be_bytes());
    bytes.resize(60, 0);
    bytes
}

#[test]
fn a_nic_of_two_queues_and_a_guest_of_three_reach_each_others() {
    let _sandbox = Sandbox::enter();
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("guest");
    let nic = Wire::new("nic", 2);
    let _backend = backend(&[&format!("vhost-user:{}?queues=3,af_xdp:nic:0-1", socket.display())]);
    await_socket(&socket);
    let port = format!("path={},queues=3,queue_size=256,mac=02:00:00:00:00:07", socket.display());
    let mut guest = Guest::with_queues(directory.path(), "guest.log", "rxonly", &[port], 3);
    guest.say("start");
    // Queue 0 of the NIC is the guest's 0 and 2, by flow; its queue 1 is the guest's 1.
    let mut expected = guest.received_by_queue(3).iter().sum::<u64>();
    for (queue, fed) in [(0, [true, false, true]), (1, [false, true, false])] {
        let before = guest.received_by_queue(3);
        for _ in 0..3 {
            (0..FLOWS).for_each(|flow| nic.send(queue, &segment(flow)));
            expected += u64::from(FLOWS);
            let mut now = Vec::new();
            eventually(&format!("{expected} frames are at the guest"), LIMIT, || {
                now = guest.received_by_queue(3);
                (now.iter().sum::<u64>() == expected).then_some(())
            });
            let arrived: Vec<_> = now.iter().zip(&before).map(|(now, before)| now - before).collect();
            assert_eq!(arrived.iter().map(|count| *count > 0).collect::<Vec<_>>(), fed, "{arrived:?}");
        }
    }
    guest.say("stop");
    guest.say("set fwd txonly");
    guest.say("start");
    for queue in &nic.0 {
        let mut bytes = [0; 2048];
        eventually("a frame of the guest is in the NIC's queue", LIMIT, || {
            queue.file().read(&mut bytes).is_ok().then_some(())
        });
    }
}
