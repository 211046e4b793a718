//! ttyS0: a 16550 whose wire is a stream socket.
//!
//! The guest writes into a bounded buffer, which the main thread empties into the socket; what does not fit is lost,
//! as on a wire that nobody reads. What arrives on the socket stays there until the UART's own buffer has room. So a
//! guest can neither block on its console nor make it grow.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The most bytes waiting for the socket.
const OUTPUT_LIMIT: usize = 64 * 1024;

/// The UART, shared by vCPU threads (registers) and main thread (socket).
#[derive(Debug)]
pub(crate) struct SerialPort {
    uart: Mutex<Serial<Line, RoomForInput, Output>>,
    socket: File,
    /// Wakes the main thread: there is output, or room for input.
    wake: Arc<EventFd>,
}

/// The interrupt line.
#[derive(Debug)]
struct Line(EventFd);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // A full counter means that an interrupt is on its way already.
        let _ = self.0.write(1);
        Ok(())
    }
}

/// Wakes the main thread when the guest has read all input.
#[derive(Debug)]
struct RoomForInput(Arc<EventFd>);

impl SerialEvents for RoomForInput {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        let _ = self.0.write(1);
    }
}

/// What the guest has written and the socket has not taken.
#[derive(Debug)]
struct Output {
    bytes: VecDeque<u8>,
    wake: Arc<EventFd>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = OUTPUT_LIMIT - self.bytes.len();
        if self.bytes.is_empty() {
            let _ = self.wake.write(1);
        }
        self.bytes.extend(bytes.iter().take(room));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SerialPort {
    /// A port on `socket`, which is made non-blocking, with `interrupt` as its line.
    pub(crate) fn new(socket: OwnedFd, interrupt: EventFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let output = Output { bytes: VecDeque::new(), wake: Arc::clone(&wake) };
        let uart = Serial::with_events(Line(interrupt), RoomForInput(Arc::clone(&wake)), output);
        Ok(Self { uart: Mutex::new(uart), socket: socket.into(), wake })
    }

    /// A guest reads register `offset` (0 to 7).
    pub(crate) fn read(&self, offset: u8) -> u8 {
        self.uart().read(offset)
    }

    /// A guest writes register `offset` (0 to 7).
    pub(crate) fn write(&self, offset: u8, value: u8) {
        // Neither line nor output can fail; only they could make this fail.
        let _ = self.uart().write(offset, value);
    }

    /// Wait on this for reading and writing, edge-triggered, then call [`SerialPort::transfer`].
    pub(crate) fn socket_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Wait on this for reading, then call [`SerialPort::transfer`].
    pub(crate) fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Moves what can be moved between UART and socket. A socket that failed loses output and gives no input.
    pub(crate) fn transfer(&self) {
        // Cleared before looking, so that nothing written meanwhile is missed.
        let _ = self.wake.read();
        let mut uart = self.uart();
        send(&self.socket, &mut uart.writer_mut().bytes);
        let mut buffer = [0; 64];
        let room = uart.fifo_capacity().min(buffer.len());
        if room > 0
            && let Ok(length @ 1..) = (&self.socket).read(&mut buffer[..room])
        {
            let _ = uart.enqueue_raw_bytes(&buffer[..length]);
        }
    }

    fn uart(&self) -> std::sync::MutexGuard<'_, Serial<Line, RoomForInput, Output>> {
        // The UART has no state that a panic elsewhere could have left half-changed.
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(mut socket: &File, bytes: &mut VecDeque<u8>) {
    while !bytes.is_empty() {
        match socket.write(bytes.as_slices().0) {
            Ok(sent) => drop(bytes.drain(..sent)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_gone) => bytes.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const DATA: u8 = 0;

    fn port() -> (SerialPort, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (SerialPort::new(theirs.into(), EventFd::new(EFD_NONBLOCK).unwrap()).unwrap(), ours)
    }

    #[test]
    fn what_the_guest_writes_comes_out_in_order() {
        let (port, mut outside) = port();
        b"hello".iter().for_each(|byte| port.write(DATA, *byte));
        port.transfer();
        let mut heard = [0; 5];
        outside.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }

    #[test]
    fn a_guest_that_nobody_listens_to_neither_blocks_nor_grows() {
        let (port, _outside) = port();
        for _ in 0..1_000_000 {
            port.write(DATA, b'x');
        }
        port.transfer();
        for _ in 0..1_000_000 {
            port.write(DATA, b'x');
        }
        port.transfer();
        assert!(port.uart().writer().bytes.len() <= OUTPUT_LIMIT);
    }

    #[test]
    fn input_waits_outside_until_the_guest_has_room_and_none_is_lost() {
        let (port, mut outside) = port();
        let typed: Vec<u8> = (0..200).collect();
        outside.write_all(&typed).unwrap();
        let mut read = Vec::new();
        for _ in 0..4 {
            port.transfer();
            let waiting = 64 - port.uart().fifo_capacity();
            read.extend((0..waiting).map(|_| port.read(DATA)));
        }
        assert_eq!(read, typed);
    }

    #[test]
    fn a_closed_console_leaves_the_guest_running() {
        let (port, outside) = port();
        drop(outside);
        b"hello".iter().for_each(|byte| port.write(DATA, *byte));
        port.transfer();
        assert!(port.uart().writer().bytes.is_empty());
    }
}
