//! How the configuration of `cnv-bridge` is written, and what it may say. Names are those of the reference plugin's
//! documentation.

use std::net::IpAddr;

use cni::{Code, Dns, Error, Ipam, Request};
use net_types::{IfName, Mac, VlanId};
use netlink::VlanRange;
use serde::Deserialize;

use super::super::gateway;
use super::{Config, Gateway, SourceCheck};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    bridge: Option<String>,
    #[serde(default)]
    enable_vlan_filtering: bool,
    vlan: Option<i64>,
    #[serde(default)]
    vlan_trunk: Vec<RawTrunk>,
    uplink: Option<String>,
    preserve_default_vlan: Option<bool>,
    #[serde(default, rename = "macspoofchk")]
    mac_spoof_check: bool,
    #[serde(default, rename = "ipspoofchk")]
    source_check: RawSourceCheck,
    mtu: Option<i64>,
    #[serde(default)]
    hairpin_mode: bool,
    #[serde(default)]
    port_isolation: bool,
    #[serde(default)]
    promisc_mode: bool,
    #[serde(default)]
    is_gateway: bool,
    #[serde(default)]
    is_default_gateway: bool,
    #[serde(default)]
    force_address: bool,
    #[serde(default, rename = "enabledad")]
    detect_duplicates: bool,
    #[serde(default)]
    disable_container_interface: bool,
    #[serde(default)]
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    #[serde(default)]
    dns: Dns,
    #[serde(default)]
    runtime_config: Addresses,
    #[serde(default)]
    args: Args,
}

#[derive(Deserialize)]
struct RawTrunk {
    id: Option<i64>,
    #[serde(rename = "minID")]
    min: Option<i64>,
    #[serde(rename = "maxID")]
    max: Option<i64>,
}

/// `true`, `false`, or a list of addresses.
#[derive(Deserialize)]
#[serde(untagged)]
enum RawSourceCheck {
    Switch(bool),
    List(Vec<String>),
}

impl Default for RawSourceCheck {
    fn default() -> Self {
        Self::Switch(false)
    }
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    cni: Addresses,
}

#[derive(Default, Deserialize)]
struct Addresses {
    mac: Option<String>,
}

/// Keys that are honoured.
const KEYS: [&str; 19] = [
    "bridge",
    "enableVlanFiltering",
    "vlan",
    "vlanTrunk",
    "uplink",
    "preserveDefaultVlan",
    "macspoofchk",
    "ipspoofchk",
    "mtu",
    "hairpinMode",
    "portIsolation",
    "promiscMode",
    "isGateway",
    "isDefaultGateway",
    "forceAddress",
    "enabledad",
    "disableContainerInterface",
    "ipMasq",
    "ipMasqBackend",
];

/// The smallest MTU Ethernet devices take (`ETH_MIN_MTU`) and the largest of a veth (`ETH_MAX_MTU`), in bytes.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// Most entries in `vlanTrunk`: one for each VLAN there is.
const MAX_TRUNK: usize = 4094;

/// Most addresses in `ipspoofchk`: each costs every packet of the port a comparison.
const MAX_SOURCES: usize = 32;

impl TryFrom<&Request> for Config {
    type Error = Error;

    fn try_from(request: &Request) -> Result<Self, Error> {
        request.args.expect_only(&["MAC"])?;
        let raw: Raw = request.config_with_lists(&KEYS, &[("vlanTrunk", &["id", "minID", "maxID"])])?;
        let config = Self::from_raw(raw, request)?;
        config.refuse_contradictions()?;
        Ok(config)
    }
}

