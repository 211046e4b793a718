//! The sockets: UDP on its own threads, TCP on the runtime.

mod batch;
mod tcp;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::limit::RateLimit;
use crate::message::Special;
use crate::stats::AllStats;
use crate::wire::Identity;
use crate::zone::SharedZone;

/// What every socket answers from.
pub struct Server {
    /// The snapshot served now.
    pub zone: Arc<SharedZone>,
    /// Who we are.
    pub identity: Identity,
    /// Keys and secondaries.
    pub special: Arc<Special>,
    /// How many UDP replies a client network may have.
    pub limit: Option<RateLimit>,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A socket could not be had.
    #[error("listen on {protocol} {address}")]
    Bind {
        /// `UDP` or `TCP`.
        protocol: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A server that answers until [`Running::stop`].
pub struct Running {
    udp: Vec<udp::UdpThreads>,
    tcp: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
    stats: AllStats,
}

impl Running {
    /// What was answered.
    pub fn stats(&self) -> AllStats {
        self.stats.clone()
    }

    /// Where it listens, in the order given; UDP and TCP use one port.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops: queries already received are answered.
    pub fn stop(self) {
        self.tcp.iter().for_each(JoinHandle::abort);
        self.udp.into_iter().for_each(udp::UdpThreads::stop);
    }
}

impl Server {
    /// Binds every address, UDP (with `threads` sockets each) and TCP, and starts answering. Must be called within a
    /// tokio runtime.
    pub fn start(self: Arc<Self>, listen: &[SocketAddr], threads: usize) -> Result<Running, ServerError> {
        let mut running =
            Running { udp: Vec::new(), tcp: Vec::new(), addresses: Vec::new(), stats: AllStats::default() };
        for address in listen {
            // TCP first: with port 0 it is the one that says which.
            let listener = tcp::bind(*address)?;
            let bound = listener.local_addr().map_err(|source| ServerError::Bind {
                protocol: "TCP",
                address: *address,
                source,
            })?;
            let udp = udp::UdpThreads::start(&self, bound, threads, &mut running.stats.udp)?;
            running.addresses.extend(udp.address());
            running.udp.push(udp);
            running.tcp.push(tokio::spawn(tcp::serve(
                Arc::clone(&self),
                listener,
                Arc::clone(&running.stats.tcp),
            )));
        }
        Ok(running)
    }
}
