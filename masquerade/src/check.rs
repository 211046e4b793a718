//! CHECK and STATUS.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::net::Ipv6Addr;

use net_types::Mac;
use nftables::schema::NfListObject;
use nftables::stmt::{AnonymousCounter, Counter, Statement};

use crate::attach::BRIDGE_MAC;
use crate::config::{Config, Subnet};
use crate::error::MasqueradeError;
use crate::pod::{Pod, Target};
use crate::ruleset::{self, Plan};
use crate::{nft, settings};

/// Compares links, settings and rules with what ADD makes; fails with the first difference.
pub(crate) fn check(config: &Config, pod: &Pod) -> Result<(), MasqueradeError> {
    let target = pod.target(config)?;
    check_links(pod, &target)?;
    check_settings(pod, &target)?;
    let table = ruleset::table(&target.names.pod);
    let found = pod.namespace.run(|| nft::list(&table)).map_err(MasqueradeError::Netns)?;
    let found = found?.ok_or_else(|| differs(&table.name, "absent", "present"))?;
    check_rules(found, &ruleset::objects(&target.plan(config)))
}

fn check_links(pod: &Pod, target: &Target) -> Result<(), MasqueradeError> {
    let present = |name: &net_types::IfName| {
        let link = pod.netlink.link_by_name(name.as_str())?;
        link.ok_or_else(|| differs(name, "absent", "present"))
    };
    let bridge = present(&target.names.bridge)?;
    let tap = present(&target.names.tap)?;
    for (link, alias) in [(&bridge, &target.bridge_alias), (&tap, &target.tap_alias)] {
        let name = &link.name;
        expect(format!("alias of {name}"), &link.alias, alias)?;
        expect(format!("MTU of {name}"), link.mtu, target.mtu)?;
        expect(format!("state of {name}"), state(link.up), state(true))?;
    }
    expect(format!("master of {}", tap.name), tap.master.unwrap_or(0), bridge.index)?;
    expect(format!("address of {}", bridge.name), bridge.mac.unwrap_or(Mac::ZERO), BRIDGE_MAC)?;
    let addresses = pod.netlink.addresses(bridge.index)?;
    for subnet in &target.subnets {
        if !addresses.contains(&subnet.gateway) {
            return Err(differs(&format!("{} on {}", subnet.gateway, bridge.name), "absent", "present"));
        }
    }
    if target.has(true) && target.takes_loopback() {
        let accepted = pod.netlink.has_local_route(bridge.index, Ipv6Addr::LOCALHOST)?;
        expect(format!("::1 taken from {}", bridge.name), accepted, true)?;
    }
    Ok(())
}

fn check_settings(pod: &Pod, target: &Target) -> Result<(), MasqueradeError> {
    let (has_v4, has_v6) = (target.has(false), target.has(true));
    let names = &target.names;
    pod.namespace
        .run(|| {
            let mut all = settings::of_links(&names.bridge, &names.tap, has_v4, has_v6);
            all.extend(settings::of_pod(&names.pod, has_v4, has_v6)?);
            for setting in all {
                if let Some((file, found, wanted)) = setting.compare()? {
                    expect(file, found.as_str(), wanted)?;
                }
            }
            Ok(())
        })
        .map_err(MasqueradeError::Netns)?
}

/// Both lists are in nft's order: table, chains, rules by chain.
fn check_rules(
    found: Vec<NfListObject<'static>>,
    expected: &[NfListObject<'static>],
) -> Result<(), MasqueradeError> {
    let found: Vec<_> = found.into_iter().map(stateless).collect();
    for object in expected {
        if !found.contains(object) {
            return Err(differs(&named(object), "absent or changed", "as ADD made it"));
        }
    }
    for object in &found {
        if !expected.contains(object) {
            return Err(differs(&named(object), "present", "absent"));
        }
    }
    if found == expected {
        Ok(())
    } else {
        Err(differs(&"the order of the rules", "changed", "as ADD made it"))
    }
}

/// Without what the kernel fills in: handles, and what counters have counted.
fn stateless(object: NfListObject<'static>) -> NfListObject<'static> {
    match object {
        NfListObject::Table(mut table) => {
            table.handle = None;
            NfListObject::Table(table)
        }
        NfListObject::Chain(mut chain) => {
            chain.handle = None;
            NfListObject::Chain(chain)
        }
        NfListObject::Rule(mut rule) => {
            rule.handle = None;
            for statement in rule.expr.to_mut() {
                if let Statement::Counter(Counter::Anonymous(counted)) = statement {
                    *counted = Some(AnonymousCounter { packets: Some(0), bytes: Some(0) });
                }
            }
            NfListObject::Rule(rule)
        }
        other => other,
    }
}

/// What to call an object of a table.
fn named(object: &NfListObject<'static>) -> String {
    match object {
        NfListObject::Table(table) => format!("table {}", table.name),
        NfListObject::Chain(chain) => format!("chain {} of {}", chain.name, chain.table),
        NfListObject::Rule(rule) => {
            let comment = rule.comment.as_deref().unwrap_or("without a comment");
            format!("rule {comment:?} in chain {} of {}", rule.chain, rule.table)
        }
        _ => "an object that is neither table, chain nor rule".to_owned(),
    }
}

/// An ADD could work now: there are taps, and nft and the kernel can do what the rules need.
pub(crate) fn status(config: &Config) -> Result<(), MasqueradeError> {
    const DEVICE: &str = "/dev/net/tun";
    let opened = OpenOptions::new().read(true).write(true).open(DEVICE);
    opened.map(drop).map_err(|source| MasqueradeError::Device { path: DEVICE, source })?;
    // The names are any: the kernel looks, and changes nothing.
    let (pod, bridge) = ("eth0".parse()?, "k6t-eth0".parse()?);
    let subnets: [Subnet; 2] = [config.v4, config.v6];
    let plan =
        Plan { pod: &pod, bridge: &bridge, subnets: &subnets, rules: &config.rules, takes_loopback: true };
    Ok(nft::dry_run(&ruleset::replacement(&pod, ruleset::objects(&plan)))?)
}

fn state(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

fn expect<T: PartialEq + Display>(what: String, found: T, expected: T) -> Result<(), MasqueradeError> {
    if found == expected { Ok(()) } else { Err(differs(&what, &found.to_string(), &expected.to_string())) }
}

fn differs(what: &dyn Display, found: &str, expected: &str) -> MasqueradeError {
    MasqueradeError::Differs {
        what: what.to_string(),
        found: found.to_owned(),
        expected: expected.to_owned(),
    }
}
