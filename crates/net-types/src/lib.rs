//! Values of networking, as types: a [`Mac`], an [`IfName`], a [`VlanId`], a [`PciAddress`].
//!
//! Everything that enters guestwire as text or bytes becomes one of these at the edge, and nothing behind the
//! edge checks again. The crate parses and prints; it does no I/O and knows no kernel.

mod if_name;
mod listen;
mod mac;
mod pci;
mod vlan;

pub use if_name::{IfName, IfNameError};
pub use listen::{ListenError, listen_address};
pub use mac::{Mac, MacError};
pub use pci::{PciAddress, PciAddressError};
pub use vlan::{VlanId, VlanIdError};

/// Implements serde for a type by its `FromStr` and `Display`, so that JSON carries the printed form.
macro_rules! serde_by_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
use serde_by_text;
