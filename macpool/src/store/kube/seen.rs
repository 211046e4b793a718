//! What the watches see: objects with addresses, into the index and, as taken, into the pool.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use net_types::Mac;

use super::Shared;
use super::events::Events;
use super::objects::{self, AnyMeta, Named};
use super::reflect::Sink;
use crate::index::{Place, Sighting};
use crate::segment::Nic;
use crate::store::{Kind, Owner, lock};

/// What an object in a place says.
pub(super) fn sighting_of(place: Place, json: &[u8]) -> Result<Sighting, serde_json::Error> {
    match place {
        Place::Vm => objects::of_vm(json),
        Place::Vmi => objects::of_vmi(json),
        Place::Pod => objects::of_pod(json),
    }
}

/// The addresses of an object in a place.
pub(super) fn macs_of(place: Place, json: &[u8]) -> Result<impl Iterator<Item = Mac>, serde_json::Error> {
    Ok(sighting_of(place, json)?.nics.into_iter().map(|nic| nic.mac))
}

/// The sink of one place.
pub(super) struct Sight {
    shared: Arc<Shared>,
    place: Place,
    round: u64,
    listed: bool,
    events: Events,
}

impl Sight {
    pub(super) fn new(shared: &Arc<Shared>, place: Place) -> Self {
        let events = Events::new(shared.api.clone());
        Self { shared: Arc::clone(shared), place, round: 0, listed: false, events }
    }
}

impl Sight {
    /// An event on the VM or its instance for each address that somebody has whom it can meet.
    fn tell_collisions(&self, meta: &AnyMeta<'_>, nics: &[Nic]) {
        let kind = match self.place {
            Place::Vm => "VirtualMachine",
            Place::Vmi => "VirtualMachineInstance",
            Place::Pod => return,
        };
        let owner = Owner { kind: Kind::Vm, key: meta.key().into() };
        for nic in nics {
            let mac = nic.mac;
            let others = lock(&self.shared.index).rivals(&owner, nic);
            if let Some(other) = others.first() {
                let what = format!("mac-{}", mac.to_string().replace(':', ""));
                let message = format!("macAddress {mac} is also used by {other}");
                self.events.warn(&meta.regarding(kind), "MACCollision", &what, message);
            }
        }
    }
}

impl Sink for Sight {
    fn listing(&mut self) {
        self.round += 1;
    }

    fn put(&mut self, json: &[u8]) -> Result<(), serde_json::Error> {
        let meta = serde_json::from_slice::<Named<'_>>(json)?.metadata;
        let key = meta.key();
        // One object that cannot be read, which no review would have let pass, must not blind us for the others.
        let sighting = sighting_of(self.place, json).unwrap_or_else(|error| {
            tracing::warn!(place = ?self.place, key, %error, "an object cannot be read");
            Sighting::default()
        });
        let nics = sighting.nics.clone();
        let news = lock(&self.shared.index).put(self.place, &key, sighting, self.round);
        // The index first: a block that is taken now comes with what stands there.
        {
            let mut pool = lock(&self.shared.pool);
            nics.iter().for_each(|nic| pool.seen(nic.mac));
        }
        // What a start finds was told when it came.
        if news && self.listed {
            self.tell_collisions(&meta, &nics);
        }
        Ok(())
    }

    fn gone(&mut self, json: &[u8]) -> Result<(), serde_json::Error> {
        let key = serde_json::from_slice::<Named<'_>>(json)?.metadata.key();
        lock(&self.shared.index).remove(self.place, &key);
        Ok(())
    }

    fn listed(&mut self) {
        lock(&self.shared.index).retain_round(self.place, self.round);
        // The first complete list; those that broke off do not count.
        if !std::mem::replace(&mut self.listed, true) {
            self.shared.unlisted.fetch_sub(1, Ordering::AcqRel);
            self.shared.low.notify_one();
        }
    }
}
