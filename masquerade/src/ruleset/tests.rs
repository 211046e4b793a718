use nftables::schema::NfListObject;
use serde_json::{Value, json};

use super::*;
use crate::config::PortSet;

fn rules(forwarded: Forwarded, istio: bool) -> Rules {
    let reserved = PortSet::tcp("reservedPorts", &[49152, 49153]).unwrap();
    Rules { forwarded, reserved, istio }
}

fn both() -> [Subnet; 2] {
    [Subnet::v4("10.0.2.0/24").unwrap(), Subnet::v6("fd10:0:2::/120").unwrap()]
}

/// The rules of a chain as JSON, one string each.
fn chain(objects: &[NfListObject<'static>], name: &str) -> Vec<String> {
    let rules = objects.iter().filter_map(|object| match object {
        NfListObject::Rule(rule) if rule.chain == name => Some(serde_json::to_string(&rule.expr).unwrap()),
        _ => None,
    });
    rules.collect()
}

fn made(subnets: &[Subnet], rules: &Rules, takes_loopback: bool) -> Vec<NfListObject<'static>> {
    let (pod, bridge) = ("eth0".parse().unwrap(), "k6t-eth0".parse().unwrap());
    objects(&Plan { pod: &pod, bridge: &bridge, subnets, rules, takes_loopback })
}

fn listed(ports: &[i64]) -> Forwarded {
    Forwarded::Listed(PortSet::tcp("ports", ports).unwrap())
}

#[test]
fn reserved_ports_are_left_before_anything_is_forwarded() {
    for forwarded in [Forwarded::All, listed(&[80, 443])] {
        let objects = made(&both(), &rules(forwarded, false), true);
        for name in ["inbound", "local"] {
            let rules = chain(&objects, name);
            assert!(rules[0].contains("[49152") || rules[0].contains("49152,"), "{}", rules[0]);
            assert!(rules[0].ends_with(r#"{"return":null}]"#), "{}", rules[0]);
            assert!(rules[1].contains(r#"{"jump":{"target":"guest"}}"#), "{}", rules[1]);
        }
    }
}

#[test]
fn a_family_that_is_off_has_one_rule_against_it() {
    for (index, other) in [(0, "ip6"), (1, "\"ip\"")] {
        let objects = made(&both()[index..=index], &rules(Forwarded::All, true), true);
        let text = serde_json::to_string(&objects).unwrap();
        assert!(!text.contains(other), "{text}");
        assert_eq!(chain(&objects, "forward").iter().filter(|rule| rule.contains("nfproto")).count(), 1);
    }
}

#[test]
fn every_chain_that_is_jumped_to_exists_and_every_rule_counts_and_says_why() {
    let objects = made(&both(), &rules(listed(&[22]), true), true);
    let chains: Vec<_> = objects
        .iter()
        .filter_map(|object| match object {
            NfListObject::Chain(chain) => Some(chain.name.to_string()),
            _ => None,
        })
        .collect();
    for object in &objects {
        let NfListObject::Rule(rule) = object else { continue };
        assert!(rule.comment.is_some() && chains.contains(&rule.chain.to_string()));
        assert!(rule.expr.contains(&counter()), "{rule:?}");
        for statement in rule.expr.iter() {
            if let Statement::Jump(target) = statement {
                assert!(chains.contains(&target.target.to_string()), "{rule:?}");
            }
        }
    }
}

#[test]
fn loopback_belongs_to_one_interface_of_a_pod() {
    let objects = made(&both(), &rules(Forwarded::All, false), false);
    assert_eq!(chain(&objects, "output"), [""; 0]);
}

#[test]
fn beside_a_proxy_only_ssh_comes_in_directly() {
    let ssh = r#""right":22"#;
    for (forwarded, expected) in [(Forwarded::All, true), (listed(&[22, 80]), true), (listed(&[80]), false)] {
        let objects = made(&both(), &rules(forwarded, true), true);
        let inbound = chain(&objects, "inbound");
        assert_eq!(inbound.len(), if expected { 2 } else { 1 }, "{inbound:?}");
        assert_eq!(inbound.iter().any(|rule| rule.contains(ssh)), expected, "{inbound:?}");
    }
}

#[test]
fn the_proxy_s_own_ports_stay_its_own_unless_ports_are_listed() {
    let all = made(&both(), &rules(Forwarded::All, true), true);
    assert!(chain(&all, "local")[1].contains("15090"), "{:?}", chain(&all, "local"));
    let some = made(&both(), &rules(listed(&[80]), true), true);
    assert_eq!(chain(&some, "local").len(), 2);
    for (objects, expected) in [(all, true), (made(&both(), &rules(Forwarded::All, false), true), false)] {
        let text = serde_json::to_string(&objects).unwrap();
        assert_eq!(text.contains("127.0.0.6"), expected);
    }
}

#[test]
fn a_replacement_begins_by_clearing_its_own_table_only() {
    let pod = "eth0".parse().unwrap();
    let value = serde_json::to_value(removal(&pod)).unwrap();
    let table = json!({"table": {"family": "inet", "name": "guestwire-masquerade-eth0"}});
    assert_eq!(value["nftables"], Value::from(vec![json!({"add": table}), json!({"delete": table})]));
}
