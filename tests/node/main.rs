//! Promises that need a whole node: VLAN filtering, SR-IOV, VFIO, KVM guests. Runs inside the node VM only
//! (`make node`, which `make test` includes), one test after the other.
//!
//! One module per promise. What a namespace on any kernel can show belongs to `netns`, which is faster.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, reason = "tests report by panicking")]

mod a_kvm_guest;
mod a_vmm_boots_linux;
mod cnv_bridge_gateway;
mod cnv_bridge_uplinks;
mod cnv_bridge_vlans;
#[path = "../netns/masquerade_ground.rs"]
#[expect(dead_code, reason = "the other rung uses all of it")]
mod masquerade_ground;
mod masquerade_guests;
mod masquerade_sctp;
mod podman_attaches;
mod sriov_attaches;
mod sriov_guest;
mod sriov_nic;
mod sriov_policy;
mod sriov_refuses;
mod sriov_restores;
mod sriov_speed;
mod sriov_unplug;
mod sriov_vfio;
mod the_node;
mod vm_node;
mod vm_on_vhost_user;
mod vm_on_vhost_user_load;
mod vm_queues;
mod vm_tap_wires;
mod vms_disks;
mod vms_interrupted;
mod vms_live;
mod vms_told;
