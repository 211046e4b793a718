//! Names of network interfaces.

use std::fmt;
use std::str::FromStr;

/// Longest interface name: `IFNAMSIZ` (16, `linux/if.h`) less the terminating NUL.
const MAX_LEN: usize = 15;

/// A name the kernel accepts for a network interface: `dev_valid_name` and `dev_alloc_name` (`net/core/dev.c`), which takes
/// "%d" for a number of its choice, and `sysctl_dev_name_is_allowed` (`net/ipv4/devinet.c`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

/// What would be another file than an interface's in /sys or /proc/sys.
const OTHER_FILES: [&str; 4] = [".", "..", "all", "default"];

/// Why a text is no interface name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IfNameError {
    /// Nothing there.
    #[error("an interface name is empty")]
    Empty,
    /// More than 15 bytes.
    #[error("interface name {name:?} has {} bytes; at most {MAX_LEN} are allowed", name.len())]
    TooLong {
        /// The name as given.
        name: String,
    },
    /// A character the kernel refuses or replaces, or a name that means something else.
    #[error(
        "interface name {0:?} is not allowed: no '/', ':', '%', white space or control characters, nor \".\", \"..\", \"all\" or \"default\""
    )]
    Forbidden(String),
}

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = IfNameError;

    fn from_str(name: &str) -> Result<Self, IfNameError> {
        let forbidden = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
        if name.is_empty() {
            Err(IfNameError::Empty)
        } else if name.len() > MAX_LEN {
            Err(IfNameError::TooLong { name: name.to_owned() })
        } else if OTHER_FILES.contains(&name) || name.contains(forbidden) {
            Err(IfNameError::Forbidden(name.to_owned()))
        } else {
            Ok(Self(name.to_owned()))
        }
    }
}

impl AsRef<str> for IfName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

crate::serde_by_text!(IfName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_takes_are_taken() {
        for name in ["eth0", "a", "fifteen-bytes-x", "br@1", "été"] {
            assert_eq!(name.parse::<IfName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_the_kernel_refuses_are_refused() {
        assert_eq!("".parse::<IfName>(), Err(IfNameError::Empty));
        assert!(matches!("sixteen-bytes-xx".parse::<IfName>(), Err(IfNameError::TooLong { .. })));
        for name in [".", "..", "a/b", "a:b", "a b", "a\tb", "a\0b", "a\nb", "net%d", "a%b", "all", "default"]
        {
            assert!(matches!(name.parse::<IfName>(), Err(IfNameError::Forbidden(_))), "{name:?}");
        }
    }
}
