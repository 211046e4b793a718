//! Listening on a Unix socket: taken over from the dead, never from the living, and removed at the end.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// How long a connection waits that cannot be accepted, for want of descriptors most likely.
pub(crate) const WANT: Duration = Duration::from_millis(100);

/// A socket could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// There is something else at the path.
    #[error("{0} exists and is no socket")]
    NoSocket(PathBuf),
    /// Another process listens there.
    #[error("another process listens on {0}")]
    InUse(PathBuf),
    /// The kernel refused.
    #[error("{operation} failed for {socket}")]
    Io {
        /// The call.
        operation: &'static str,
        /// The socket's path.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl SocketError {
    /// For `map_err`, where a call on `socket` failed.
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str, socket: &Path) -> impl FnOnce(E) -> Self {
        let socket = socket.to_owned();
        move |error| Self::Io { operation, socket, source: error.into() }
    }
}

/// A listening socket, non-blocking, removed from the file system when dropped.
#[derive(Debug)]
pub struct Listener {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    removed: AtomicBool,
}

/// Connects, or fails at once: whoever listens may accept nobody, and would be waited for without end.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket.into())
}

impl Listener {
    /// Listens, in place of a socket that nobody listens on any more.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        if let Ok(metadata) = std::fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(SocketError::NoSocket(path.to_owned()));
            }
            match connect(path) {
                Ok(_) => return Err(SocketError::InUse(path.to_owned())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(SocketError::InUse(path.to_owned()));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(SocketError::io("remove", path))?;
                }
                Err(error) => return Err(SocketError::io("connect", path)(error)),
            }
        }
        let listener = UnixListener::bind(path).map_err(SocketError::io("bind", path))?;
        listener.set_nonblocking(true).map_err(SocketError::io("set non-blocking", path))?;
        Ok(Self { listener, path: path.to_owned(), removed: AtomicBool::new(false) })
    }

    /// Removes its file, once: from then on another may listen there.
    pub(crate) fn remove(&self) {
        if !self.removed.swap(true, Ordering::AcqRel)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(%error, socket = %self.path.display(), "removing a socket");
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A thread that accepts connections until dropped.
#[derive(Debug)]
pub(crate) struct Acceptor {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    /// Hands each connection to `serve`, which must not take long.
    pub(crate) fn start(
        name: &str,
        listener: Listener,
        serve: impl Fn(UnixStream) + Send + 'static,
    ) -> Result<Self, SocketError> {
        let path = listener.path.clone();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(SocketError::io("eventfd", &path))?;
        let stopped = stop.try_clone().map_err(SocketError::io("dup", &path))?;
        let run = move || {
            while await_connection(&listener, &stopped) {
                match listener.listener.accept() {
                    Ok((stream, _)) => serve(stream),
                    Err(error) => {
                        tracing::debug!(%error, "accept");
                        if wait_for(&stopped, WANT) {
                            break;
                        }
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread = thread.map_err(SocketError::io("start a thread", &path))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

/// Waits that long, or for an eventfd; says whether it was that.
pub(crate) fn wait_for(event: &OwnedFd, time: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(event.as_fd(), PollFlags::IN)];
    // A time of more than a year is none of ours. If a signal interrupts it, it waits less.
    let time = Timespec::try_from(time).unwrap_or_default();
    poll(&mut fds, Some(&time)).is_ok_and(|ready| ready > 0)
}

/// Waits for a connection; false when it is time to stop.
fn await_connection(listener: &Listener, stop: &OwnedFd) -> bool {
    let mut fds = [
        PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(listener.listener.as_fd(), PollFlags::IN),
    ];
    if let Err(error) = poll(&mut fds, None) {
        tracing::debug!(%error, "poll was interrupted");
        return true;
    }
    let [stop, _] = &fds;
    stop.revents().is_empty()
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&self.stop, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "cannot stop accepting");
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("an accepting thread has panicked");
        }
    }
}
