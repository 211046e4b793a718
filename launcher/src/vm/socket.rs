//! Unix sockets in a VM's directory, opened by way of the directory's descriptor: the whole path may be longer than a
//! socket address can be.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use tokio::net::{UnixListener, UnixStream};

/// Listens on `name` in `directory`; what a dead listener left there is replaced.
pub(crate) fn listen(directory: &Path, name: &str) -> io::Result<UnixListener> {
    let directory = File::open(directory)?;
    let path = short(&directory, name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Connects to `name` in `directory`; none if nobody listens there.
pub(crate) async fn connect(directory: &Path, name: &str) -> io::Result<Option<UnixStream>> {
    let connected = match File::open(directory) {
        Ok(directory) => UnixStream::connect(short(&directory, name)).await,
        Err(error) => Err(error),
    };
    match connected {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn short(directory: &File, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())
}
