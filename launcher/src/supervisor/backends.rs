//! The vhost-user backends of a VM's NICs: connections to them for the VMM, and what they saw of the guest's addresses.
//!
//! The VMM cannot connect to anything. So each connection is made here and handed over, at the start and whenever the VMM
//! says that it has lost one. A backend that dies at once again, or makes no sense, is tried ever more rarely, and logged
//! once for as long as it has the same to say; a VMM that says what is not so gets no more than that.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use net_types::Mac;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::status::Publisher;
use crate::control::{BACKEND_PATIENCE, Event};
use crate::vm::record::{Record, ToGuest};

/// The first and the longest wait before a connection is tried again.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A connection that lasted so long was a good one: the next wait is the first again.
const GOOD: Duration = Duration::from_secs(10);
/// How often a backend is asked for addresses.
const ASK_PERIOD: Duration = Duration::from_secs(3);
/// An address that was not seen for so long, while another of its kind was, is used no more.
const STALE: u64 = 600;
/// The longest answer that is read.
const MAX_ANSWER: u64 = 1 << 20;
/// Most addresses that are taken over; a daemon knows no more of a guest.
const MOST: usize = 32;

/// A connection to the backend at `socket`, with the time limits that the VMM relies on. Never waits: a backend that
/// does not accept is one that is not there.
pub(super) fn connect(socket: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(socket)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connection = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&connection, &address)?;
    rustix::io::ioctl_fionbio(&connection, false)?;
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&connection, direction, Some(BACKEND_PATIENCE))?;
    }
    Ok(connection)
}

/// The backends of one run of the guest.
#[derive(Debug)]
pub(super) struct Backends {
    /// By the NIC's place in the VMM's configuration.
    nics: BTreeMap<usize, Backend>,
    attempts: JoinSet<(usize, OwnedFd)>,
}

#[derive(Debug)]
struct Backend {
    /// The NIC's place among the VM's interfaces.
    interface: usize,
    name: String,
    socket: PathBuf,
    wait: Duration,
    /// Since when there is a connection that works.
    since: Option<Instant>,
    /// Whether a connection is being made.
    trying: bool,
    /// Why there was no backend, as it was logged last.
    missed: String,
}

impl Backends {
    /// Those of `record`; the NICs in `unconnected` have no connection yet, and so no link.
    pub(super) fn new(record: &Record, unconnected: &[usize], status: &mut Publisher) -> Self {
        let nics = record.plan.nics.iter().zip(&record.nics).enumerate();
        // The VMM has no virtio NIC for what is a function of the hardware.
        let virtio = nics
            .filter(|(_, (_, wired))| !matches!(wired.to_guest, ToGuest::Function(_) | ToGuest::Unplugged));
        let nics = virtio.enumerate().filter_map(|(place, (interface, (nic, wired)))| {
            let ToGuest::VhostUser { socket, .. } = &wired.to_guest else { return None };
            Some((place, Backend::new(interface, &nic.name, socket)))
        });
        let mut backends = Self { nics: nics.collect(), attempts: JoinSet::new() };
        for nic in unconnected {
            if let Some(interface) = backends.lost(*nic, "nobody listens at its socket") {
                status.link(interface, false);
            }
        }
        backends
    }

    /// Does what an event asks for, and publishes the link's state. False if the event is about something else.
    pub(super) fn follow(&mut self, event: &Event, status: &mut Publisher) -> bool {
        let (interface, up) = match event {
            Event::BackendConnected { nic } => (self.connected(*nic), true),
            Event::BackendLost { nic, reason } => (self.lost(*nic, reason), false),
            _ => return false,
        };
        if let Some(interface) = interface {
            status.link(interface, up);
        }
        true
    }

    /// The VMM's NIC works. Returns its interface.
    fn connected(&mut self, nic: usize) -> Option<usize> {
        // It cannot while there is no connection.
        let backend = self.nics.get_mut(&nic).filter(|backend| !backend.trying)?;
        if backend.since.is_none() {
            tracing::info!(interface = backend.name, "the backend serves the guest");
            backend.since = Some(Instant::now());
        }
        Some(backend.interface)
    }

