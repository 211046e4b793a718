//! IEEE 802.1Q VLAN identifiers.

use std::fmt;
use std::str::FromStr;

/// A VLAN a frame can belong to: 1 to 4094. (0 means "priority tag only" and 4095 is reserved, IEEE 802.1Q 9.6.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanId(u16);

/// Why a number is no VLAN identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a VLAN identifier (1 to 4094)")]
pub struct VlanIdError(String);

impl VlanId {
    /// VLAN 1, where a bridge puts a new port unless told otherwise.
    pub const DEFAULT: Self = Self(1);
    /// The lowest identifier.
    pub const MIN: Self = Self(1);
    /// The highest identifier.
    pub const MAX: Self = Self(4094);

    /// The identifier as a number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u64> for VlanId {
    type Error = VlanIdError;

    fn try_from(id: u64) -> Result<Self, VlanIdError> {
        match u16::try_from(id) {
            Ok(id @ 1..=4094) => Ok(Self(id)),
            _ => Err(VlanIdError(id.to_string())),
        }
    }
}

impl TryFrom<u16> for VlanId {
    type Error = VlanIdError;

    fn try_from(id: u16) -> Result<Self, VlanIdError> {
        Self::try_from(u64::from(id))
    }
}

impl FromStr for VlanId {
    type Err = VlanIdError;

    fn from_str(text: &str) -> Result<Self, VlanIdError> {
        text.parse::<u64>()
            .ok()
            .and_then(|id| Self::try_from(id).ok())
            .ok_or_else(|| VlanIdError(text.to_owned()))
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_1_to_4094() {
        for id in [1u64, 100, 4094] {
            assert_eq!(u64::from(VlanId::try_from(id).unwrap().get()), id);
        }
        for id in [0u64, 4095, 65537, u64::MAX] {
            assert_eq!(
                VlanId::try_from(id).unwrap_err().to_string(),
                format!("{id} is not a VLAN identifier (1 to 4094)")
            );
        }
        assert_eq!("100".parse(), VlanId::try_from(100u64));
        assert!("x".parse::<VlanId>().is_err());
    }
}
