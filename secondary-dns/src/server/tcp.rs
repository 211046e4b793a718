//! TCP (RFC 7766): the same answers behind a two-octet length, for clients told to come back by truncation.
//!
//! Strangers can open connections, so everything is bounded: how many there are, how many per client network, and
//! how long each may stay silent. Messages on one connection are answered in order.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use connections::Connections;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{Server, ServerError};
use crate::message::{Handled, Transfer};
use crate::stats::Stats;
use crate::transfer::messages;
use crate::wire::{MAX_TCP, Outcome, Transport, respond};
use crate::zone::Zone;

/// Connections at once.
const MAX_CONNECTIONS: usize = 1024;
/// Connections at once from one client.
const MAX_PER_CLIENT: usize = 64;
/// How long a client may take to send its next message, or to read a reply.
const PATIENCE: Duration = Duration::from_secs(8);
/// Connections the kernel keeps until they are accepted.
const BACKLOG: i32 = 512;

/// Binds the listener.
pub(super) fn bind(address: SocketAddr) -> Result<TcpListener, ServerError> {
    open(address).map_err(|source| ServerError::Bind { protocol: "TCP", address, source })
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if let IpAddr::V6(ip) = address.ip() {
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves connections until it is dropped.
pub(super) async fn serve(server: Arc<Server>, listener: TcpListener, stats: Arc<Stats>) {
    let connections = Connections::new(MAX_CONNECTIONS, MAX_PER_CLIENT);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: let connections end before trying again.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // A connection beyond the limits is closed at once.
        let Some(admitted) = connections.admit(peer.ip()) else { continue };
        let (server, stats) = (Arc::clone(&server), Arc::clone(&stats));
        tokio::spawn(async move {
            let _admitted = admitted;
            if let Err(error) = converse(&server, &stats, stream, peer.ip()).await {
                tracing::debug!(%peer, %error, "TCP connection");
            }
        });
    }
}

async fn converse(server: &Server, stats: &Stats, mut stream: TcpStream, peer: IpAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = Vec::new();
    loop {
        let Some(length) = patiently(read_length(&mut stream)).await? else { return Ok(()) };
        message.resize(usize::from(length), 0);
        patiently(stream.read_exact(&mut message)).await?;
        let began = Instant::now();
        let zone = server.zone.load_full();
        match answer(server, &zone, &message, peer) {
            Handled::Reply { octets, kind, rcode } => {
                send(&mut stream, &octets).await?;
                stats.answered(kind, rcode);
                stats.took(1, began.elapsed());
            }
            Handled::Transfer(granted) => {
                stats.transferred();
                transfer(&mut stream, &zone, granted).await?;
            }
            // Nothing that follows on this connection would make sense.
            Handled::Nothing => return Ok(()),
        }
    }
}

fn answer(server: &Server, zone: &Arc<Zone>, message: &[u8], peer: IpAddr) -> Handled {
    let mut octets = vec![0; MAX_TCP];
    match respond(zone, &server.identity, message, Transport::Tcp, &mut octets) {
        Outcome::Reply { length, kind, rcode } => {
            octets.truncate(length);
            Handled::Reply { octets, kind, rcode }
        }
        Outcome::Special => server.special.handle(zone, &server.identity, message, Transport::Tcp, peer),
        Outcome::Ignore => Handled::Nothing,
    }
}

/// Sends the zone; the client may be slow, but not silent.
async fn transfer(stream: &mut TcpStream, zone: &Zone, mut granted: Transfer) -> io::Result<()> {
    let mut session = granted.session.take();
    for mut message in messages(zone, &granted) {
        if let Some(session) = &mut session {
            session.sign(&mut message, SystemTime::now()).map_err(io::Error::other)?;
        }
        send(stream, &message).await?;
    }
    Ok(())
}

/// Sends one message behind its length, in one piece.
async fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes()[..], message].concat();
    patiently(stream.write_all(&framed)).await
}

/// The next message's length; `None` at the end of the connection.
async fn read_length(stream: &mut TcpStream) -> io::Result<Option<u16>> {
    match stream.read_u16().await {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

async fn patiently<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
