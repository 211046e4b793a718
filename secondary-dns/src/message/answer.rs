//! From question to answer, on hickory's records.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption, NSIDPayload};
use hickory_proto::rr::rdata::{A, AAAA, NS, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name as HickoryName, RData, Record, RecordType};

use super::{error, reply_to};
use crate::name::{Name, NameBuf, labels};
use crate::wire::{Identity, MAX_UDP};
use crate::zone::{AddressSet, Found, Origin, Zone};

/// Answers an ordinary query with exactly one question; anything else is FORMERR.
pub fn answer(zone: &Zone, identity: &Identity, request: &Message) -> Message {
    let mut reply = reply_to(request);
    if let Some(asked) = &request.edns {
        reply.set_edns(edns(asked, identity));
        if asked.version() > 0 {
            reply.metadata.response_code = ResponseCode::BADVERS;
            return reply;
        }
    }
    let [question] = request.queries.as_slice() else { return error(request, ResponseCode::FormErr) };
    let Some(name) = name_buf(question.name()) else { return error(request, ResponseCode::FormErr) };
    let kind = question.query_type();
    let found = if question.query_class() == DNSClass::IN { zone.find(&name) } else { None };
    let Some((origin, found)) = found else {
        reply.metadata.response_code = ResponseCode::Refused;
        return reply;
    };
    if kind == RecordType::OPT || (128..255).contains(&u16::from(kind)) {
        reply.metadata.response_code = ResponseCode::NotImp;
        return reply;
    }
    reply.metadata.authoritative = true;
    reply.answers = records(zone, origin, found, question.name(), kind);
    if reply.answers.is_empty() {
        reply.authorities = vec![soa(zone, origin)];
    } else if kind == RecordType::NS {
        let glue =
            zone.settings().name_servers.iter().map(|a| address(origin.server(), zone.settings().ttl, a));
        reply.additionals = glue.collect();
    }
    if matches!(found, Found::Nothing) {
        reply.metadata.response_code = ResponseCode::NXDomain;
    }
    reply
}

/// The SOA record as the only answer.
pub(super) fn soa_only(zone: &Zone, origin: &Origin, request: &Message) -> Message {
    let mut reply = reply_to(request);
    reply.metadata.authoritative = true;
    reply.answers = vec![soa(zone, origin)];
    reply
}

/// The OPT record that answers one.
pub(super) fn edns(asked: &Edns, identity: &Identity) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(u16::try_from(MAX_UDP).unwrap_or(u16::MAX));
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    let wanted = asked.option(EdnsCode::NSID).is_some() && !identity.nsid.is_empty();
    if let Some(payload) = NSIDPayload::new(identity.nsid.clone()).ok().filter(|_| wanted) {
        edns.options_mut().insert(EdnsOption::NSID(payload));
    }
    edns
}

/// What a name has of a type.
fn records(
    zone: &Zone,
    origin: &Origin,
    found: Found<'_>,
    owner: &HickoryName,
    kind: RecordType,
) -> Vec<Record> {
    let ttl = zone.settings().ttl;
    let data: Vec<RData> = match (found, kind) {
        (Found::Apex, RecordType::SOA | RecordType::ANY) => vec![soa(zone, origin).data],
        (Found::Apex, RecordType::NS) if origin.ns().is_some() => {
            vec![RData::NS(NS(to_hickory(origin.server().as_bytes())))]
        }
        (Found::Addresses(set), RecordType::A) => addresses(set, IpAddr::is_ipv4),
        (Found::Addresses(set), RecordType::AAAA) => addresses(set, IpAddr::is_ipv6),
        (Found::Addresses(set), RecordType::ANY) => match addresses(set, IpAddr::is_ipv4) {
            none if none.is_empty() => addresses(set, IpAddr::is_ipv6),
            v4 => v4,
        },
        (Found::Pointer(name), RecordType::PTR | RecordType::ANY) => {
            let target = [name.as_bytes(), zone.settings().forward.name().as_bytes()].concat();
            vec![RData::PTR(PTR(to_hickory(&target)))]
        }
        _ => Vec::new(),
    };
    let ttl_of = |data: &RData| if matches!(data, RData::SOA(_)) { origin.times().negative_ttl } else { ttl };
    data.into_iter().map(|data| Record::from_rdata(owner.clone(), ttl_of(&data), data)).collect()
}

fn addresses(set: &AddressSet, wanted: fn(&IpAddr) -> bool) -> Vec<RData> {
    set.iter().filter(wanted).map(address_data).collect()
}

fn address(owner: &Name, ttl: u32, address: IpAddr) -> Record {
    Record::from_rdata(to_hickory(owner.as_bytes()), ttl, address_data(address))
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

/// The SOA record of a zone.
pub(crate) fn soa(zone: &Zone, origin: &Origin) -> Record {
    let times = origin.times();
    let signed = |seconds: u32| i32::try_from(seconds).unwrap_or(i32::MAX);
    let data = SOA::new(
        to_hickory(origin.server().as_bytes()),
        to_hickory(origin.contact().as_bytes()),
        zone.serial(),
        signed(times.refresh),
        signed(times.retry),
        signed(times.expire),
        times.negative_ttl,
    );
    Record::from_rdata(to_hickory(origin.name().as_bytes()), times.negative_ttl, RData::SOA(data))
}

/// A name in hickory's form. Ours are valid, so the root that stands for a failure is never seen.
pub fn to_hickory(octets: &[u8]) -> HickoryName {
    HickoryName::from_labels(labels(octets)).unwrap_or_default()
}

/// A name in our form.
fn name_buf(name: &HickoryName) -> Option<NameBuf> {
    let mut octets = Vec::new();
    for label in name.iter() {
        octets.push(u8::try_from(label.len()).ok()?);
        octets.extend_from_slice(label);
    }
    octets.push(0);
    NameBuf::read(&octets, 0)
}
