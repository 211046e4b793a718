//! Promises that need a newer kernel than nodes usually have, and some that such a kernel must keep too. Runs inside the node
//! VM only, which boots that kernel for them (`tests/node/run --newest`, which `make test` includes), one test after the other.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, reason = "tests report by panicking")]

#[path = "../node/cnv_bridge_vlans.rs"]
mod cnv_bridge_vlans;
#[path = "../node/sriov_attaches.rs"]
mod sriov_attaches;
#[path = "../node/sriov_nic.rs"]
#[expect(dead_code, reason = "the node rung uses all of it")]
mod sriov_nic;
mod vhost_zero_copy;
#[path = "../node/vm_tap_wires.rs"]
mod vm_tap_wires;
