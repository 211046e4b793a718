//! Name resolution of guests that are told their addresses, as the text of a `resolv.conf` (resolv.conf(5)).
//!
//! What the network's plugins answer comes first, as in a container engine; else it is the node's, as in a pod with
//! `dnsPolicy: Default`. Decided when the VM is set up, and recorded.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use cni::Dns;
use guest_dhcp::Resolver;

/// Where systemd-resolved keeps the real servers when `/etc/resolv.conf` names only itself (systemd-resolved(8)).
const BEHIND_THE_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// What the plugins say, if they say anything.
pub(crate) fn of_network(dns: &Dns) -> Option<String> {
    let Dns { nameservers, domain, search, options: _ } = dns;
    let mut text = String::new();
    let search: Vec<_> = if search.is_empty() { domain.iter().collect() } else { search.iter().collect() };
    for domain in &search {
        // One line in the end; words that are no domains are left out by who reads them.
        text.push_str(if text.is_empty() { "search " } else { " " });
        text.push_str(domain.trim());
    }
    if !text.is_empty() {
        text.push('\n');
    }
    for server in nameservers {
        let _infallible = writeln!(text, "nameserver {}", server.trim());
    }
    (!text.is_empty()).then_some(text)
}

/// The node's, from `path`, or from behind systemd-resolved's stub when `path` names nobody a guest can reach. Empty if
/// there is no such file.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn of_node(path: &Path) -> io::Result<String> {
    let text = read(path)?;
    let (resolver, skipped) = Resolver::from_resolv_conf(&text);
    if !resolver.servers.is_empty() || skipped.is_empty() {
        return Ok(text);
    }
    let real = read(Path::new(BEHIND_THE_STUB))?;
    Ok(if real.is_empty() { text } else { real })
}

fn read(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_networks_own_answer_becomes_a_resolv_conf() {
        let text = |text: &str| text.to_owned();
        let mut dns = Dns { nameservers: vec![text("10.96.0.10"), text("fd00::a")], ..Dns::default() };
        assert_eq!(of_network(&dns).as_deref(), Some("nameserver 10.96.0.10\nnameserver fd00::a\n"));
        dns.domain = Some(text("a.example"));
        assert!(of_network(&dns).unwrap().starts_with("search a.example\n"));
        dns.search = vec![text("b.example"), text("c.example")];
        assert!(of_network(&dns).unwrap().starts_with("search b.example c.example\nnameserver"));
        assert_eq!(of_network(&Dns::default()), None);
    }

    #[test]
    fn a_node_without_a_file_has_nothing_to_tell() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        assert_eq!(of_node(&path).unwrap(), "");
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(of_node(&path).unwrap(), "nameserver 192.0.2.1\n");
        assert!(of_node(folder.path()).is_err(), "a directory is no file");
    }
}
