//! The store's gauges, ours and KubeMacPool's.

use std::collections::HashMap;

use super::Shared;
use crate::block::{Bits, BlockId};
use crate::metrics::{header, sample};
use crate::store::lock;

/// Addresses named one by one; beyond that something is wrong that a number tells as well.
const MAX_COLLISIONS: usize = 1000;

pub(super) fn render(shared: &Shared, page: &mut String) {
    let (size, free, held) = {
        let pool = lock(&shared.pool);
        (pool.ranges().len(), pool.free(), pool.blocks().count())
    };
    let mut gauge = |name: &str, help: &str, value: u64| {
        header(page, name, "gauge", help);
        sample(page, name, "", value);
    };
    gauge("macpool_range_addresses", "Addresses that may be given.", size);
    gauge(
        "macpool_taken_addresses",
        "Addresses of the range that are taken, as far as this replica knows.",
        taken(shared),
    );
    gauge("macpool_stock_addresses", "Addresses that this replica can give at once.", free);
    gauge("macpool_held_blocks", "Blocks of 256 addresses that this replica holds.", held as u64);
    gauge(
        "macpool_lease_valid",
        "1 if this replica may give addresses.",
        u64::from(shared.tenure.current().is_some()),
    );
    let (objects, mut duplicates) = {
        let index = lock(&shared.index);
        (index.len() as u64, index.collisions().collect::<Vec<_>>())
    };
    duplicates.sort_unstable();
    gauge("macpool_objects", "VMs, VMIs and pods with addresses.", objects);
    gauge(
        "kubevirt_kmp_duplicate_macs",
        "Addresses that several VMs or pods have who can meet.",
        duplicates.len() as u64,
    );
    header(page, "kmp_mac_collisions", "gauge", "VMs and pods that share an address.");
    for (mac, owners) in duplicates.into_iter().take(MAX_COLLISIONS) {
        sample(page, "kmp_mac_collisions", &format!("mac=\"{mac}\""), owners);
    }
}

/// By the records, and of held blocks by what is seen in use, and by our own memory.
fn taken(shared: &Shared) -> u64 {
    let held = shared.blocks.held(|_| true);
    let mut more: HashMap<BlockId, Bits> = {
        let pool = lock(&shared.pool);
        held.iter().map(|(block, _)| (*block, pool.taken_in(*block))).collect()
    };
    {
        let index = lock(&shared.index);
        more.iter_mut().for_each(|(block, taken)| *taken = taken.or(index.used(*block)));
    }
    shared.blocks.taken(&more)
}
