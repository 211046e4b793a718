//! A VM as the launcher handles it: what is to be done ([`plan`]), what has been done ([`record`]), doing it
//! ([`setup`]) and undoing it ([`teardown`]).
//!
//! `up` plans, locks and sets up, then leaves the VM to its supervisor; whoever ends the VM tears down: the
//! supervisor, else `down`, `gc` or the next `up`. Every one of them holds the VM's [`lock`].

mod binding;
pub(crate) mod devices;
mod given;
pub(crate) mod images;
pub(crate) mod layout;
pub(crate) mod lock;
pub(crate) mod mac;
pub(crate) mod networks;
mod node_gateway;
pub(crate) mod plan;
pub(crate) mod pod_network;
pub(crate) mod record;
mod resolver;
pub(crate) mod setup;
pub(crate) mod slot;
pub(crate) mod socket;
pub(crate) mod teardown;
