//! `SriovNetwork` → `NetworkAttachmentDefinition`, as the SR-IOV operator writes it.
//!
//! Source: the operator's `api/v1/helper.go` and its template for the configuration. It always writes `vlan` and
//! `vlanQoS`, `ipam` even when empty, and everything else only if it is set; metaPlugins make it a list of plugins.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vm_api::names;

const API_VERSION: &str = "sriovnetwork.openshift.io/v1";
const KIND: &str = "SriovNetwork";

/// Why there is nothing to render.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenderError {
    /// No YAML.
    #[error(transparent)]
    Yaml(#[from] vm_api::yaml::YamlError),
    /// Nothing in the file.
    #[error("there is no {KIND}")]
    Empty,
    /// Another kind or version.
    #[error("apiVersion {api_version:?}, kind {kind:?}; expected {API_VERSION} {KIND}")]
    Kind {
        /// As given.
        api_version: String,
        /// As given.
        kind: String,
    },
    /// A field has the wrong type.
    #[error("{path} cannot be read")]
    Shape {
        /// Which.
        path: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// `metadata.name`, or a namespace.
    #[error("{field} cannot be used")]
    Name {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        source: names::NameError,
    },
    /// A value that no driver takes.
    #[error("spec.{field}: {what}")]
    Value {
        /// Which.
        field: &'static str,
        /// What is wrong, and what is allowed.
        what: String,
    },
    /// A text that should be JSON.
    #[error("spec.{field} is not JSON")]
    Json {
        /// Which.
        field: &'static str,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// The result cannot be printed.
    #[error("the definition cannot be written as YAML: {0}")]
    Write(String),
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Network {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    resource_name: String,
    network_namespace: String,
    vlan: i64,
    #[serde(rename = "vlanQoS")]
    vlan_qos: i64,
    vlan_proto: String,
    spoof_chk: Value,
    trust: Value,
    link_state: String,
    min_tx_rate: Option<i64>,
    max_tx_rate: Option<i64>,
    capabilities: String,
    ipam: String,
    #[serde(rename = "metaPlugins")]
    meta_plugins: String,
    log_level: String,
    log_file: String,
}

/// The plugin's configuration, members in the operator's order.
#[derive(Serialize)]
struct Config<'a> {
    #[serde(rename = "cniVersion", skip_serializing_if = "Option::is_none")]
    cni_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(rename = "type")]
    kind: &'a str,
    vlan: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    spoofchk: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trust: Option<&'static str>,
    #[serde(rename = "vlanQoS")]
    vlan_qos: i64,
    #[serde(rename = "vlanProto", skip_serializing_if = "str::is_empty")]
    vlan_proto: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_tx_rate: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tx_rate: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<Value>,
    #[serde(skip_serializing_if = "str::is_empty")]
    link_state: &'a str,
    #[serde(rename = "logLevel", skip_serializing_if = "str::is_empty")]
    log_level: &'a str,
    #[serde(rename = "logFile", skip_serializing_if = "str::is_empty")]
    log_file: &'a str,
    ipam: Value,
}

/// The version of CNI that the operator writes.
const CNI_VERSION: &str = "1.0.0";

/// The definitions of all networks of a YAML stream, as another.
pub(crate) fn render(text: &str, resource_prefix: &str) -> Result<String, RenderError> {
    let documents = vm_api::yaml::documents(text)?;
    if documents.is_empty() {
        return Err(RenderError::Empty);
    }
    let definitions = documents.into_iter().map(|document| {
        let definition = definition(document, resource_prefix)?;
        vm_api::yaml::to_string(&definition).map_err(|error| RenderError::Write(error.to_string()))
    });
    Ok(definitions.collect::<Result<Vec<_>, _>>()?.join("---\n"))
}

fn definition(document: Value, resource_prefix: &str) -> Result<Value, RenderError> {
    let Network { api_version, kind, metadata, spec } = serde_path_to_error::deserialize(document)
        .map_err(|error| RenderError::Shape { path: error.path().to_string(), source: error.into_inner() })?;
    if api_version != API_VERSION || kind != KIND {
        return Err(RenderError::Kind { api_version, kind });
    }
    let name = |field, text| {
        names::subdomain(text).map_err(|source| RenderError::Name { field, source }).map(str::to_owned)
    };
    let network = name("metadata.name", &metadata.name)?;
    let namespace = [&spec.network_namespace, &metadata.namespace].into_iter().find(|name| !name.is_empty());
    let namespace = name("spec.networkNamespace", namespace.map_or("default", String::as_str))?;
    if spec.resource_name.is_empty() {
        return Err(value("resourceName", "is missing"));
    }
    let resource = format!("{resource_prefix}/{}", spec.resource_name);
    Ok(json!({
        "apiVersion": vm_api::nad::API_VERSION,
        "kind": vm_api::nad::KIND,
        "metadata": {
            "name": network, "namespace": namespace,
            "annotations": {"k8s.v1.cni.cncf.io/resourceName": resource},
        },
        "spec": {"config": config(&network, &spec)?},
    }))
}

fn config(network: &str, spec: &Spec) -> Result<String, RenderError> {
    check(spec)?;
    let plugins = meta_plugins(&spec.meta_plugins)?;
    let alone = plugins.is_empty();
    let config = Config {
        cni_version: alone.then_some(CNI_VERSION),
        name: alone.then_some(network),
        kind: "sriov",
        vlan: spec.vlan,
        spoofchk: switch("spoofChk", &spec.spoof_chk)?,
        trust: switch("trust", &spec.trust)?,
        vlan_qos: spec.vlan_qos,
        vlan_proto: &spec.vlan_proto,
        min_tx_rate: spec.min_tx_rate,
        max_tx_rate: spec.max_tx_rate,
        capabilities: object("capabilities", &spec.capabilities)?,
        link_state: &spec.link_state,
        log_level: &spec.log_level,
        log_file: &spec.log_file,
        ipam: object("ipam", &spec.ipam)?.unwrap_or_else(|| json!({})),
    };
    let text = |value: Result<String, serde_json::Error>| {
        value.map_err(|error| RenderError::Write(error.to_string()))
    };
    let own = text(serde_json::to_string(&config))?;
    if alone {
        return Ok(own);
    }
    let others: Vec<String> = plugins.iter().map(Value::to_string).collect();
    let name = text(serde_json::to_string(network))?;
    Ok(format!(
        "{{\"cniVersion\":\"{CNI_VERSION}\",\"name\":{name},\"plugins\":[{own},{}]}}",
        others.join(",")
    ))
}

/// What the plugin would refuse is refused here, where somebody looks.
fn check(spec: &Spec) -> Result<(), RenderError> {
    match spec.vlan {
        0..=4094 => {}
        4095 => {
            return Err(value("vlan", "is 4095, which IEEE 802.1Q reserves; allowed: 0 (none), 1 to 4094"));
        }
        other => return Err(value("vlan", &format!("is {other}; allowed: 0 (none), 1 to 4094"))),
    }
    if !(0..=7).contains(&spec.vlan_qos) {
        return Err(value("vlanQoS", &format!("is {}; allowed: 0 to 7", spec.vlan_qos)));
    }
    if spec.vlan == 0 && spec.vlan_qos != 0 {
        return Err(value("vlanQoS", &format!("is {} without a vlan", spec.vlan_qos)));
    }
    if !["", "802.1q", "802.1ad"].contains(&spec.vlan_proto.to_ascii_lowercase().as_str()) {
        let what = format!("is {:?}; allowed: \"802.1q\", \"802.1ad\"", spec.vlan_proto);
        return Err(value("vlanProto", &what));
    }
    if !["", "auto", "enable", "disable"].contains(&spec.link_state.as_str()) {
        let what = format!("is {:?}; allowed: \"auto\", \"enable\", \"disable\"", spec.link_state);
        return Err(value("linkState", &what));
    }
    for (field, rate) in [("minTxRate", spec.min_tx_rate), ("maxTxRate", spec.max_tx_rate)] {
        if rate.is_some_and(|rate| u32::try_from(rate).is_err()) {
            return Err(value(field, "allowed: 0 (off) or Mbit/s"));
        }
    }
    match (spec.min_tx_rate, spec.max_tx_rate) {
        (Some(min), Some(max)) if max != 0 && min > max => {
            Err(value("minTxRate", &format!("is {min}, more than maxTxRate {max}")))
        }
        _ => Ok(()),
    }
}

fn switch(field: &'static str, given: &Value) -> Result<Option<&'static str>, RenderError> {
    match given {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) if text == "on" => Ok(Some("on")),
        Value::String(text) if text == "off" => Ok(Some("off")),
        Value::Bool(_) => Err(value(
            field,
            "is a boolean; allowed: \"on\", \"off\", in quotes (YAML takes a bare on for true)",
        )),
        other => Err(value(field, &format!("is {other}; allowed: \"on\", \"off\""))),
    }
}

fn object(field: &'static str, text: &str) -> Result<Option<Value>, RenderError> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let parsed: Value = serde_json::from_str(text).map_err(|source| RenderError::Json { field, source })?;
    if parsed.is_object() { Ok(Some(parsed)) } else { Err(value(field, "must be a JSON object")) }
}

/// `metaPlugins` is a list's inside: objects with commas between them.
fn meta_plugins(text: &str) -> Result<Vec<Value>, RenderError> {
    let field = "metaPlugins";
    let list = format!("[{}]", text.trim());
    let plugins: Vec<Value> =
        serde_json::from_str(&list).map_err(|source| RenderError::Json { field, source })?;
    match plugins.iter().find(|plugin| !plugin["type"].is_string()) {
        None => Ok(plugins),
        Some(other) => Err(value(field, &format!("has {other}, which has no type"))),
    }
}

fn value(field: &'static str, what: &str) -> RenderError {
    RenderError::Value { field, what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: sriovnetwork.openshift.io/v1\nkind: SriovNetwork\n\
        metadata: {name: blue, namespace: openshift-sriov-network-operator}\n";

    fn config_of(spec: &str) -> Result<String, String> {
        let text = format!("{HEAD}spec:\n  resourceName: nics\n  networkNamespace: vms\n{spec}");
        let rendered = render(&text, "openshift.io").map_err(|error| error.to_string())?;
        let nad = vm_api::yaml::documents(&rendered).unwrap().remove(0);
        let annotations = json!({"k8s.v1.cni.cncf.io/resourceName": "openshift.io/nics"});
        assert_eq!(nad["metadata"], json!({"name": "blue", "namespace": "vms", "annotations": annotations}));
        let nad = vm_api::nad::Nad::try_from(nad).unwrap();
        Ok(nad.config)
    }

    #[test]
    fn a_network_becomes_what_the_operator_makes_of_it() {
        let bare = r#"{"cniVersion":"1.0.0","name":"blue","type":"sriov","vlan":0,"vlanQoS":0,"ipam":{}}"#;
        assert_eq!(config_of("").unwrap(), bare);
        let all = "  vlan: 100\n  vlanQoS: 3\n  vlanProto: 802.1q\n  spoofChk: \"on\"\n  trust: \"off\"\n  linkState: auto\n  \
             minTxRate: 0\n  maxTxRate: 100\n  capabilities: '{\"mac\": true}'\n  ipam: '{\"type\": \"static\"}'\n";
        let expected = concat!(
            r#"{"cniVersion":"1.0.0","name":"blue","type":"sriov","vlan":100,"spoofchk":"on","trust":"off","vlanQoS":3,"#,
            r#""vlanProto":"802.1q","min_tx_rate":0,"max_tx_rate":100,"capabilities":{"mac":true},"link_state":"auto","#,
            r#""ipam":{"type":"static"}}"#
        );
        assert_eq!(config_of(all).unwrap(), expected);
    }

    #[test]
    fn meta_plugins_follow_in_a_list() {
        let spec =
            "  metaPlugins: |\n    {\"type\": \"tuning\"},\n    {\"type\": \"vrf\", \"vrfname\": \"red\"}\n";
        let expected = concat!(
            r#"{"cniVersion":"1.0.0","name":"blue","plugins":[{"type":"sriov","vlan":0,"vlanQoS":0,"ipam":{}},"#,
            r#"{"type":"tuning"},{"type":"vrf","vrfname":"red"}]}"#
        );
        assert_eq!(config_of(spec).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (spec, message) in [
            ("  vlan: 4095\n", "spec.vlan: is 4095, which IEEE 802.1Q reserves"),
            ("  vlanQoS: 3\n", "spec.vlanQoS: is 3 without a vlan"),
            ("  spoofChk: on\n", "in quotes"),
            ("  trust: \"yes\"\n", "spec.trust: is \"yes\""),
            ("  linkState: up\n", "spec.linkState: is \"up\""),
            ("  minTxRate: 9\n  maxTxRate: 5\n", "more than maxTxRate 5"),
            ("  ipam: '{'\n", "spec.ipam is not JSON"),
            ("  metaPlugins: '{}'\n", "which has no type"),
            ("  vlan: x\n", "spec.vlan cannot be read"),
        ] {
            let error = config_of(spec).unwrap_err();
            assert!(error.contains(message), "{spec}: {error}");
        }
        assert!(matches!(render("", "x"), Err(RenderError::Empty)));
        assert!(matches!(render("kind: Secret", "x"), Err(RenderError::Kind { .. })));
    }
}
