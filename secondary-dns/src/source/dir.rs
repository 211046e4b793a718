//! `--source dir:PATH`: the VMI status directory (`vm_api::status_dir`), watched with inotify(7).
//!
//! One thread: it waits for events, reads the files they name and publishes. Watches are set before a directory is
//! read, so nothing is missed in between. The directory may come and go: while it is missing, its nearest existing
//! ancestor is watched. When events were lost (queue overflow) or the watched paths themselves moved, everything is
//! read again. A file that cannot be parsed keeps what it said before.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use vm_api::status_dir::read_file;

use super::State;
use crate::name::Name;
use crate::zone::{Policy, VmRecords, ZoneWriter, serial, vm_name};

/// How old a serial gets: see [`serial`].
const RENEWAL: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a directory cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// inotify is out of instances or watches.
    #[error("{operation} for {}", path.display())]
    Inotify {
        /// The system call.
        operation: &'static str,
        /// What was to be watched.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// A directory could not be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread did not start.
    #[error("start the directory's thread")]
    Thread(#[source] io::Error),
}

/// A running source; dropping it ends its thread.
pub struct DirSource {
    stop: Option<UnixStream>,
    thread: Option<thread::JoinHandle<()>>,
}

impl DirSource {
    /// Reads `root` once, for `dump`.
    pub fn read_once(root: PathBuf, policy: Policy, writer: ZoneWriter) -> Result<(), DirError> {
        let watches = Watches::new(&root)?;
        Follower { policy, writer, state: Arc::default(), watches, root, renewal: RENEWAL }.read_all()
    }

    /// Reads `root` (which need not exist) into the zone, then follows its changes on a thread of its own.
    pub fn start(
        root: PathBuf,
        policy: Policy,
        writer: ZoneWriter,
        state: Arc<State>,
    ) -> Result<Self, DirError> {
        let (stop, stopped) = UnixStream::pair().map_err(DirError::Thread)?;
        let watches = Watches::new(&root)?;
        let mut follower = Follower { policy, writer, state, watches, root, renewal: RENEWAL };
        follower.read_all()?;
        let thread = thread::Builder::new()
            .name("source-dir".to_owned())
            .spawn(move || follower.run(&stopped))
            .map_err(DirError::Thread)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for DirSource {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the directory's thread panicked");
        }
    }
}

/// What an inotify watch looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Watched {
    /// The root, or the ancestor that stands for it while it is missing.
    Root,
    /// The directory of a namespace.
    Namespace(String),
}

/// One inotify instance; made anew when everything is read again.
struct Watches {
    inotify: Inotify,
    watched: HashMap<WatchDescriptor, Watched>,
}

impl Watches {
    fn new(root: &Path) -> Result<Self, DirError> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let inotify = Inotify::init(flags).map_err(inotify_error("inotify_init1", root))?;
        Ok(Self { inotify, watched: HashMap::new() })
    }

    /// Watches the root, or its nearest ancestor there is; true if it was the root itself.
    fn watch_root(&mut self, root: &Path) -> Result<bool, DirError> {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        for path in root.ancestors() {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            match self.inotify.add_watch(path, flags) {
                Ok(descriptor) => {
                    self.watched.insert(descriptor, Watched::Root);
                    return Ok(path == root);
                }
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error) => return Err(inotify_error("inotify_add_watch", path)(error)),
            }
        }
        Err(inotify_error("inotify_add_watch", root)(Errno::ENOENT))
    }

    /// Watches a namespace's directory; false if it is gone or none.
    fn watch_namespace(&mut self, path: &Path, namespace: &str) -> Result<bool, DirError> {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        match self.inotify.add_watch(path, flags) {
            Ok(descriptor) => {
                self.watched.insert(descriptor, Watched::Namespace(namespace.to_owned()));
                Ok(true)
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(false),
            Err(error) => Err(inotify_error("inotify_add_watch", path)(error)),
        }
    }
}

struct Follower {
    root: PathBuf,
    policy: Policy,
    writer: ZoneWriter,
    state: Arc<State>,
    watches: Watches,
    /// After how long without a change the serial is renewed.
    renewal: Duration,
}

impl Follower {
    fn run(mut self, stopped: &UnixStream) {
        let renewal = PollTimeout::try_from(self.renewal).unwrap_or(PollTimeout::MAX);
        loop {
            let mut waiting = [
                PollFd::new(self.watches.inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut waiting, renewal) {
                Ok(0) => self.writer.publish(serial::follow(self.writer.serial())),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => {
                    self.state.broken(&format!("poll: {error}"));
                    return;
                }
            }
            if waiting.last().and_then(PollFd::revents).is_some_and(|events| !events.is_empty()) {
                return;
            }
            if let Err(error) = self.follow() {
                self.state.broken(&telemetry::chain(&error).to_string());
                return;
            }
        }
    }

    /// Applies the events that are waiting.
    fn follow(&mut self) -> Result<(), DirError> {
        let events = match self.watches.inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(error) => return Err(inotify_error("read inotify events", &self.root)(error)),
        };
        for event in &events {
            if !self.apply(event)? {
                tracing::debug!(?event, "reading everything again");
                self.watches = Watches::new(&self.root)?;
                return self.read_all();
            }
        }
        self.publish();
        Ok(())
    }

