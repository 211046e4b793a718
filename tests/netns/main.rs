//! Promises kept by the real kernel in namespaces of the test's own. Needs root; runs natively (`make test`).
//!
//! One module per promise. What needs VLAN filtering, SR-IOV, VFIO or a guest belongs to `node`.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, reason = "tests report by panicking")]

mod backends_that_lie;
mod cni_bad_input;
mod cnv_bridge_at_once;
mod cnv_bridge_attaches;
mod cnv_bridge_guards;
mod cnv_bridge_ipam;
mod cnv_bridge_keys;
mod cnv_bridge_masquerades;
mod cnv_bridge_policy;
mod cnv_bridge_refuses;
mod cnv_bridge_replaces;
mod cnv_bridge_versions;
mod cnv_tuning;
mod foreign_plugins;
mod masquerade_connects;
mod masquerade_ground;
mod masquerade_guards;
mod masquerade_istio;
mod masquerade_lives;
mod masquerade_refuses;
mod masquerade_tells;
mod names_resolve;
mod nf_tables_answers;
mod plugins_tell_results;
mod plugins_tell_status;
mod programs_tell_failures;
mod sandbox;
mod stand_in;
mod vhost_af_xdp;
mod vhost_cni;
mod vhost_control;
mod vhost_guests;
mod vhost_pairs;
mod vhost_privileges;
mod vhost_qemu;
mod vhost_qemu_offloads;
mod vhost_queues;
mod vhost_steering;
mod vm_launcher_admits;
mod vm_launcher_bridge_addresses;
mod vm_launcher_lets_go;
mod vm_launcher_pod_network;
mod vm_launcher_refuses;
mod vm_launcher_vhost_user;
mod vm_tap_tc;
