//! The store of a cluster: any number of replicas share the range through the API server ([`crate::protocol`]).
//!
//! [`tenure`] keeps the right to give, [`supply`] the pool stocked, [`order`] serves reviews, [`sweep`] frees what nobody has;
//! [`blocks`] and [`reflect`] show them the cluster, through [`api`]. [`KubeStore::start`] starts all of it,
//! [`KubeStore::stop`] hands everything back.

mod api;
mod blocks;
pub mod config;
mod events;
pub(crate) mod inspect;
mod items;
mod metrics;
mod objects;
mod order;
mod reflect;
mod renewal;
mod seen;
mod supply;
mod sweep;
mod tenure;
pub mod trust;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use api::Api;
use blocks::{Blocks, BlocksSink};
use supply::{Outcome, Round};
use tenure::Tenure;
pub use tenure::Terms;

use crate::block::BlockId;
use crate::index::{Index, Place};
use crate::pool::{Pool, Returned};
use crate::range::Ranges;
use crate::segment::Domains;
use crate::store::{OnDuplicate, lock};

/// What the cluster's store is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the leases live: macpool's own namespace.
    pub namespace: String,
    /// This replica's pod; identities begin with it.
    pub pod: String,
    /// What may be given.
    pub ranges: Ranges,
    /// How duplicates are treated.
    pub on_duplicate: OnDuplicate,
    /// Networks that never meet.
    pub domains: Domains,
    /// How long an address is reserved although nothing is seen with it. At least twice the API server's request timeout.
    pub grace: Duration,
    /// Whether pods are served, and so watched.
    pub pods: bool,
    /// The times of the protocol.
    pub terms: Terms,
}

/// What the tasks of the store share.
pub(crate) struct Shared {
    api: Api,
    settings: Settings,
    tenure: Tenure,
    blocks: Arc<Blocks>,
    /// Taken before any lock of the index, never while one is held.
    pool: Mutex<Pool>,
    index: Mutex<Index>,
    /// Blocks that the pool has let go and that are still to be written back.
    owed: Mutex<HashMap<BlockId, Returned>>,
    /// The pool is low.
    low: Notify,
    rounds: watch::Sender<Round>,
    /// Addresses that reviews are waiting for.
    wanted: AtomicU64,
    /// Places whose first list is still to come.
    unlisted: AtomicU64,
    stopping: AtomicBool,
}

impl Shared {
    /// Addresses to have ahead of need: for a second of heavy load, but never the better part of a small range.
    fn stock_wanted(&self) -> u64 {
        match self.stopping.load(Ordering::Relaxed) {
            true => 0,
            false => (lock(&self.pool).ranges().len() / 8).clamp(1, 512),
        }
    }

    fn waiting(&self) -> u64 {
        self.wanted.load(Ordering::Acquire)
    }

    fn is_synced(&self) -> bool {
        self.blocks.is_synced() && self.unlisted.load(Ordering::Acquire) == 0
    }
}

/// The cluster's store. Cheap to clone.
#[derive(Clone)]
pub struct KubeStore {
    shared: Arc<Shared>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl KubeStore {
    /// Starts following the cluster, and giving once it is known.
    pub fn start(client: kube::Client, settings: Settings) -> Self {
        let api = Api::new(client);
        let (namespace, pod) = (settings.namespace.clone(), settings.pod.clone());
        let mut places = vec![(Place::Vm, objects::VMS), (Place::Vmi, objects::VMIS)];
        if settings.pods {
            places.push((Place::Pod, objects::PODS));
        }
        let mut index = Index::default();
        index.set_domains(settings.domains.clone());
        let shared = Arc::new(Shared {
            tenure: Tenure::new(api.clone(), namespace, pod, settings.terms),
            blocks: Blocks::new(api.clone(), settings.ranges.clone(), crate::random()),
            pool: Mutex::new(Pool::new(settings.ranges.clone())),
            index: Mutex::new(index),
            owed: Mutex::default(),
            low: Notify::new(),
            rounds: watch::Sender::new(Round { number: 0, outcome: Outcome::Failed }),
            wanted: AtomicU64::new(0),
            unlisted: AtomicU64::new(places.len() as u64),
            stopping: AtomicBool::new(false),
            api,
            settings,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(reflect::follow(
            shared.api.clone(),
            objects::BLOCKS.to_owned(),
            BlocksSink(Arc::clone(&shared.blocks)),
        ));
        for (place, path) in places {
            tasks.spawn(reflect::follow(
                shared.api.clone(),
                path.to_owned(),
                seen::Sight::new(&shared, place),
            ));
        }
        tasks.spawn(supply::run(Arc::clone(&shared)));
        tasks.spawn(supply::watch_over(Arc::clone(&shared)));
        tasks.spawn(sweep::run(Arc::clone(&shared)));
        let keeper = Arc::clone(&shared);
        tasks.spawn(async move { keeper.tenure.keep(|begin_anew| keeper.deposed(begin_anew)).await });
        Self { shared, tasks: Arc::new(Mutex::new(tasks)) }
    }

    /// Replaces which networks never meet, live.
    pub fn set_domains(&self, domains: Domains) {
        lock(&self.shared.index).set_domains(domains);
    }

    /// Replaces the range, live.
    pub fn set_ranges(&self, ranges: Ranges) {
        lock(&self.shared.pool).set_ranges(ranges.clone());
        self.shared.blocks.set_ranges(ranges);
        self.shared.low.notify_one();
    }

    /// Hands every block back and ends the lease. Reviews that still come are told to ask another replica.
    pub async fn stop(self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        lock(&self.tasks).abort_all();
        let me = self.shared.tenure.identity();
        let mut back: Vec<_> = {
            let mut pool = lock(&self.shared.pool);
            let blocks: Vec<_> = pool.blocks().collect();
            blocks.into_iter().filter_map(|block| pool.let_go(block)).collect()
        };
        back.extend(std::mem::take(&mut *lock(&self.shared.owed)).into_values());
        let retired = back.into_iter().map(|back| supply::retire(&self.shared, &me, back));
        let failed = futures_util::future::join_all(retired).await.into_iter().flatten().count();
        // With blocks left over the lease stays, and whoever deposes us counts them as given.
        if failed > 0 {
            tracing::warn!(blocks = failed, "could not hand everything back");
        } else if let Err(error) = self.shared.tenure.resign().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "could not end the lease");
        }
    }
}

impl Shared {
    /// The tenure has ended: nothing here is ours any more. All at once to whoever has the pool's lock, under which a block is
    /// put into the pool: one that the old identity was still taking would be given from by the new one otherwise.
    fn deposed(&self, begin_anew: &dyn Fn()) {
        let mut pool = lock(&self.pool);
        begin_anew();
        let blocks: Vec<_> = pool.blocks().collect();
        for block in blocks {
            pool.let_go(block);
        }
        lock(&self.owed).clear();
    }
}
