//! CHECK and STATUS.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::net::Ipv6Addr;

use net_types::Mac;
use nf_tables::{FoundRule, FoundTable, NfTables, same};

use crate::attach::BRIDGE_MAC;
use crate::config::{Config, Subnet};
use crate::error::MasqueradeError;
use crate::pod::{Pod, Target};
use crate::ruleset::{Plan, Rule, Ruleset};
use crate::settings;

/// Compares links, settings and rules with what ADD makes; fails with the first difference.
pub(crate) fn check(config: &Config, pod: &Pod) -> Result<(), MasqueradeError> {
    let target = pod.target(config)?;
    check_links(pod, &target)?;
    check_settings(pod, &target)?;
    check_rules(&pod.nf_tables()?, &Ruleset::new(&target.plan(config)))
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

fn check_rules(nf_tables: &NfTables, ruleset: &Ruleset) -> Result<(), MasqueradeError> {
    let table = ruleset.table();
    let named_table = format_args!("table {}", table.name);
    let FoundTable { holds, is_dormant } =
        nf_tables.table(table)?.ok_or_else(|| differs(&named_table, "absent", "present"))?;
    if is_dormant {
        return Err(differs(&named_table, "dormant", "in force"));
    }
    let found = nf_tables.chains(table)?;
    let named = |name: &str| format!("chain {name} of {}", table.name);
    for chain in ruleset.chains() {
        if !found.iter().any(|found| found.name == chain.name && found.is(&chain)) {
            return Err(differs(&named(chain.name), "absent or changed", "as ADD made it"));
        }
    }
    if let Some(more) = found.iter().find(|found| ruleset.chains().all(|chain| chain.name != found.name)) {
        return Err(differs(&named(&more.name), "present", "absent"));
    }
    if usize::try_from(holds) != Ok(found.len()) {
        return Err(differs(&format_args!("more than chains in {}", table.name), "present", "absent"));
    }
    ruleset.chains().try_for_each(|chain| {
        let expected: Vec<_> = ruleset.rules.iter().filter(|rule| rule.chain == chain.name).collect();
        check_chain(&nf_tables.rules(&chain)?, &expected, &named(chain.name))
    })
}

fn check_chain(found: &[FoundRule], expected: &[&Rule], chain: &str) -> Result<(), MasqueradeError> {
    let is = |found: &FoundRule, rule: &Rule| {
        found.comment == rule.comment && same(&found.expressions, &rule.to_kernel().expressions)
    };
    if found.len() == expected.len() && found.iter().zip(expected).all(|(found, rule)| is(found, rule)) {
        return Ok(());
    }
    if let Some(lost) = expected.iter().find(|rule| !found.iter().any(|found| is(found, rule))) {
        let what = format!("rule {:?} in {chain}", lost.comment);
        return Err(differs(&what, "absent or changed", "as ADD made it"));
    }
    if let Some(more) = found.iter().find(|found| !expected.iter().any(|rule| is(found, rule))) {
        let comment = if more.comment.is_empty() { "without a comment" } else { &more.comment };
        return Err(differs(&format_args!("rule {comment:?} in {chain}"), "present", "absent"));
    }
    Err(differs(&format_args!("order or number of the rules in {chain}"), "changed", "as ADD made it"))
}

/// An ADD could work now: there are taps, and the kernel can do what the rules need.
pub(crate) fn status(config: &Config) -> Result<(), MasqueradeError> {
    const DEVICE: &str = "/dev/net/tun";
    let opened = OpenOptions::new().read(true).write(true).open(DEVICE);
    opened.map(drop).map_err(|source| MasqueradeError::Device { path: DEVICE, source })?;
    // The names are any: the kernel looks, and changes nothing.
    let (pod, bridge) = ("eth0".parse()?, "k6t-eth0".parse()?);
    let subnets: [Subnet; 2] = [config.v4, config.v6];
    let plan =
        Plan { pod: &pod, bridge: &bridge, subnets: &subnets, rules: &config.rules, takes_loopback: true };
    Ok(NfTables::open()?.try_out(&Ruleset::new(&plan).replacement())?)
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
