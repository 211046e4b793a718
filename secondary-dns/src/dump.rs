//! `secondary-dns dump`: the zones that the source yields now, as master files (RFC 1035 section 5), sorted.

use std::io::{self, Write};
use std::net::IpAddr;

use crate::zone::{Origin, Zone, reverse};

/// Writes all zones of a snapshot.
pub fn write(zone: &Zone, out: &mut impl Write) -> io::Result<()> {
    let settings = zone.settings();
    apex(zone, &settings.forward, out)?;
    let mut names: Vec<_> =
        zone.forward_records().map(|(name, addresses)| (name.to_string(), addresses)).collect();
    names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    for (name, addresses) in names {
        for address in addresses.iter() {
            let kind = if matches!(address, IpAddr::V4(_)) { "A" } else { "AAAA" };
            writeln!(out, "{name} {} IN {kind} {address}", settings.ttl)?;
        }
    }
    for (origin, network) in &settings.reverse {
        apex(zone, origin, out)?;
        for (address, name) in zone.reverse_records(*network) {
            let owner = reverse::owner_name(address).map_err(io::Error::other)?;
            writeln!(out, "{owner} {} IN PTR {name}.{}", settings.ttl, settings.forward.name())?;
        }
    }
    Ok(())
}

fn apex(zone: &Zone, origin: &Origin, out: &mut impl Write) -> io::Result<()> {
    let times = origin.times();
    writeln!(out, "$ORIGIN {}", origin.name())?;
    writeln!(
        out,
        "@ {} IN SOA {} {} {} {} {} {} {}",
        times.negative_ttl,
        origin.server(),
        origin.contact(),
        zone.serial(),
        times.refresh,
        times.retry,
        times.expire,
        times.negative_ttl
    )?;
    if origin.ns().is_some() {
        writeln!(out, "@ {} IN NS {}", zone.settings().ttl, origin.server())?;
    }
    Ok(())
}
