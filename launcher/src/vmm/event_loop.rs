//! The main thread while a guest runs: the console's socket, the supervisor's commands, and the end.
//!
//! Device queues are not served here: each device has a thread of its own.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::VmmError;
use super::legacy::SerialPort;
use super::outcome::{End, Outcome};
use crate::control::{Channel, Command, Received};

/// What an epoll entry is about.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Source {
    End,
    Control,
    Serial,
}

/// Serves until the end has come.
pub(crate) struct EventLoop<'a> {
    epoll: Epoll,
    channel: &'a Channel,
    serial: Arc<SerialPort>,
    power_button: EventFd,
    end: End,
}

impl<'a> EventLoop<'a> {
    /// `power_button` is the interrupt line of the generic event device.
    pub(crate) fn new(
        channel: &'a Channel,
        serial: Arc<SerialPort>,
        power_button: EventFd,
        end: End,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let add = |fd, events, source: Source| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, source as u64))
        };
        add(end.as_raw_fd(), EventSet::IN, Source::End)?;
        add(channel.as_fd().as_raw_fd(), EventSet::IN, Source::Control)?;
        // Edges only: a full socket, or input the UART has no room for, must not keep this thread busy.
        let edges = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        add(serial.socket_fd(), edges, Source::Serial)?;
        add(serial.wake_fd(), EventSet::IN | EventSet::EDGE_TRIGGERED, Source::Serial)?;
        Ok(Self { epoll, channel, serial, power_button, end })
    }

    /// Returns once the end has come.
    pub(crate) fn run(&self) {
        let mut events = [EpollEvent::default(); 8];
        while !self.end.has_come() {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    self.end.come(Outcome::Failed(VmmError::Epoll(source)));
                    break;
                }
            };
            let is = |source: Source| events[..count].iter().any(|event| event.data() == source as u64);
            if is(Source::Serial) {
                self.serial.transfer();
            }
            if is(Source::Control) {
                self.obey();
            }
        }
        // The guest's last words.
        self.serial.transfer();
    }

    fn obey(&self) {
        match self.channel.receive_command() {
            Ok(Received::Message(Command::PowerButton)) => {
                // A full counter means that the button is down already.
                let _ = self.power_button.write(1);
            }
            // A guest without its supervisor is nobody's: it ends too.
            Ok(Received::Message(Command::Stop) | Received::Closed) => self.end.come(Outcome::Stopped),
            Ok(Received::Nothing) => {}
            Err(error) => self.end.come(Outcome::Failed(VmmError::Control(error))),
        }
    }
}