impl Config {
    fn from_raw(raw: Raw, request: &Request) -> Result<Self, Error> {
        let Raw {
            bridge,
            enable_vlan_filtering,
            vlan,
            vlan_trunk,
            uplink,
            preserve_default_vlan,
            mac_spoof_check,
            source_check,
            mtu,
            hairpin_mode,
            port_isolation,
            promisc_mode,
            is_gateway,
            is_default_gateway,
            force_address,
            detect_duplicates,
            disable_container_interface,
            ip_masq,
            ip_masq_backend,
            dns,
            runtime_config,
            args,
        } = raw;
        let bridge = bridge.filter(|name| !name.is_empty()).unwrap_or_else(|| "cni0".to_owned());
        let vlan = vlan_of("vlan", vlan.filter(|vlan| *vlan != 0))?;
        if (vlan.is_some() || !vlan_trunk.is_empty()) && preserve_default_vlan.is_none() {
            tracing::warn!(
                "preserveDefaultVlan is not set next to vlan: the port stays in the bridge's default VLAN too; \
                 set it to false to leave that VLAN, or to true to keep this without a warning"
            );
        }
        let has_ipam = Ipam::of(request)?.is_some();
        if ip_masq && !has_ipam {
            tracing::warn!("ipMasq does nothing without ipam: no address of the pod is known");
        }
        Ok(Self {
            bridge: name_of("bridge", &bridge)?,
            enable_vlan_filtering,
            vlan,
            trunk: trunk_of(&vlan_trunk)?,
            uplink: uplink.map(|uplink| name_of("uplink", &uplink)).transpose()?,
            preserve_default_vlan: preserve_default_vlan.unwrap_or(true),
            mac_spoof_check,
            source_check: source_check_of(source_check, has_ipam)?,
            mtu: mtu_of(mtu)?,
            mac: wanted_mac(&runtime_config, &args.cni, request)?,
            hairpin: hairpin_mode,
            isolated: port_isolation,
            promiscuous: promisc_mode,
            gateway: match (is_gateway, is_default_gateway) {
                (_, true) => Gateway::DefaultRoute,
                (true, false) => Gateway::Address,
                (false, false) => Gateway::No,
            },
            force_address,
            detect_duplicates,
            keep_pod_end_down: disable_container_interface,
            has_ipam,
            masquerade: masquerade_of(ip_masq, ip_masq_backend.as_deref())? && has_ipam,
            dns,
        })
    }

    fn refuse_contradictions(&self) -> Result<(), Error> {
        if self.hairpin && self.promiscuous {
            // A frame would come back to the guest that sent it.
            return Err(invalid("hairpinMode", "is set together with promiscMode; allowed: one of them"));
        }
        if self.uplink.is_some() && !self.needs_vlan_filtering() {
            return Err(invalid("uplink", "is set without a VLAN; allowed: with vlan or vlanTrunk"));
        }
        if let (Some(vlan), true) = (self.vlan, self.gateway > Gateway::No)
            && let Err(error) = gateway::name(&self.bridge, vlan)
        {
            return Err(invalid("bridge", &format!("with vlan {vlan} and a gateway: {error}")));
        }
        if self.keep_pod_end_down && self.has_ipam {
            return Err(invalid(
                "disableContainerInterface",
                "is set together with ipam; allowed: one of them",
            ));
        }
        Ok(())
    }
}

/// The capability is the most particular, the environment the least.
fn wanted_mac(capability: &Addresses, args: &Addresses, request: &Request) -> Result<Option<Mac>, Error> {
    let given = [
        ("runtimeConfig.mac", capability.mac.as_deref()),
        ("args.cni.mac", args.mac.as_deref()),
        ("CNI_ARGS MAC", request.args.get("MAC")),
    ];
    let given =
        given.into_iter().find_map(|(field, text)| Some((field, text.filter(|text| !text.is_empty())?)));
    given.map(|(field, text)| mac_of(field, text)).transpose()
}

fn name_of(field: &str, name: &str) -> Result<IfName, Error> {
    name.parse().map_err(|error: net_types::IfNameError| invalid(field, &error.to_string()))
}

fn trunk_of(list: &[RawTrunk]) -> Result<Vec<VlanRange>, Error> {
    if list.len() > MAX_TRUNK {
        let what = format!("lists {} entries; allowed: up to {MAX_TRUNK}", list.len());
        return Err(invalid("vlanTrunk", &what));
    }
    let entries: Vec<_> = list.iter().enumerate().map(trunk_entry).collect::<Result<_, _>>()?;
    Ok(entries.into_iter().flatten().collect())
}