    /// Applies one event; false if everything must be read again.
    fn apply(&mut self, event: &InotifyEvent) -> Result<bool, DirError> {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return Ok(false);
        }
        let name = event.name.as_deref().and_then(OsStr::to_str);
        match self.watches.watched.get(&event.wd).cloned() {
            // Its directory was deleted: the event on the root says what follows from that.
            Some(Watched::Namespace(_)) if event.mask.contains(AddWatchFlags::IN_IGNORED) => {
                self.watches.watched.remove(&event.wd);
            }
            Some(Watched::Namespace(namespace)) => {
                if let Some(vm) = name.and_then(vm_of_file) {
                    self.read_vm(&namespace, vm);
                }
            }
            Some(Watched::Root) => {
                let appeared = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
                let Some(namespace) = name.filter(|_| event.mask.intersects(appeared)) else {
                    return Ok(false);
                };
                // An ancestor's child is no namespace: only reading again finds out how far the path goes now.
                if !self.root.join(namespace).exists() {
                    return Ok(false);
                }
                self.read_namespace(namespace)?;
            }
            None => {}
        }
        Ok(true)
    }

    /// Reads everything, and drops what is no longer there.
    fn read_all(&mut self) -> Result<(), DirError> {
        let mut present = HashSet::new();
        if self.watches.watch_root(&self.root)? {
            for namespace in file_names(&self.root)? {
                present.extend(self.read_namespace(&namespace)?);
            }
        } else {
            tracing::warn!(path = %self.root.display(), "the status directory does not exist yet");
        }
        self.writer.retain(&present);
        if !self.state.is_synced() {
            self.writer.publish(serial::follow(self.writer.serial()));
            self.state.connected();
            self.state.synced();
        }
        self.publish();
        Ok(())
    }

    /// Watches and reads one namespace; returns the VMs in it.
    fn read_namespace(&mut self, namespace: &str) -> Result<HashSet<Name>, DirError> {
        let path = self.root.join(namespace);
        let mut present = HashSet::new();
        if self.watches.watch_namespace(&path, namespace)? {
            for file in file_names(&path)? {
                if let Some(vm) = vm_of_file(&file) {
                    present.extend(self.read_vm(namespace, vm));
                }
            }
        }
        Ok(present)
    }

    /// Reads one VM; returns its name if its file is there and stands for it.
    fn read_vm(&mut self, namespace: &str, vm: &str) -> Option<Name> {
        let path = self.root.join(namespace).join(format!("{vm}.json"));
        let name = match vm_name(namespace, vm) {
            Ok(name) => name,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no name for this VM");
                return None;
            }
        };
        let records = match read_file(&path) {
            Ok(None) => {
                self.writer.set(&name, None);
                return None;
            }
            // The file's place decides whose it is: what is inside cannot claim another VM's name.
            Ok(Some(vmi)) if vmi.metadata.namespace != namespace || vmi.metadata.name != vm => {
                tracing::warn!(path = %path.display(), "this file holds another VM's status");
                None
            }
            Ok(Some(vmi)) => VmRecords::of(&vmi, &self.policy).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "no name for this VM");
                None
            }),
            Err(error) => {
                tracing::warn!(path = %path.display(), error = %telemetry::chain(&error), "kept as it was");
                return Some(name);
            }
        };
        self.writer.set(&name, records);
        Some(name)
    }

    fn publish(&mut self) {
        if self.writer.has_changes() {
            self.writer.publish(serial::follow(self.writer.serial()));
        }
    }
}

/// The VM whose status a file holds; hidden files are half-written ones.
fn vm_of_file(file: &str) -> Option<&str> {
    file.strip_suffix(".json").filter(|vm| !vm.starts_with('.'))
}

/// The names in a directory; none if it has just gone.
fn file_names(path: &Path) -> Result<Vec<String>, DirError> {
    let read = |source| DirError::Read { path: path.to_owned(), source };
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(read(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(read)?.file_name().into_string());
    }
    Ok(names)
}

fn inotify_error(operation: &'static str, path: &Path) -> impl FnOnce(Errno) -> DirError {
    let path = path.to_owned();
    move |source| DirError::Inotify { operation, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::{Settings, SharedZone, Zone};

    #[test]
    fn the_serial_is_renewed_though_nothing_changes() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings::new(&"example.com".parse().unwrap(), &[], &[], 30, 5).unwrap();
        let shared = Arc::new(SharedZone::new(Zone::new(Arc::new(settings), 1)));
        let policy = Policy { trusted: Vec::new(), only_ready: false, ttl: 30, room: 200 };
        let follower = Follower {
            policy,
            writer: ZoneWriter::new(Arc::clone(&shared)),
            state: Arc::default(),
            watches: Watches::new(folder.path()).unwrap(),
            root: folder.path().to_owned(),
            renewal: Duration::from_millis(5),
        };
        let mut serials = shared.serials();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || follower.run(&stopped));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for _ in 0..3 {
            let last = *serials.borrow_and_update();
            runtime.block_on(serials.changed()).unwrap();
            assert!(serial::is_newer(*serials.borrow(), last));
        }
        drop(stop);
        thread.join().unwrap();
    }
}
