//! The guest's serial console: to a bounded log, and to whoever is connected.
//!
//! Lives as long as the supervisor; each VMM's end of the serial line is [`Console::relay`]ed in turn. The socket
//! `console.sock` in the VM's directory takes a few clients at a time; all see what the guest writes, and what any of
//! them types goes to the guest. A client that does not read loses output, never anybody else's.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio::task::JoinHandle;

use crate::vm::layout::{CONSOLE_SOCKET, VmDir};
use crate::vm::socket;

/// Clients at a time.
const MAX_CLIENTS: usize = 8;
/// Chunks a client may be behind before it loses some.
const BACKLOG: usize = 256;
/// Largest chunk in bytes.
const CHUNK: usize = 4096;
/// A log file that is longer is put aside, replacing the one put aside before.
const LOG_BYTES: u64 = 1 << 20;

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub(crate) struct ConsoleError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The console of one VM.
#[derive(Debug)]
pub(super) struct Console {
    input: mpsc::Receiver<Vec<u8>>,
    output: broadcast::Sender<Arc<[u8]>>,
    log: BoundedLog,
    accepting: JoinHandle<()>,
}

impl Console {
    /// Opens socket and log in the VM's directory. To be called inside a Tokio runtime.
    pub(super) fn open(directory: &VmDir) -> Result<Self, ConsoleError> {
        let failed = |source| ConsoleError { operation: "listen on", path: directory.console(), source };
        let listener = socket::listen(directory.path(), CONSOLE_SOCKET).map_err(failed)?;
        let (to_guest, input) = mpsc::channel(16);
        let (output, _) = broadcast::channel(BACKLOG);
        let accepting = tokio::spawn(accept(listener, to_guest, output.clone()));
        let log = BoundedLog::open(directory.console_log())?;
        Ok(Self { input, output, log, accepting })
    }

    /// Carries bytes between one VMM's serial line and the clients until the VMM closes it.
    pub(super) async fn relay(&mut self, serial: UnixStream) {
        // What was typed while no guest ran is for no guest.
        while self.input.try_recv().is_ok() {}
        let (mut from_guest, mut to_guest) = serial.into_split();
        let mut buffer = [0; CHUNK];
        loop {
            tokio::select! {
                read = from_guest.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(length) => self.guest_wrote(buffer.get(..length).unwrap_or_default()),
                },
                Some(typed) = self.input.recv() => {
                    if to_guest.write_all(&typed).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn guest_wrote(&mut self, bytes: &[u8]) {
        self.log.append(bytes);
        // Nobody listening is fine.
        let _ = self.output.send(bytes.into());
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: UnixListener,
    to_guest: mpsc::Sender<Vec<u8>>,
    output: broadcast::Sender<Arc<[u8]>>,
) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                let serving = serve(client, to_guest.clone(), output.subscribe());
                tokio::spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("console: cannot accept: {error}");
                return;
            }
        }
    }
}

/// Serves one client until it goes.
async fn serve(
    client: UnixStream,
    to_guest: mpsc::Sender<Vec<u8>>,
    mut output: broadcast::Receiver<Arc<[u8]>>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let reading = async {
        let mut buffer = [0; CHUNK];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            if to_guest.send(buffer.get(..length).unwrap_or_default().to_vec()).await.is_err() {
                return;
            }
        }
    };
    let writing = async {
        loop {
            match output.recv().await {
                Ok(bytes) if to_client.write_all(&bytes).await.is_err() => return,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    };
    tokio::select! { () = reading => {}, () = writing => {} }
}

/// A log of at most two files of [`LOG_BYTES`].
#[derive(Debug)]
struct BoundedLog {
    path: PathBuf,
    file: File,
    length: u64,
}

impl BoundedLog {
    fn open(path: PathBuf) -> Result<Self, ConsoleError> {
        match File::create(&path) {
            Ok(file) => Ok(Self { path, file, length: 0 }),
            Err(source) => Err(ConsoleError { operation: "create", path, source }),
        }
    }

    /// A log that cannot be written (a full disk) must not stop the guest.
    fn append(&mut self, bytes: &[u8]) {
        if self.length >= LOG_BYTES {
            let aside = fs::rename(&self.path, self.path.with_extension("log.old"));
            if let Ok(file) = aside.and_then(|()| File::create(&self.path)) {
                (self.file, self.length) = (file, 0);
            }
        }
        if self.length < LOG_BYTES && self.file.write_all(bytes).is_ok() {
            self.length += bytes.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::layout::{Layout, VmId};

    fn play<F: Future>(scene: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(scene)
    }

    /// A VM directory whose console socket's path is longer than a socket address.
    fn directory() -> (tempfile::TempDir, VmDir) {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout { run: root.path().join("a".repeat(100)), state: root.path().to_owned() };
        let directory = layout.vm_dir(&VmId::new("ns", "vm").unwrap());
        fs::create_dir_all(directory.path()).unwrap();
        (root, directory)
    }

    async fn connect(directory: &VmDir) -> UnixStream {
        socket::connect(directory.path(), CONSOLE_SOCKET).await.unwrap().unwrap()
    }

    #[test]
    fn clients_see_the_guest_and_reach_it_across_its_restarts() {
        let (_root, directory) = directory();
        play(async {
            let mut console = Console::open(&directory).unwrap();
            let mut client = connect(&directory).await;
            for _start in 0..2 {
                let (ours, theirs) = UnixStream::pair().unwrap();
                let guest = async {
                    let (mut from_host, mut to_host) = theirs.into_split();
                    client.write_all(b"ping").await.unwrap();
                    let mut typed = [0; 4];
                    from_host.read_exact(&mut typed).await.unwrap();
                    assert_eq!(&typed, b"ping");
                    to_host.write_all(b"pong").await.unwrap();
                    let mut seen = [0; 4];
                    client.read_exact(&mut seen).await.unwrap();
                    assert_eq!(&seen, b"pong");
                };
                tokio::join!(console.relay(ours), guest);
            }
        });
        assert_eq!(fs::read_to_string(directory.console_log()).unwrap(), "pongpong");
    }

    #[test]
    fn the_log_is_bounded() {
        let (_root, directory) = directory();
        let mut log = BoundedLog::open(directory.console_log()).unwrap();
        let chunk = [b'x'; CHUNK];
        for _ in 0..(5 * LOG_BYTES / CHUNK as u64) {
            log.append(&chunk);
        }
        let sizes: u64 = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(sizes <= 2 * (LOG_BYTES + CHUNK as u64), "{sizes}");
    }
}
