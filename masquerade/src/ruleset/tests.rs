use super::*;
use crate::config::PortSet;

fn rules(forwarded: Forwarded, istio: bool) -> Rules {
    let reserved = PortSet::tcp("reservedPorts", &[49152, 49153]).unwrap();
    Rules { forwarded, reserved, istio }
}

fn both() -> [Subnet; 2] {
    [Subnet::v4("10.0.2.0/24").unwrap(), Subnet::v6("fd10:0:2::/120").unwrap()]
}

/// The rules of a chain.
fn chain(ruleset: &Ruleset, name: &str) -> Vec<Vec<Part>> {
    ruleset.rules.iter().filter(|rule| rule.chain == name).map(|rule| rule.parts.clone()).collect()
}

fn made(subnets: &[Subnet], rules: &Rules, takes_loopback: bool) -> Ruleset {
    let (pod, bridge) = ("eth0".parse().unwrap(), "k6t-eth0".parse().unwrap());
    Ruleset::new(&Plan { pod: &pod, bridge: &bridge, subnets, rules, takes_loopback })
}

fn listed(ports: &[i64]) -> Forwarded {
    Forwarded::Listed(PortSet::tcp("ports", ports).unwrap())
}

fn tcp(first: u16, last: u16) -> Part {
    Ports(Protocol::Tcp, PortRange { first, last })
}

#[test]
fn reserved_ports_are_left_before_anything_is_forwarded() {
    for forwarded in [Forwarded::All, listed(&[80, 443])] {
        let ruleset = made(&both(), &rules(forwarded, false), true);
        for name in ["inbound", "local"] {
            let rules = chain(&ruleset, name);
            assert_eq!(rules[0], [tcp(49152, 49153), Counter, Leave]);
            assert!(rules[1..].iter().all(|rule| rule.ends_with(&[Counter, Jump("guest")])), "{rules:?}");
        }
    }
}

#[test]
fn each_range_of_listed_ports_has_a_rule() {
    let ruleset = made(&both(), &rules(listed(&[443, 80, 81]), false), true);
    let forwarded = chain(&ruleset, "inbound").split_off(1);
    assert_eq!(forwarded, [tcp(80, 81), tcp(443, 443)].map(|ports| vec![ports, Counter, Jump("guest")]));
}

#[test]
fn a_family_that_is_off_has_one_rule_against_it() {
    for (index, off) in [(0, true), (1, false)] {
        let ruleset = made(&both()[index..=index], &rules(Forwarded::All, true), true);
        let against = |rule: &&Rule| rule.parts.contains(&IsFamily { is_v6: off });
        assert_eq!(ruleset.rules.iter().filter(against).count(), 1);
        let text = format!("{ruleset:?}");
        let (own, foreign) = [("10.0.2.2", ["::", "fd10"]), ("fd10:0:2::2", ["127.0.0.", "10.0.2."])][index];
        assert!(text.contains(own) && !foreign.iter().any(|address| text.contains(address)), "{text}");
    }
}

#[test]
fn every_chain_that_is_jumped_to_exists_and_every_rule_counts_and_says_why() {
    let ruleset = made(&both(), &rules(listed(&[22]), true), true);
    let is_chain = |name: &str| CHAINS.iter().any(|(chain, _)| *chain == name);
    for rule in &ruleset.rules {
        assert!(!rule.comment.is_empty() && is_chain(rule.chain), "{rule:?}");
        assert!(rule.parts.contains(&Counter), "{rule:?}");
        for part in &rule.parts {
            if let Jump(target) = part {
                assert!(is_chain(target), "{rule:?}");
            }
        }
    }
}

#[test]
fn loopback_belongs_to_one_interface_of_a_pod() {
    let ruleset = made(&both(), &rules(Forwarded::All, false), false);
    assert_eq!(chain(&ruleset, "output"), [[]; 0]);
}

#[test]
fn beside_a_proxy_only_ssh_comes_in_directly() {
    for (forwarded, expected) in [(Forwarded::All, true), (listed(&[22, 80]), true), (listed(&[80]), false)] {
        let ruleset = made(&both(), &rules(forwarded, true), true);
        let inbound = chain(&ruleset, "inbound").split_off(1);
        let ssh = vec![tcp(SSH, SSH), Counter, Jump("guest")];
        assert_eq!(inbound, if expected { vec![ssh] } else { Vec::new() });
    }
}

#[test]
fn the_proxy_s_own_ports_stay_its_own_unless_ports_are_listed() {
    let all = made(&both(), &rules(Forwarded::All, true), true);
    let own = chain(&all, "local").split_off(1);
    assert_eq!(own.len(), ENVOY_PORTS.len() + 1);
    for (rule, port) in own.iter().zip(ENVOY_PORTS) {
        assert_eq!(*rule, [tcp(port, port), Counter, Leave]);
    }
    let some = made(&both(), &rules(listed(&[80]), true), true);
    assert_eq!(chain(&some, "local").len(), 2);
    for (ruleset, expected) in [(all, true), (made(&both(), &rules(Forwarded::All, false), true), false)] {
        let envoy = Source(IpAddr::from(ENVOY_V4).into());
        assert_eq!(ruleset.rules.iter().any(|rule| rule.parts.contains(&envoy)), expected);
    }
}