/// An entry says one VLAN, a range, or both.
fn trunk_entry((index, trunk): (usize, &RawTrunk)) -> Result<Vec<VlanRange>, Error> {
    let field = |name: &str| format!("vlanTrunk[{index}].{name}");
    let one = |name: &str, id: Option<i64>| vlan_of(&field(name), id);
    let vlan = one("id", trunk.id)?.map(VlanRange::from);
    let range = match (one("minID", trunk.min)?, one("maxID", trunk.max)?) {
        (Some(first), Some(last)) if first <= last => Some(VlanRange { first, last }),
        (Some(first), Some(last)) => {
            let what = format!("is {first}, above maxID {last}; allowed: up to maxID");
            return Err(invalid(&field("minID"), &what));
        }
        (Some(_), None) => return Err(invalid(&field("maxID"), "is missing next to minID")),
        (None, Some(_)) => return Err(invalid(&field("minID"), "is missing next to maxID")),
        (None, None) if vlan.is_none() => {
            return Err(invalid(&field("id"), "is missing; allowed: id, or minID and maxID"));
        }
        (None, None) => None,
    };
    Ok(vlan.into_iter().chain(range).collect())
}

fn vlan_of(field: &str, vlan: Option<i64>) -> Result<Option<VlanId>, Error> {
    let checked = |id: i64| {
        let known = u64::try_from(id).ok().and_then(|id| VlanId::try_from(id).ok());
        let off = if field == "vlan" { "0 (off), " } else { "" };
        known.ok_or_else(|| invalid(field, &format!("is {id}; allowed: {off}1 to 4094")))
    };
    vlan.map(checked).transpose()
}

fn source_check_of(check: RawSourceCheck, has_ipam: bool) -> Result<SourceCheck, Error> {
    let list = match check {
        RawSourceCheck::Switch(false) => return Ok(SourceCheck::Off),
        RawSourceCheck::Switch(true) if has_ipam => return Ok(SourceCheck::Assigned),
        RawSourceCheck::Switch(true) => {
            let what = "is true without ipam, so no address is known; allowed: a list of addresses";
            return Err(invalid("ipspoofchk", what));
        }
        RawSourceCheck::List(list) => list,
    };
    if list.len() > MAX_SOURCES {
        let what = format!("lists {} addresses; allowed: up to {MAX_SOURCES}", list.len());
        return Err(invalid("ipspoofchk", &what));
    }
    let address = |(index, text): (usize, &String)| {
        let address = text.parse::<IpAddr>().ok();
        let usable = address.filter(|address| !address.is_unspecified() && !address.is_multicast());
        usable.ok_or_else(|| {
            invalid(
                &format!("ipspoofchk[{index}]"),
                &format!("is {text:?}; allowed: IPv4 or IPv6 addresses of one host"),
            )
        })
    };
    Ok(SourceCheck::Listed(list.iter().enumerate().map(address).collect::<Result<_, _>>()?))
}

fn mtu_of(mtu: Option<i64>) -> Result<Option<u32>, Error> {
    match mtu {
        None | Some(0) => Ok(None),
        Some(mtu) => {
            let fitting = u32::try_from(mtu).ok().filter(|mtu| MTU.contains(mtu));
            let allowed = || format!("is {mtu}; allowed: 0 (the bridge's), {} to {}", MTU.start(), MTU.end());
            fitting.map(Some).ok_or_else(|| invalid("mtu", &allowed()))
        }
    }
}

fn mac_of(field: &str, text: &str) -> Result<Mac, Error> {
    let mac: Mac = text.parse().map_err(|error: net_types::MacError| invalid(field, &error.to_string()))?;
    if mac.is_unicast() {
        return Ok(mac);
    }
    Err(invalid(field, &format!("is {mac}, which no interface can have; allowed: unicast addresses")))
}

/// Both backends mean the same here: the rules are nf_tables', which every kernel with iptables' NAT has too.
fn masquerade_of(wanted: bool, backend: Option<&str>) -> Result<bool, Error> {
    match backend {
        None | Some("" | "nftables") => {}
        Some("iptables") => {
            if wanted {
                tracing::warn!(
                    "ipMasqBackend is iptables: masquerading all the same by nftables, which works beside iptables"
                );
            }
        }
        Some(other) => {
            return Err(invalid("ipMasqBackend", &format!("is {other:?}; allowed: nftables, iptables")));
        }
    }
    Ok(wanted)
}

fn invalid(field: &str, what: &str) -> Error {
    Error::new(Code::InvalidConfig, format!("{field}: {what}"))
}
