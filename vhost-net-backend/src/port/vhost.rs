//! A guest as a link's end: its running rings.
//!
//! The vhost-user session (`crate::vhost`) starts and stops queues through the worker as its VMM asks for it; when
//! the worker meets a fault it closes the port, which hangs up the session's connection.

use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use super::{Polled, Pushed};
use crate::fault::Fault;
use crate::frame::{Batch, Offloads};
use crate::ring::{Ring, RxQueue, TxQueue};

/// Ends a session: shuts its connection down, which wakes its thread.
#[derive(Debug)]
pub struct Hangup(pub UnixStream);

/// A virtqueue to run.
#[derive(Debug)]
pub enum Queue {
    /// The guest transmits.
    Tx(TxQueue),
    /// The guest receives.
    Rx(RxQueue),
}

/// A guest's rings; index 2i is receive queue i, 2i + 1 transmit queue i (virtio 1.2, 5.1.2).
#[derive(Debug)]
pub struct VhostPort {
    tx: Vec<Option<TxQueue>>,
    rx: Vec<Option<RxQueue>>,
    /// Indices of `rx` that run, in order.
    receiving: Vec<usize>,
    /// How many of `tx` run.
    senders: usize,
    hangup: Option<Hangup>,
}

impl VhostPort {
    /// A port of up to `pairs` queue pairs, none of which runs.
    pub fn new(pairs: usize) -> Self {
        Self {
            tx: (0..pairs).map(|_| None).collect(),
            rx: (0..pairs).map(|_| None).collect(),
            receiving: Vec::with_capacity(pairs),
            senders: 0,
            hangup: None,
        }
    }

    /// A session begins.
    pub fn connect(&mut self, hangup: Hangup) {
        self.hangup = Some(hangup);
    }

    /// The session ended: every queue stops.
    pub fn disconnect(&mut self) {
        self.hangup = None;
        self.stop_all();
    }

    /// Runs a queue, in place of the one at its index.
    pub fn start(&mut self, index: usize, queue: Queue) {
        match queue {
            Queue::Tx(queue) => {
                if let Some(slot) = self.tx.get_mut(index / 2) {
                    *slot = Some(queue);
                }
            }
            Queue::Rx(queue) => {
                if let Some(slot) = self.rx.get_mut(index / 2) {
                    *slot = Some(queue);
                }
            }
        }
        self.note_running();
    }

    /// Stops a queue; returns where it was, if it ran.
    pub fn stop(&mut self, index: usize) -> Option<u16> {
        let next = self.ring(index).map(Ring::next_available);
        let slot = index / 2;
        if index.is_multiple_of(2) {
            drop(self.rx.get_mut(slot).and_then(Option::take));
        } else {
            drop(self.tx.get_mut(slot).and_then(Option::take));
        }
        self.note_running();
        next
    }

    /// The ring at an index, while it runs.
    pub fn ring(&self, index: usize) -> Option<&Ring> {
        if index.is_multiple_of(2) {
            Some(self.rx.get(index / 2)?.as_ref()?.ring())
        } else {
            Some(self.tx.get(index / 2)?.as_ref()?.ring())
        }
    }

    /// The ring at an index, while it runs.
    pub fn ring_mut(&mut self, index: usize) -> Option<&mut Ring> {
        if index.is_multiple_of(2) {
            Some(self.rx.get_mut(index / 2)?.as_mut()?.ring_mut())
        } else {
            Some(self.tx.get_mut(index / 2)?.as_mut()?.ring_mut())
        }
    }

    fn note_running(&mut self) {
        self.senders = self.tx.iter().flatten().count();
        self.receiving.clear();
        self.receiving
            .extend(self.rx.iter().enumerate().filter_map(|(at, queue)| queue.as_ref().map(|_| at)));
    }

    fn stop_all(&mut self) {
        self.tx.fill_with(|| None);
        self.rx.fill_with(|| None);
        self.note_running();
    }

    pub(super) fn queues(&self) -> usize {
        self.tx.len()
    }

    #[inline]
    pub(super) fn senders(&self) -> usize {
        self.senders
    }

    #[inline]
    pub(super) fn receivers(&self) -> usize {
        self.receiving.len()
    }

    #[inline]
    pub(super) fn poll(
        &mut self,
        queue: usize,
        deliver: &mut dyn FnMut(&Batch<'_>) -> usize,
    ) -> Result<Polled, Fault> {
        match self.source(queue) {
            Some(source) => source.poll(deliver),
            None => Ok(Polled::default()),
        }
    }

    #[inline]
    pub(super) fn accepts(&self, queue: usize) -> Option<Offloads> {
        self.rx.get(self.sink_index(queue)?)?.as_ref().map(RxQueue::accepts)
    }

    #[inline]
    pub(super) fn push(&mut self, queue: usize, batch: &Batch<'_>) -> Result<Pushed, Fault> {
        let sink = self.sink_index(queue).and_then(|index| self.rx.get_mut(index)?.as_mut());
        match sink {
            Some(sink) => sink.push(batch),
            None => Ok(Pushed::default()),
        }
    }

    pub(super) fn kick_fd(&self, queue: usize) -> Option<BorrowedFd<'_>> {
        Some(self.tx.get(queue)?.as_ref()?.ring().kick_fd())
    }

    pub(super) fn enable_kicks(&mut self, queue: usize) -> Result<bool, Fault> {
        self.source(queue).map_or(Ok(false), |source| source.ring().enable_kicks())
    }

    pub(super) fn suppress_kicks(&mut self, queue: usize) {
        if let Some(source) = self.source(queue) {
            source.ring().suppress_kicks();
        }
    }

    pub(super) fn close(&mut self) {
        self.stop_all();
        if let Some(Hangup(connection)) = self.hangup.take() {
            // It fails only if the VMM hung up first.
            drop(connection.shutdown(Shutdown::Both));
        }
    }

    #[inline]
    fn source(&mut self, queue: usize) -> Option<&mut TxQueue> {
        self.tx.get_mut(queue)?.as_mut()
    }

    #[inline]
    fn sink_index(&self, queue: usize) -> Option<usize> {
        let count = self.receiving.len();
        // A division on each batch only where it is needed.
        let at = if queue < count { queue } else { queue.checked_rem(count)? };
        self.receiving.get(at).copied()
    }
}
