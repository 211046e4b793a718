//! How many connections a server has, and whose: a client that opens many keeps nobody else out.
//!
//! Every server of strangers asks [`Connections::admit`] after it has accepted, closes what is not admitted, and holds the
//! [`Admitted`] for as long as the connection.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Who is connected how many times.
#[derive(Debug)]
pub struct Connections {
    /// At once, in all.
    most: usize,
    /// At once from one address (IPv6: one /64).
    per_client: usize,
    clients: Mutex<HashMap<IpAddr, usize>>,
}

/// One admitted connection; dropping it makes room.
#[derive(Debug)]
pub struct Admitted {
    connections: Arc<Connections>,
    client: IpAddr,
}

impl Connections {
    /// No connection yet, and at most as many.
    pub fn new(most: usize, per_client: usize) -> Arc<Self> {
        Arc::new(Self { most, per_client, clients: Mutex::default() })
    }

    /// Lets a client connect once more, if that is within the limits.
    pub fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Admitted> {
        let client = network(peer);
        let mut all = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = all.get(&client).copied().unwrap_or_default();
        if mine >= self.per_client || all.values().sum::<usize>() >= self.most {
            return None;
        }
        all.insert(client, mine + 1);
        Some(Admitted { connections: Arc::clone(self), client })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut all = self.connections.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.client);
            }
        }
    }
}

/// What one client can choose its addresses from.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_cannot_take_all_connections_and_gives_back_what_it_had() {
        let connections = Connections::new(1024, 64);
        let flood: Vec<Admitted> = (0..200)
            .filter_map(|n: u16| connections.admit(IpAddr::V6(Ipv6Addr::new(1, 2, 3, 4, 5, 6, 7, n))))
            .collect();
        assert_eq!(flood.len(), 64);
        let other: IpAddr = "192.0.2.1".parse().unwrap();
        assert!(connections.admit(other).is_some());
        drop(flood);
        assert!(connections.clients.lock().unwrap().is_empty());
    }
}
