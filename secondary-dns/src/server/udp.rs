//! UDP: one thread and one socket per core.
//!
//! The sockets share a port (`SO_REUSEPORT`): the kernel spreads clients over them and each thread works on its
//! own, taking the current snapshot once per batch. Threads end when their socket is shut down.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::batch::Batch;
use super::{Server, ServerError};
use crate::limit::Allowance;
use crate::message::Handled;
use crate::stats::Stats;
use crate::wire::{Outcome, Transport, refer_to_tcp, respond};
use crate::zone::Zone;

/// Octets the kernel queues per socket while its thread is busy.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Between two attempts to receive that fail.
const PAUSE: Duration = Duration::from_millis(10);

/// Running UDP threads.
pub(super) struct UdpThreads {
    sockets: Vec<Arc<UdpSocket>>,
    threads: Vec<thread::JoinHandle<()>>,
    stopping: Arc<AtomicBool>,
}

impl UdpThreads {
    /// Binds `threads` sockets to `address` and starts answering. With port 0 all get the port of the first.
    pub(super) fn start(
        server: &Arc<Server>,
        address: SocketAddr,
        threads: usize,
        all_stats: &mut Vec<Arc<Stats>>,
    ) -> Result<Self, ServerError> {
        let bind = |source| ServerError::Bind { protocol: "UDP", address, source };
        let mut running =
            Self { sockets: Vec::new(), threads: Vec::new(), stopping: Arc::new(AtomicBool::new(false)) };
        let mut exact = address;
        for number in 0..threads.max(1) {
            let socket = Arc::new(open(exact).map_err(bind)?);
            exact = socket.local_addr().map_err(bind)?;
            let worker = Worker {
                server: Arc::clone(server),
                socket: Arc::clone(&socket),
                stopping: Arc::clone(&running.stopping),
                stats: Arc::default(),
            };
            all_stats.push(Arc::clone(&worker.stats));
            let name = format!("udp-{number}");
            let thread = thread::Builder::new().name(name).spawn(move || worker.run()).map_err(bind)?;
            running.sockets.push(socket);
            running.threads.push(thread);
        }
        Ok(running)
    }

    /// The address that is answered on.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.sockets.first()?.local_addr().ok()
    }

    /// Ends the threads, each after the batch it is working on.
    pub(super) fn stop(self) {
        self.stopping.store(true, Ordering::Release);
        for socket in &self.sockets {
            // ENOTCONN is what an unconnected socket answers after waking its reader up.
            let _woken = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a UDP thread panicked");
            }
        }
    }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
        IpAddr::V6(ip) => {
            socket.set_only_v6(!ip.is_unspecified())?;
            if ip.is_unspecified() {
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            }
        }
        IpAddr::V4(_) => {}
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

struct Worker {
    server: Arc<Server>,
    socket: Arc<UdpSocket>,
    stopping: Arc<AtomicBool>,
    stats: Arc<Stats>,
}

impl Worker {
    fn run(self) {
        let wildcard = self.socket.local_addr().is_ok_and(|address| address.ip().is_unspecified());
        let mut batch = Batch::new(wildcard);
        loop {
            let received = batch.receive(&self.socket);
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            match received {
                Ok(count) => self.answer(&mut batch, count),
                Err(error) => {
                    tracing::warn!(%error, "recvmmsg");
                    // Out of memory, most likely: a lasting failure must not take the whole core.
                    thread::sleep(PAUSE);
                }
            }
        }
    }

    fn answer(&self, batch: &mut Batch, count: usize) {
        let zone = self.server.zone.load();
        let now = Instant::now();
        for at in 0..count {
            let Some((query, reply, peer)) = batch.slot(at) else { continue };
            let limit = self.server.limit.as_ref();
            let allowance = limit.map_or(Allowance::Answer, |limit| limit.judge(peer, now));
            self.stats.limited(allowance);
            let outcome = match allowance {
                Allowance::Answer => {
                    match respond(&zone, &self.server.identity, query, Transport::Udp, reply) {
                        Outcome::Special => self.special(&zone, query, reply, peer),
                        outcome => outcome,
                    }
                }
                Allowance::Truncate => refer_to_tcp(query, reply),
                Allowance::Drop => Outcome::Ignore,
            };
            if let Outcome::Reply { length, kind, rcode } = outcome {
                batch.reply(at, length);
                self.stats.answered(kind, rcode);
            }
        }
        let dropped = batch.send(&self.socket);
        if dropped > 0 {
            tracing::debug!(dropped, "replies that could not be sent");
        }
        self.stats.took(count, now.elapsed());
    }

    /// Signed queries and other rarities.
    fn special(&self, zone: &Arc<Zone>, query: &[u8], reply: &mut [u8], peer: IpAddr) -> Outcome {
        let Server { special, identity, .. } = &*self.server;
        match special.handle(zone, identity, query, Transport::Udp, peer) {
            Handled::Reply { octets, kind, rcode } => match reply.get_mut(..octets.len()) {
                Some(place) => {
                    place.copy_from_slice(&octets);
                    Outcome::Reply { length: octets.len(), kind, rcode }
                }
                None => Outcome::Ignore,
            },
            Handled::Transfer(_) | Handled::Nothing => Outcome::Ignore,
        }
    }
}