    /// The VMM's NIC has lost its backend: a connection will be made. Returns its interface.
    fn lost(&mut self, nic: usize, reason: &str) -> Option<usize> {
        let backend = self.nics.get_mut(&nic)?;
        let was_good = backend.since.take().is_some_and(|since| since.elapsed() >= GOOD);
        if was_good {
            backend.wait = FIRST_WAIT;
        }
        // A VMM may say it any number of times, but not have it logged: a connection is lost once.
        if !backend.trying && (was_good || backend.missed != reason) {
            let socket = backend.socket.display();
            tracing::warn!(interface = backend.name, %socket, "no backend: {}", reason.escape_debug());
            reason.clone_into(&mut backend.missed);
        }
        let interface = backend.interface;
        self.attempt(nic);
        Some(interface)
    }

    /// Makes a connection in a while, unless that is under way.
    fn attempt(&mut self, nic: usize) {
        let Some(backend) = self.nics.get_mut(&nic).filter(|backend| !backend.trying) else { return };
        backend.trying = true;
        let (socket, mut wait) = (backend.socket.clone(), backend.wait);
        backend.wait = longer(wait);
        self.attempts.spawn(async move {
            loop {
                sleep(wait).await;
                match connect(&socket) {
                    Ok(connection) => return (nic, connection),
                    Err(error) => tracing::debug!(socket = %socket.display(), "no backend: {error}"),
                }
                wait = longer(wait);
            }
        });
    }

    /// The next connection, and whose it is.
    pub(super) async fn next(&mut self) -> (usize, OwnedFd) {
        loop {
            match self.attempts.join_next().await {
                Some(Ok((nic, connection))) => {
                    if let Some(backend) = self.nics.get_mut(&nic) {
                        backend.trying = false;
                    }
                    return (nic, connection);
                }
                Some(Err(error)) => tracing::error!("connecting to a backend: {error}"),
                None => std::future::pending().await,
            }
        }
    }
}

impl Backend {
    /// That of the VM's interface number `interface`, listening at `socket`. There is no connection yet.
    fn new(interface: usize, name: &str, socket: &Path) -> Self {
        Self {
            interface,
            name: name.to_owned(),
            socket: socket.to_owned(),
            wait: FIRST_WAIT,
            since: None,
            trying: false,
            missed: String::new(),
        }
    }
}

fn longer(wait: Duration) -> Duration {
    (wait * 2).min(LONGEST_WAIT)
}

/// What is asked of a backend's daemon about one guest, again and again (docs/vhost-net-backend.md, `ctl list`).
#[derive(Debug)]
pub(super) struct Question {
    control: PathBuf,
    /// The link, which the socket is named after.
    link: String,
    guest: Mac,
    /// What was seen before is another guest's.
    since: Instant,
}

#[derive(Deserialize)]
struct Answer {
    done: Done,
}

#[derive(Deserialize)]
struct Done {
    links: Vec<Link>,
}

#[derive(Deserialize)]
struct Link {
    name: String,
    ends: Vec<End>,
}

#[derive(Deserialize)]
struct End {
    #[serde(default)]
    addresses: Vec<Seen>,
}

#[derive(Debug, Clone, Deserialize)]
struct Seen {
    address: IpAddr,
    mac: Mac,
    /// Seconds ago.
    age: u64,
}

impl Question {
    /// About the guest that is about to be started.
    pub(super) fn new(socket: &Path, control: &Path, guest: Mac) -> Self {
        let link = socket.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self { control: control.to_owned(), link, guest, since: Instant::now() }
    }

    /// Asks for ever, and sends the addresses with `interface` whenever they have changed.
    pub(super) async fn repeat(self, interface: usize, changes: mpsc::Sender<(usize, Vec<IpAddr>)>) {
        let mut known = Vec::new();
        loop {
            sleep(ASK_PERIOD).await;
            match timeout(BACKEND_PATIENCE, self.ask()).await {
                Ok(Ok(seen)) => {
                    let now = current(seen, self.guest, self.since.elapsed().as_secs());
                    if now != known {
                        known.clone_from(&now);
                        if changes.send((interface, now)).await.is_err() {
                            return;
                        }
                    }
                }
                // While it is away, what was known stays.
                Ok(Err(error)) => tracing::debug!("no answer about addresses: {error}"),
                Err(_elapsed) => tracing::debug!("no answer about addresses in time"),
            }
        }
    }

