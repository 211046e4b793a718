//! What an interface was before it was tuned.

use net_types::Mac;
use serde::{Deserialize, Serialize};

/// An interface's own values; those that were not changed are not kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Saved {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mac: Option<Mac>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) promiscuous: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) all_multicast: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tx_queue_len: Option<u32>,
}
