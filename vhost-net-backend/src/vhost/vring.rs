//! What a VMM has said so far about one virtqueue, and its descriptors.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::ring::{QueueSize, RingAddresses};

/// A virtqueue as configured; it runs once everything is known and it is enabled.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) size: Option<QueueSize>,
    pub(super) addresses: Option<RingAddresses>,
    pub(super) base: u16,
    pub(super) kick: Option<Arc<File>>,
    pub(super) call: Option<File>,
    pub(super) enabled: bool,
    pub(super) running: bool,
}

/// A descriptor that should be an eventfd cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum EventError {
    /// It is something else.
    #[error("the descriptor is {0}, not an eventfd")]
    Kind(String),
    /// It could not be looked at.
    #[error("cannot look at the descriptor")]
    Io(#[from] io::Error),
}

/// Checks that a descriptor is an eventfd, and makes it non-blocking: signalling a guest must never wait.
///
/// Anything else (a pipe, a FUSE file) could block the worker, and with it other guests.
pub(super) fn eventfd(file: File) -> Result<File, EventError> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    if link.as_os_str() != "anon_inode:[eventfd]" {
        // Of a file, it is the path, which a VMM can choose.
        return Err(EventError::Kind(link.to_string_lossy().escape_debug().to_string()));
    }
    let flags = rustix::fs::fcntl_getfl(&file).map_err(io::Error::from)?;
    rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK).map_err(io::Error::from)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_eventfds_are_taken_and_they_never_block() {
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        let event = eventfd(event.into()).unwrap();
        assert!(rustix::fs::fcntl_getfl(&event).unwrap().contains(OFlags::NONBLOCK));
        let (reader, _writer) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(reader));
        assert!(matches!(eventfd(pipe), Err(EventError::Kind(_))));
        assert!(matches!(eventfd(tempfile::tempfile().unwrap()), Err(EventError::Kind(_))));
    }

    #[test]
    fn a_files_name_does_not_make_lines_of_its_own_in_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join("a\nERROR b\x1b[2J")).unwrap();
        let told = eventfd(file).unwrap_err().to_string();
        assert!(!told.contains(char::is_control) && told.contains("ERROR b"), "{told:?}");
    }
}
