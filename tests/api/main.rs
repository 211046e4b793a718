//! Promises that need a real API server: one file each. Run `tests/api/kube-apiserver` first, or `make test`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper's failure is the test's failure")]

mod macpool;
mod names_follow_the_cluster;
mod vhost_net_backend_deploys;
