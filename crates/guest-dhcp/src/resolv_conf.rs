//! `resolv.conf` (resolv.conf(5)): what the pod's own resolver uses is what its guest is told.

use std::net::IpAddr;

use crate::guest::Resolver;

/// Something in the file that no guest can use, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Counted from 1.
    pub line: usize,
    /// The word.
    pub word: String,
    /// Why.
    pub reason: String,
}

impl Resolver {
    /// Reads a `resolv.conf`. What a guest cannot use is left out and told: a broken search domain must not cost it
    /// its name servers.
    pub fn from_resolv_conf(text: &str) -> (Self, Vec<Skipped>) {
        let mut resolver = Self::default();
        let mut skipped = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let mut skip = |word: &str, reason: String| {
                skipped.push(Skipped { line: index + 1, word: word.to_owned(), reason });
            };
            let mut words = line.split(['#', ';']).next().unwrap_or_default().split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let Some(word) = words.next() else { continue };
                    match server(word) {
                        Ok(server) => resolver.servers.push(server),
                        Err(reason) => skip(word, reason),
                    }
                }
                // Of several lines the last one counts.
                Some("search" | "domain") => {
                    resolver.search.clear();
                    // "search ." says that nothing is searched.
                    for word in words.filter(|word| *word != ".") {
                        match word.parse() {
                            Ok(domain) => resolver.search.push(domain),
                            Err(error) => skip(word, format!("{error}")),
                        }
                    }
                }
                _ => {}
            }
        }
        (resolver, skipped)
    }
}

/// A server that a guest can reach: the pod's loopback and links are not the guest's.
fn server(word: &str) -> Result<IpAddr, String> {
    let address: IpAddr = word.parse().map_err(|_error| "not an IP address".to_owned())?;
    let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() || is_link_local {
        return Err("a guest cannot reach it".to_owned());
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pod_s_file_is_understood() {
        let text = "# made by the kubelet\nsearch ns.svc.cluster.local svc.cluster.local cluster.local\n\
                    nameserver 10.96.0.10\nnameserver fd00::10 # second\noptions ndots:5\n";
        let (resolver, skipped) = Resolver::from_resolv_conf(text);
        assert_eq!(resolver.servers, ["10.96.0.10".parse::<IpAddr>().unwrap(), "fd00::10".parse().unwrap()]);
        let search: Vec<_> = resolver.search.iter().map(ToString::to_string).collect();
        assert_eq!(search, ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
        assert_eq!(skipped, []);
    }

    #[test]
    fn what_a_guest_cannot_use_is_left_out_and_told() {
        let long = "a".repeat(64);
        let text = format!(
            "nameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver x\nsearch a..b {long}.com ok.com\nsearch .\ndomain last\n"
        );
        let (resolver, skipped) = Resolver::from_resolv_conf(&text);
        assert_eq!(resolver.servers, [] as [IpAddr; 0]);
        assert_eq!(resolver.search.len(), 1);
        let lines: Vec<_> = skipped.iter().map(|skipped| skipped.line).collect();
        assert_eq!(lines, [1, 2, 3, 4, 4]);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC*(\nsearch \\PC*)?(\nnameserver \\PC*)?") {
            let (resolver, _) = Resolver::from_resolv_conf(&text);
            prop_assert!(resolver.search.iter().all(|domain| domain.as_str().len() <= 253));
        }
    }
}
