//! The main thread while a guest runs: the console's socket, the supervisor's commands, functions that come and go, and
//! the end.
//!
//! Device queues are not served here: each device has a thread of its own.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::VmmError;
use super::bus::Bus;
use super::guest::Backends;
use super::outcome::{End, Outcome};
use super::vfio::{PassthroughError, Places};
use crate::control::{Channel, Command, Event, Passthrough, Received};

/// What an epoll entry is about.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Source {
    End,
    Control,
    Serial,
    Ejected,
    Backends,
}

/// Serves until the end has come.
pub(crate) struct EventLoop<'a> {
    epoll: Epoll,
    channel: &'a Channel,
    bus: Arc<Bus>,
    power_button: EventFd,
    places: Option<Places>,
    backends: Backends,
    end: End,
}

impl<'a> EventLoop<'a> {
    /// `power_button` is the interrupt line of the generic event device.
    pub(crate) fn new(
        channel: &'a Channel,
        bus: Arc<Bus>,
        power_button: EventFd,
        places: Option<Places>,
        backends: Backends,
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
        add(bus.serial.socket_fd(), edges, Source::Serial)?;
        add(bus.serial.wake_fd(), EventSet::IN | EventSet::EDGE_TRIGGERED, Source::Serial)?;
        add(bus.hotplug.as_raw_fd(), EventSet::IN, Source::Ejected)?;
        add(backends.outbox.as_raw_fd(), EventSet::IN, Source::Backends)?;
        Ok(Self { epoll, channel, bus, power_button, places, backends, end })
    }

    /// Returns once the end has come, with the functions of the host.
    pub(crate) fn run(mut self) -> Option<Places> {
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
                self.bus.serial.transfer();
            }
            if is(Source::Ejected) {
                self.let_go();
            }
            if is(Source::Backends) {
                self.tell_of_backends();
            }
            if is(Source::Control) {
                self.obey();
            }
        }
        // The guest's last words.
        self.bus.serial.transfer();
        self.places
    }

    fn tell_of_backends(&self) {
        for event in self.backends.outbox.take() {
            if let Err(error) = self.channel.send_event(&event) {
                self.end.come(Outcome::Failed(VmmError::Control(error)));
            }
        }
    }

    fn obey(&mut self) {
        match self.channel.receive_command() {
            Ok(Received::Message(Command::PowerButton)) => {
                // A full counter means that the button is down already.
                let _ = self.power_button.write(1);
            }
            // A guest without its supervisor is nobody's: it ends too.
            Ok(Received::Message(Command::Stop) | Received::Closed) => self.end.come(Outcome::Stopped),
            Ok(Received::Message(Command::Plug(passthrough))) => self.plug(passthrough),
            Ok(Received::Message(Command::Unplug { place })) => self.unplug(place),
            Ok(Received::Message(Command::Backend { nic, socket })) => {
                let mailbox = self.backends.mailboxes.iter().find(|mailbox| mailbox.nic == nic);
                if let Some(mailbox) = mailbox {
                    mailbox.connection(socket);
                }
            }
            Ok(Received::Nothing) => {}
            Err(error) => self.end.come(Outcome::Failed(VmmError::Control(error))),
        }
    }

    fn plug(&mut self, passthrough: Passthrough) {
        let places = passthrough.functions.iter().map(|function| function.place).collect();
        let plugged = match &mut self.places {
            Some(all) => all.plug(passthrough, &self.bus),
            None => Err(VmmError::NoPlaces),
        };
        match plugged {
            Ok(slots) => {
                slots.into_iter().for_each(|slot| self.bus.hotplug.announce(slot));
                self.tell(&Event::Plugged { places });
            }
            Err(error) => {
                let message = crate::chain(&error).to_string();
                self.tell(&Event::NotPlugged { places, message });
            }
        }
    }

    fn unplug(&self, place: usize) {
        let occupied = self.places.as_ref().map(|all| all.occupied(place));
        match occupied.unwrap_or(Err(PassthroughError::NoPlace(place))) {
            Ok(Some(slot)) => self.bus.hotplug.ask_back(slot),
            // Nothing is there to be let go of.
            Ok(None) | Err(_) => self.tell(&Event::Unplugged { place }),
        }
    }

    /// The guest has ejected functions; the supervisor hears of it when nothing of them is left here.
    fn let_go(&mut self) {
        for slot in self.bus.hotplug.take_ejected() {
            if let Some(place) = self.places.as_mut().and_then(|all| all.empty(slot)) {
                self.tell(&Event::Unplugged { place });
            }
        }
    }

    fn tell(&self, event: &Event) {
        if let Err(error) = self.channel.send_event(event) {
            self.end.come(Outcome::Failed(VmmError::Control(error)));
        }
    }
}
