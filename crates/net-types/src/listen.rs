//! Where a server listens.

use std::net::SocketAddr;

/// A text that is no address with a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not ADDRESS:PORT (such as 127.0.0.1:8080 or [::]:8080)")]
pub struct ListenError(String);

/// Reads an IP address and a port, as command lines and files have it. Names are not looked up.
///
/// # Errors
/// It is anything else; the error says what would be right.
pub fn listen_address(text: &str) -> Result<SocketAddr, ListenError> {
    text.parse().map_err(|_std_says_less| ListenError(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_but_an_address_with_a_port_is_told_what_is_one() {
        assert_eq!(listen_address("[::]:8080").unwrap().port(), 8080);
        for text in
            ["", "nowhere", "9105", ":9105", "127.0.0.1", "127.0.0.1:65536", "localhost:9105", "::1:80:"]
        {
            let told = listen_address(text).unwrap_err().to_string();
            assert_eq!(told, format!("{text:?} is not ADDRESS:PORT (such as 127.0.0.1:8080 or [::]:8080)"));
        }
    }
}
