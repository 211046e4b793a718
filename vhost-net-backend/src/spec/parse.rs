//! From text to an end: `KIND:PLACE[?option[&option…]]`.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use net_types::Mac;

use super::{EndKind, EndSpec, MAX_QUEUE, MAX_QUEUE_PAIRS, SpecError, TapSettings};
use crate::gate::Policy;
use crate::vhost::{Role, VhostSettings};
use crate::xdp::{Steering, XdpSettings};

const FOR_ALL: &str = "source=MAC, bytes=N, packets=N and observe are allowed for every end";

/// Parses an end.
pub(super) fn end(text: &str) -> Result<EndSpec, SpecError> {
    let (kind, rest) = text.split_once(':').ok_or_else(|| SpecError::Kind(text.to_owned()))?;
    let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
    let mut kind = match kind {
        "vhost-user" => EndKind::VhostUser(vhost_user(text, place)?),
        "tap" => {
            let name = place.parse().map_err(|source| SpecError::Name { end: text.to_owned(), source })?;
            EndKind::Tap(TapSettings { name, netns: None })
        }
        "af_xdp" => EndKind::AfXdp(af_xdp(text, place)?),
        _ => return Err(SpecError::Kind(text.to_owned())),
    };
    let (mut policy, mut observe) = (Policy::default(), false);
    let mut seen = Vec::new();
    for option in options.split('&').filter(|option| !option.is_empty()) {
        let wrong = |allowed| SpecError::Option { end: text.to_owned(), option: option.to_owned(), allowed };
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        if seen.contains(&key) {
            return Err(SpecError::Twice { end: text.to_owned(), option: key.to_owned() });
        }
        seen.push(key);
        match (key, value) {
            ("observe", "") => observe = true,
            ("source", mac) => policy.source = Some(unicast(mac).ok_or_else(|| wrong(UNICAST))?),
            ("bytes", rate) => policy.bytes = Some(self::rate(rate).ok_or_else(|| wrong(RATE))?),
            ("packets", rate) => policy.packets = Some(self::rate(rate).ok_or_else(|| wrong(RATE))?),
            _ => match &mut kind {
                EndKind::VhostUser(settings) => vhost_user_option(settings, key, value),
                EndKind::Tap(settings) => netns_option(&mut settings.netns, key, value),
                EndKind::AfXdp(settings) => af_xdp_option(settings, key, value),
            }
            .map_err(wrong)?,
        }
    }
    if let EndKind::AfXdp(settings) = &kind
        && settings.steering.groups
        && settings.steering.mac.is_none()
    {
        let (option, allowed) =
            ("groups".to_owned(), "only with mac=MAC; without, all frames go to the guest");
        return Err(SpecError::Option { end: text.to_owned(), option, allowed });
    }
    Ok(EndSpec { text: text.to_owned(), kind, policy, observe })
}

const UNICAST: &str = "a unicast MAC address is allowed";
const RATE: &str = "a number of 1 or more, per second, is allowed";

fn unicast(text: &str) -> Option<Mac> {
    text.parse().ok().filter(|mac: &Mac| mac.is_unicast())
}

fn rate(text: &str) -> Option<NonZeroU64> {
    text.parse().ok()
}

fn vhost_user(end: &str, path: &str) -> Result<VhostSettings, SpecError> {
    if path.is_empty() {
        return Err(SpecError::NoPath(end.to_owned()));
    }
    let queue_pairs = NonZeroUsize::MIN;
    Ok(VhostSettings { socket: PathBuf::from(path), role: Role::Server, queue_pairs, mtu: None })
}

fn vhost_user_option(settings: &mut VhostSettings, key: &str, value: &str) -> Result<(), &'static str> {
    match (key, value) {
        ("client", "") => settings.role = Role::Client,
        ("queues", pairs) => {
            let pairs = pairs.parse().ok().filter(|pairs: &NonZeroUsize| pairs.get() <= MAX_QUEUE_PAIRS);
            settings.queue_pairs = pairs.ok_or("1 to 64 queue pairs are allowed")?;
        }
        ("mtu", mtu) => {
            let mtu = mtu.parse().ok().filter(|mtu| *mtu >= 68);
            settings.mtu = Some(mtu.ok_or("an MTU of 68 to 65535 bytes is allowed")?);
        }
        _ => {
            return Err(
                "client, queues=N and mtu=N are allowed; for every end source, bytes, packets, observe",
            );
        }
    }
    Ok(())
}

fn netns_option(netns: &mut Option<PathBuf>, key: &str, value: &str) -> Result<(), &'static str> {
    match key {
        "netns" if value.starts_with('/') => *netns = Some(PathBuf::from(value)),
        "netns" => return Err("the absolute path of a network namespace is allowed"),
        _ => return Err(FOR_ALL),
    }
    Ok(())
}

fn af_xdp(end: &str, place: &str) -> Result<XdpSettings, SpecError> {
    let (interface, queues) = place.split_once(':').unwrap_or((place, "0"));
    let interface = interface.parse().map_err(|source| SpecError::Name { end: end.to_owned(), source })?;
    let wrong = || SpecError::Queues(end.to_owned());
    let number = |text: &str| text.parse().ok().filter(|queue: &u32| *queue <= MAX_QUEUE).ok_or_else(wrong);
    let (first, last) = queues.split_once('-').unwrap_or((queues, queues));
    let queues = (number(first)?, number(last)?);
    if queues.0 > queues.1 || (queues.1 - queues.0) as usize >= MAX_QUEUE_PAIRS {
        return Err(wrong());
    }
    Ok(XdpSettings { interface, queues, steering: Steering::default(), netns: None })
}

fn af_xdp_option(settings: &mut XdpSettings, key: &str, value: &str) -> Result<(), &'static str> {
    let steering = &mut settings.steering;
    match (key, value) {
        ("groups", "") => steering.groups = true,
        ("mac", mac) => steering.mac = Some(unicast(mac).ok_or(UNICAST)?),
        ("vlan", vlan) => {
            steering.vlan = Some(vlan.parse().map_err(|_not_one| "a VLAN of 1 to 4094 is allowed")?);
        }
        ("netns", _) => netns_option(&mut settings.netns, key, value)?,
        _ => {
            return Err(
                "mac=MAC, groups, vlan=ID and netns=PATH are allowed; for every end source, bytes, packets, observe",
            );
        }
    }
    Ok(())
}
