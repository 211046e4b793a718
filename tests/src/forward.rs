//! One address in front of others, as kube-proxy or a load balancer is: each connection goes to an endpoint that accepts it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Forwards TCP connections for the rest of the process, in turns to its endpoints.
#[derive(Debug)]
pub struct Forward {
    address: SocketAddr,
    endpoints: Arc<Mutex<Vec<SocketAddr>>>,
    clients: Arc<Mutex<Vec<Weak<Client>>>>,
}

/// One connection.
#[derive(Debug)]
struct Client {
    stream: TcpStream,
    /// What it or its server sends goes nowhere.
    stalled: AtomicBool,
}

impl Forward {
    /// Listens at `address`, in the caller's network namespace, and has no endpoint yet.
    #[track_caller]
    pub fn start(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (endpoints, clients) = <(Arc<Mutex<Vec<_>>>, Arc<Mutex<Vec<_>>>)>::default();
        let (to, open) = (Arc::clone(&endpoints), Arc::clone(&clients));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = Arc::new(Client { stream: client.unwrap(), stalled: false.into() });
                let mut open = open.lock().unwrap();
                open.retain(|client: &Weak<Client>| client.strong_count() > 0);
                open.push(Arc::downgrade(&client));
                let to = Arc::clone(&to);
                std::thread::spawn(move || join(&client, &to));
            }
        });
        Self { address, endpoints, clients }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections may go there from now on.
    pub fn add(&self, endpoint: SocketAddr) {
        self.endpoints.lock().unwrap().push(endpoint);
    }

    /// New connections go there no more.
    pub fn remove(&self, endpoint: SocketAddr) {
        self.endpoints.lock().unwrap().retain(|other| *other != endpoint);
    }

    /// Breaks every connection, as a load balancer does that is replaced. Returns how many there were.
    pub fn cut(&self) -> usize {
        let clients = self.open();
        clients.iter().for_each(|client| drop(client.stream.shutdown(Shutdown::Both)));
        clients.len()
    }

    /// Lets every connection stand and carry nothing any more, as when a machine behind it has lost its power. New ones are
    /// forwarded. Returns how many there were.
    pub fn stall(&self) -> usize {
        let clients = self.open();
        clients.iter().for_each(|client| client.stalled.store(true, Ordering::Relaxed));
        clients.len()
    }

    fn open(&self) -> Vec<Arc<Client>> {
        self.clients.lock().unwrap().iter().filter_map(Weak::upgrade).collect()
    }
}

/// Carries both directions of one connection until they end.
fn join(client: &Client, endpoints: &Mutex<Vec<SocketAddr>>) {
    let order = {
        let mut endpoints = endpoints.lock().unwrap();
        if !endpoints.is_empty() {
            endpoints.rotate_left(1);
        }
        endpoints.clone()
    };
    let Some(server) = order.into_iter().find_map(|endpoint| TcpStream::connect(endpoint).ok()) else {
        return;
    };
    let Client { stream, stalled } = client;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            carry(stream, &server, stalled);
            let _gone_already = server.shutdown(Shutdown::Write);
        });
        carry(&server, stream, stalled);
        if !stalled.load(Ordering::Relaxed) {
            let _gone_already = stream.shutdown(Shutdown::Both);
        }
    });
}

fn carry(mut from: &TcpStream, mut to: &TcpStream, stalled: &AtomicBool) {
    let mut buffer = [0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let Some(octets) = buffer.get(..length) else { break };
        if !stalled.load(Ordering::Relaxed) && to.write_all(octets).is_err() {
            break;
        }
    }
}
