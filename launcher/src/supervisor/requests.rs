//! Requests of people to a running VM's supervisor: one line of JSON on a socket in the VM's directory, one line back.
//!
//! The directory is its owner's alone, so is the socket. Lives as long as the supervisor; what to do about a request is
//! [`hotplug`](super::hotplug)'s business.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::vm::layout::{REQUEST_SOCKET, VmDir};
use crate::vm::socket;

/// Clients at a time; more wait.
const MAX_CLIENTS: usize = 8;
/// The longest line in bytes.
pub(crate) const MAX_LINE: u64 = 64 << 10;
/// How long a client may take to say what it wants, or to hear the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Give the guest a PCI function for this interface.
    Plug {
        /// The interface's name in the manifest.
        interface: String,
    },
    /// Take it back.
    Unplug {
        /// The interface's name in the manifest.
        interface: String,
    },
}

/// What came of it, in words for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Answer {
    /// It is so now.
    Done {
        /// What was done.
        message: String,
    },
    /// It is not so.
    Failed {
        /// Why.
        message: String,
    },
}

/// A request, and where its answer goes. Dropping it is an answer too: the VM ended.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// The requests of one VM.
#[derive(Debug)]
pub(super) struct Requests {
    received: mpsc::Receiver<Asked>,
    accepting: JoinHandle<()>,
}

impl Requests {
    /// Opens the socket in the VM's directory. To be called inside a Tokio runtime.
    pub(super) fn open(directory: &VmDir) -> io::Result<Self> {
        let listener = socket::listen(directory.path(), REQUEST_SOCKET)?;
        let (sender, received) = mpsc::channel(MAX_CLIENTS);
        Ok(Self { received, accepting: tokio::spawn(accept(listener, sender)) })
    }

    /// The next one. Never, if the socket has failed.
    pub(super) async fn next(&mut self) -> Asked {
        match self.received.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: UnixListener, requests: mpsc::Sender<Asked>) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                let requests = requests.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(client, &requests).await {
                        tracing::debug!("requests: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("requests: cannot accept: {error}");
                return;
            }
        }
    }
}

async fn serve(client: UnixStream, requests: &mpsc::Sender<Asked>) -> io::Result<()> {
    let (from_client, mut to_client) = client.into_split();
    let mut line = String::new();
    timeout(PATIENCE, BufReader::new(from_client.take(MAX_LINE)).read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => {
            let (answer, answered) = oneshot::channel();
            let ended = || Answer::Failed { message: "the VM ends".to_owned() };
            match requests.send(Asked { request, answer }).await {
                Ok(()) => answered.await.unwrap_or_else(|_dropped| ended()),
                Err(_ended) => ended(),
            }
        }
        Err(error) => Answer::Failed { message: format!("not a request: {error}") },
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    timeout(PATIENCE, to_client.write_all(&line)).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::layout::{Layout, VmId};

    /// What the supervisor answers a client that writes `line`.
    async fn ask(directory: &VmDir, line: &str) -> Answer {
        let mut client = socket::connect(directory.path(), REQUEST_SOCKET).await.unwrap().unwrap();
        client.write_all(line.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    #[test]
    fn a_request_is_answered_and_what_is_none_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout { run: root.path().to_owned(), state: root.path().to_owned() };
        let directory = layout.vm_dir(&VmId::new("ns", "vm").unwrap());
        std::fs::create_dir_all(directory.path()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut requests = Requests::open(&directory).unwrap();
            let refused = ask(&directory, "{\"request\":\"plug\"}\n").await;
            assert!(
                matches!(&refused, Answer::Failed { message } if message.contains("interface")),
                "{refused:?}"
            );
            let supervisor = async {
                let Asked { request, answer } = requests.next().await;
                assert_eq!(request, Request::Unplug { interface: "fast".to_owned() });
                answer.send(Answer::Done { message: "gone".to_owned() }).unwrap();
                drop(requests.next().await);
            };
            let client = async {
                let line = "{\"request\":\"unplug\",\"interface\":\"fast\"}\n";
                assert_eq!(ask(&directory, line).await, Answer::Done { message: "gone".to_owned() });
                assert_eq!(ask(&directory, line).await, Answer::Failed { message: "the VM ends".to_owned() });
            };
            tokio::join!(supervisor, client);
        });
    }
}
