//! Asking a running daemon.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::message::{Answer, Command, Done, ErrorCode, Outcome, Request, VERSION};

/// How long an answer may take: a link may have to wait for its worker, and its NIC's driver.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer, in bytes: thousands of links.
const MAX_ANSWER: u64 = 64 << 20;

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The daemon is not there.
    #[error("cannot reach the daemon at {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the daemon broke")]
    Io(#[from] io::Error),
    /// What came is no answer.
    #[error("the daemon's answer cannot be read")]
    Answer(#[from] serde_json::Error),
    /// Another version of the protocol.
    #[error("the daemon answers in version {0}; {VERSION} is known")]
    Version(u32),
    /// The daemon said no.
    #[error("{message}")]
    Refused {
        /// Which kind of reason.
        code: ErrorCode,
        /// The reason.
        message: String,
    },
}

impl ClientError {
    /// The daemon's kind of reason, if it was the daemon that said no.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// Asks the daemon at `socket`; returns what it did, and what follows that on the connection.
pub fn ask(socket: &Path, command: Command) -> Result<(Done, BufReader<UnixStream>), ClientError> {
    let connect = |source| ClientError::Connect { socket: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(connect)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(&Request { version: VERSION, command })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reader = BufReader::new(stream);
    let mut answer = Vec::new();
    reader.by_ref().take(MAX_ANSWER).read_until(b'\n', &mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    // The version first: of an unknown one, nothing else is known.
    let any: AnyAnswer = serde_json::from_slice(&answer)?;
    if any.version != VERSION {
        return Err(ClientError::Version(any.version));
    }
    let Answer { outcome, .. } = serde_json::from_slice(&answer)?;
    match outcome {
        Outcome::Done(done) => Ok((done, reader)),
        Outcome::Error { code, message } => Err(ClientError::Refused { code, message }),
    }
}

#[derive(serde::Deserialize)]
struct AnyAnswer {
    version: u32,
}
