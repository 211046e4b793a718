//! Unique MAC addresses for VMs and pods, given by an admission webhook that any number of replicas serve at once.
//!
//! A review's way: `server` (TLS, HTTP) → [`review`] (bytes → what each NIC wants) → [`store`] (wants → addresses, from
//! the [`pool`] in memory) → [`review::answer`] (JSON patch); [`admit`] joins these. Nothing on that way calls anybody as
//! long as NICs only want *some* address. Beside it a store keeps the pool supplied and makes what it gives durable:
//! [`store::kube`] by the protocol of [`protocol`], [`store::dir`] by a local journal.
//!
//! Labels, annotations, paths and the ConfigMap are KubeMacPool's, so that it can be replaced without a change for
//! users. Its `kubemacpool.io/transaction-timestamp` annotation is left alone and not needed: an address counts as
//! persisted once an object with it is seen, so a review that changes no address patches nothing.

pub mod admit;
pub mod authority;
pub mod block;
pub mod certs;
pub mod cli;
pub mod index;
pub mod inspect;
pub mod metrics;
pub mod pool;
pub mod protocol;
pub mod range;
pub mod range_config;
pub mod record;
pub mod review;
mod run;
pub mod segment;
pub mod server;
pub mod store;
pub mod tls;

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

pub use run::run;

/// A number that nobody else draws: the standard library's hash keys, seeded by the operating system, over time and pid.
fn random() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u128(std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos()));
    hasher.write_u32(std::process::id());
    hasher.finish()
}
