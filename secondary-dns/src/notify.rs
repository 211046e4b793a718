//! NOTIFY (RFC 1996): tells the secondaries that a zone has a new serial.
//!
//! One task per secondary. Changes that come close together are told once; a message without an answer is repeated
//! with growing pauses, until it is answered, given up, or overtaken by a newer serial. What is lost all the same
//! is made good by the secondary's own refresh.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{RecordType, TSigner};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::message::{Special, soa, to_hickory, tsig};
use crate::wire::MAX_UDP;
use crate::zone::{Origin, SharedZone, Zone};

/// Changes within this time are one NOTIFY.
const TOGETHER: Duration = Duration::from_millis(100);
/// How long the first answer is awaited; doubled each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Messages per serial and zone.
const TRIES: u32 = 5;

/// Starts the tasks; they end when the set is dropped.
pub fn start(special: &Arc<Special>, shared: &Arc<SharedZone>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for secondary in special.secondaries.iter() {
        let key = secondary.key.as_ref().and_then(|name| special.keys.get(name)).cloned();
        let notifier = Notifier { address: secondary.address, key, shared: Arc::clone(shared) };
        tasks.spawn(notifier.run());
    }
    tasks
}

struct Notifier {
    address: SocketAddr,
    key: Option<TSigner>,
    shared: Arc<SharedZone>,
}

impl Notifier {
    async fn run(self) {
        let mut serials = self.shared.serials();
        // What is served already may be news as well.
        serials.mark_changed();
        while serials.changed().await.is_ok() {
            tokio::time::sleep(TOGETHER).await;
            serials.mark_unchanged();
            let zone = self.shared.load_full();
            let settings = zone.settings();
            let origins = std::iter::once(&settings.forward).chain(settings.reverse.iter().map(|(o, _)| o));
            for origin in origins {
                if let Err(error) = self.tell(&zone, origin, &serials).await {
                    let (secondary, name) = (self.address, origin.name());
                    tracing::warn!(%secondary, zone = %name, %error, "NOTIFY");
                }
            }
        }
    }

    /// Tells about one zone until it is acknowledged, or no longer the newest.
    async fn tell(&self, zone: &Zone, origin: &Origin, serials: &watch::Receiver<u32>) -> io::Result<()> {
        let any: SocketAddr = match self.address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(self.address).await?;
        let mut message = notification(zone, origin);
        if let Some(key) = &self.key {
            message.finalize(key, tsig::seconds(SystemTime::now())).map_err(io::Error::other)?;
        }
        let octets = message.to_vec().map_err(io::Error::other)?;
        let mut newer = serials.clone();
        let mut wait = FIRST_WAIT;
        for _ in 0..TRIES {
            // A refused packet (nobody listens there yet) is like a lost one.
            let sent = socket.send(&octets).await;
            // Acknowledged, or no longer news: a newer serial's NOTIFY comes next.
            let settled = async {
                tokio::select! {
                    () = acknowledged(&socket, message.id) => {}
                    _ = newer.changed() => {}
                }
            };
            if timeout(wait, settled).await.is_ok() {
                return Ok(());
            }
            tracing::debug!(secondary = %self.address, ?sent, "NOTIFY was not answered");
            wait *= 2;
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

fn notification(zone: &Zone, origin: &Origin) -> Message {
    let mut message = Message::query();
    message.metadata.op_code = OpCode::Notify;
    message.metadata.authoritative = true;
    message.add_query(Query::query(to_hickory(origin.name().as_bytes()), RecordType::SOA));
    message.add_answer(soa(zone, origin));
    message
}

/// Returns when the answer has come. What it says does not matter: the secondary has been told.
async fn acknowledged(socket: &UdpSocket, id: u16) {
    let mut buffer = [0; MAX_UDP];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(length) => {
                let message = Message::from_vec(buffer.get(..length).unwrap_or_default());
                if message.is_ok_and(|m| m.id == id && m.message_type == MessageType::Response) {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "NOTIFY");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
