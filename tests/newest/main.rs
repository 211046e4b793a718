//! Promises that need a newer kernel than nodes usually have. Runs inside the node VM only, which boots that kernel for
//! them (`tests/node/run --newest`, which `make test` includes), one test after the other.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, reason = "tests report by panicking")]

mod vhost_zero_copy;