    async fn ask(&self) -> io::Result<Vec<Seen>> {
        let mut stream = UnixStream::connect(&self.control).await?;
        let question = serde_json::json!({"version": 1, "command": "list", "name": self.link});
        stream.write_all(format!("{question}\n").as_bytes()).await?;
        let mut answer = Vec::new();
        BufReader::new(stream.take(MAX_ANSWER)).read_until(b'\n', &mut answer).await?;
        let Answer { done: Done { links } } = serde_json::from_slice(&answer)?;
        let ours = links.into_iter().find(|link| link.name == self.link);
        // The guest is the link's first end.
        Ok(ours.and_then(|link| link.ends.into_iter().next()).map(|end| end.addresses).unwrap_or_default())
    }
}

/// The addresses that this guest, which runs for `running` seconds, is still using: IPv4 first, link-local IPv6 last.
fn current(seen: Vec<Seen>, guest: Mac, running: u64) -> Vec<IpAddr> {
    let ours: Vec<_> = seen.into_iter().filter(|seen| seen.mac == guest && seen.age <= running).collect();
    let newest = |kind: u8| {
        ours.iter().filter(|seen| self::kind(seen.address) == kind).map(|seen| seen.age).min().unwrap_or(0)
    };
    let fresh = ours.iter().filter(|seen| seen.age < newest(kind(seen.address)).saturating_add(STALE));
    let mut addresses: Vec<_> = fresh.map(|seen| seen.address).collect();
    addresses.sort_by_key(|address| (kind(*address), *address));
    addresses.dedup();
    addresses.truncate(MOST);
    addresses
}

fn kind(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 0,
        IpAddr::V6(v6) if v6.is_unicast_link_local() => 2,
        IpAddr::V6(_) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_this_guest_still_uses_is_current() {
        let guest: Mac = "02:00:00:00:00:01".parse().unwrap();
        let other: Mac = "02:00:00:00:00:02".parse().unwrap();
        let seen = |text: &str, mac, age| Seen { address: text.parse().unwrap(), mac, age };
        let seen = vec![
            seen("fe80::1", guest, 900),
            seen("2001:db8::1", guest, 5),
            seen("192.0.2.7", guest, 700),
            seen("192.0.2.8", guest, 20),
            seen("192.0.2.9", guest, 400),
            seen("192.0.2.10", other, 1),
            seen("192.0.2.11", guest, 1001),
        ];
        let now: Vec<_> = current(seen, guest, 1000).iter().map(ToString::to_string).collect();
        assert_eq!(now, ["192.0.2.8", "192.0.2.9", "2001:db8::1", "fe80::1"]);
    }

    #[test]
    fn no_more_addresses_are_taken_over_than_a_daemon_knows() {
        let guest: Mac = "02:00:00:00:00:01".parse().unwrap();
        let seen = (0..1000).map(|number| Seen { address: IpAddr::V4(number.into()), mac: guest, age: 0 });
        assert_eq!(current(seen.collect(), guest, 1000).len(), MOST);
    }

    #[test]
    fn a_vmm_without_a_connection_is_not_believed_to_have_a_backend() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _inside = runtime.enter();
        let backend = Backend::new(7, "fast", Path::new("/nobody/listens/here"));
        let mut backends = Backends { nics: BTreeMap::from([(3, backend)]), attempts: JoinSet::new() };
        assert_eq!(backends.connected(3), Some(7));
        assert_eq!(backends.lost(3, "it died"), Some(7));
        assert_eq!(backends.connected(3), None, "none was made since");
        // Said again and again, it is neither logged nor does it make for more connections.
        for number in 0..100 {
            assert_eq!(backends.lost(3, &format!("reason {number}")), Some(7));
        }
        assert_eq!((backends.nics[&3].missed.as_str(), backends.attempts.len()), ("it died", 1));
        assert_eq!(backends.lost(4, "there is no such NIC"), None);
    }

    #[test]
    fn waits_grow_to_a_limit() {
        let waits: Vec<_> =
            std::iter::successors(Some(FIRST_WAIT), |wait| Some(longer(*wait))).take(8).collect();
        assert_eq!(waits[..3], [100, 200, 400].map(Duration::from_millis));
        assert_eq!(waits[6..], [LONGEST_WAIT; 2]);
    }
}
