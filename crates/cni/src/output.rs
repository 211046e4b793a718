//! Results and errors as JSON, in the version the caller speaks.

use serde_json::{Map, Value, json};

use crate::{Code, Error, Success, Version};

/// `success` as `version` has it. Members that came later are left out.
pub(crate) fn success(success: &Success, version: Version) -> Result<Value, Error> {
    let mut value = if version < Version::V0_3_0 { one_per_family(success)? } else { newest(success)? };
    if let Value::Object(members) = &mut value {
        if version >= Version::V0_3_0 && version < Version::V1_0_0 {
            each(members, "ips", |ip| {
                let is_v6 =
                    ip.get("address").and_then(Value::as_str).is_some_and(|address| address.contains(':'));
                ip.insert("version".to_owned(), if is_v6 { "6" } else { "4" }.into());
            });
        }
        if version < Version::V1_1_0 {
            each(members, "interfaces", |interface| keep(interface, &["name", "mac", "sandbox"]));
            each(members, "routes", |route| keep(route, &["dst", "gw"]));
        }
        members.insert("cniVersion".to_owned(), version.as_str().into());
        // Runtimes written for 0.x expect the member to be there.
        members.entry("dns").or_insert_with(|| json!({}));
    }
    Ok(value)
}

/// `error` as `version` has it.
pub(crate) fn error(error: &Error, version: Version) -> Value {
    let Error { code, msg, details } = error;
    let mut value = json!({"cniVersion": version.as_str(), "code": code, "msg": msg});
    if !details.is_empty() {
        value["details"] = details.as_str().into();
    }
    value
}

fn newest(success: &Success) -> Result<Value, Error> {
    serde_json::to_value(success).map_err(|error| Error::from_error(Code::Io, &error))
}

/// 0.1.0 and 0.2.0: at most one address per family, each with its routes.
fn one_per_family(success: &Success) -> Result<Value, Error> {
    let mut members = Map::new();
    for (key, is_v6) in [("ip4", false), ("ip6", true)] {
        let mut of_family = success.ips.iter().filter(|ip| ip.address.is_ipv6() == is_v6);
        let Some(ip) = of_family.next() else { continue };
        if of_family.next().is_some() {
            return Err(Error::new(Code::IncompatibleVersion, format!("more than one address for {key}"))
                .details("cniVersion 0.2.0 carries one; use 0.3.0 or later"));
        }
        let routes: Vec<_> = success
            .routes
            .iter()
            .filter(|route| route.dst.is_ipv6() == is_v6)
            .map(|route| match route.gw {
                Some(gw) => json!({"dst": route.dst, "gw": gw}),
                None => json!({"dst": route.dst}),
            })
            .collect();
        let mut config = json!({"ip": ip.address});
        if let Some(gateway) = ip.gateway {
            config["gateway"] = json!(gateway);
        }
        if !routes.is_empty() {
            config["routes"] = routes.into();
        }
        members.insert(key.to_owned(), config);
    }
    if let Some(dns) = newest(success)?.get("dns") {
        members.insert("dns".to_owned(), dns.clone());
    }
    Ok(members.into())
}

fn each(members: &mut Map<String, Value>, list: &str, change: impl Fn(&mut Map<String, Value>)) {
    if let Some(Value::Array(items)) = members.get_mut(list) {
        items.iter_mut().filter_map(Value::as_object_mut).for_each(change);
    }
}

fn keep(members: &mut Map<String, Value>, known: &[&str]) {
    members.retain(|key, _| known.contains(&key.as_str()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Interface, Ip, Route};

    fn example() -> Success {
        Success {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:01".into(),
                mtu: Some(1500),
                sandbox: "/run/netns/x".into(),
                ..Interface::default()
            }],
            ips: vec![
                Ip {
                    interface: Some(0),
                    address: "10.0.0.2/24".parse().unwrap(),
                    gateway: Some("10.0.0.1".parse().unwrap()),
                },
                Ip { interface: Some(0), address: "fd00::2/64".parse().unwrap(), gateway: None },
            ],
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: None,
                mtu: Some(1400),
                advmss: None,
                priority: None,
                table: None,
                scope: None,
            }],
            ..Success::default()
        }
    }

    #[test]
    fn each_version_gets_its_own_shape() {
        let ip4 = json!({"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]});
        let oldest = json!({"cniVersion": "0.2.0", "ip4": ip4, "ip6": {"ip": "fd00::2/64"}, "dns": {}});
        assert_eq!(success(&example(), Version::V0_2_0).unwrap(), oldest);

        let interface = json!({"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x"});
        let ips = json!([
            {"interface": 0, "address": "10.0.0.2/24", "gateway": "10.0.0.1", "version": "4"},
            {"interface": 0, "address": "fd00::2/64", "version": "6"},
        ]);
        let middle = json!({
            "cniVersion": "0.3.1", "interfaces": [interface], "ips": ips,
            "routes": [{"dst": "0.0.0.0/0"}], "dns": {},
        });
        assert_eq!(success(&example(), Version::V0_3_1).unwrap(), middle);

        let newest = success(&example(), Version::V1_1_0).unwrap();
        assert_eq!(newest["interfaces"][0]["mtu"], 1500);
        assert_eq!(newest["routes"][0]["mtu"], 1400);
        assert!(newest["ips"][0].get("version").is_none());
    }

    #[test]
    fn two_addresses_of_a_family_do_not_fit_the_oldest_shape() {
        let mut result = example();
        result.ips.push(result.ips[0].clone());
        assert_eq!(success(&result, Version::V0_1_0).unwrap_err().code, Code::IncompatibleVersion);
    }

    #[test]
    fn a_result_of_any_later_version_can_be_read_back() {
        for version in [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0] {
            let read: Success = serde_json::from_value(success(&example(), version).unwrap()).unwrap();
            assert_eq!(read.ips, example().ips, "{version}");
            assert_eq!(read.interfaces[0].name, "eth0");
        }
    }
}
