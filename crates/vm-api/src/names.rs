//! The names Kubernetes allows.
//!
//! They become file names, interface owners and DNS labels, so nothing else may pass for one.

/// Why a text is no Kubernetes name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a DNS subdomain.
    #[error("{0:?} is not a Kubernetes name (lower-case letters, digits, '-' and '.', at most 253)")]
    Subdomain(String),
    /// Not a DNS label.
    #[error("{0:?} is not a DNS label (lower-case letters, digits and '-', at most 63)")]
    Label(String),
}

/// A DNS subdomain name (RFC 1123) as Kubernetes has them: labels joined by dots. A plain file name too.
pub fn subdomain(name: &str) -> Result<&str, NameError> {
    if name.len() <= 253 && name.split('.').all(is_label) {
        Ok(name)
    } else {
        Err(NameError::Subdomain(name.to_owned()))
    }
}

/// A DNS label (RFC 1123): what namespaces, networks and volumes are called.
pub fn label(name: &str) -> Result<&str, NameError> {
    if is_label(name) { Ok(name) } else { Err(NameError::Label(name.to_owned())) }
}

fn is_label(name: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = |byte: Option<u8>| byte.is_some_and(alphanumeric);
    name.len() <= 63
        && name.bytes().all(|byte| alphanumeric(byte) || byte == b'-')
        && ends(name.bytes().next())
        && ends(name.bytes().next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains_are_told_apart() {
        for name in ["a", "vm-1", "0", &"a".repeat(63)] {
            assert_eq!(label(name), Ok(name));
            assert_eq!(subdomain(name), Ok(name));
        }
        assert_eq!(subdomain("vm.example.com"), Ok("vm.example.com"));
        assert!(label("vm.example.com").is_err());
    }

    #[test]
    fn nothing_that_is_no_plain_file_name_passes() {
        let long = "a".repeat(254);
        for name in
            ["", ".", "..", "../x", "a/b", ".a", "a.", "a..b", "A", "a_b", "a\0", "-a", "a-", "é", &long]
        {
            assert!(subdomain(name).is_err(), "{name:?}");
            assert!(label(name).is_err(), "{name:?}");
        }
        assert!(label(&"a".repeat(64)).is_err());
    }
}
