//! `NetworkAttachmentDefinition`: a CNI configuration under a name.
//!
//! Source: the Network Plumbing Working Group's de-facto standard, 1.3, section 3. What the configuration says
//! is the CNI runtime's business; here it stays text.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::names::{self, NameError};

/// `kind` of a NetworkAttachmentDefinition.
pub const KIND: &str = "NetworkAttachmentDefinition";
/// `apiVersion` of a NetworkAttachmentDefinition.
pub const API_VERSION: &str = "k8s.cni.cncf.io/v1";

/// The annotation that names what a network's devices are handed out as.
const RESOURCE: &str = "k8s.v1.cni.cncf.io/resourceName";

/// What a NetworkAttachmentDefinition is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NadName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl NadName {
    /// Reads `<namespace>/<name>`, or `<name>` in `namespace`, as `multus.networkName` has them.
    pub fn parse(text: &str, namespace: &str) -> Result<Self, NameError> {
        let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
        Ok(Self { namespace: names::label(namespace)?.to_owned(), name: names::subdomain(name)?.to_owned() })
    }
}

impl fmt::Display for NadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A NetworkAttachmentDefinition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nad {
    /// What it is called.
    pub name: NadName,
    /// `spec.config`: a CNI configuration or configuration list in JSON, unread.
    pub config: String,
    /// What a device plugin hands out for this network (annotation `k8s.v1.cni.cncf.io/resourceName`), such as
    /// `openshift.io/nics`.
    pub resource: Option<String>,
}

/// Why a document is no NetworkAttachmentDefinition we can use.
#[derive(Debug, thiserror::Error)]
pub enum NadError {
    /// Another kind or version.
    #[error("apiVersion {api_version:?}, kind {kind:?}; expected {API_VERSION} {KIND}")]
    Kind {
        /// As given.
        api_version: String,
        /// As given.
        kind: String,
    },
    /// A field has the wrong type.
    #[error("{path}")]
    Shape {
        /// Which.
        path: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// `metadata.name` or `metadata.namespace`.
    #[error("metadata")]
    Name(#[from] NameError),
    /// No configuration. Multus would look for a file on the node's disk; nothing here does.
    #[error("{0} has no spec.config")]
    NoConfig(NadName),
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    api_version: String,
    kind: String,
    metadata: RawMetadata,
    spec: RawSpec,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawMetadata {
    name: String,
    namespace: Option<String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawSpec {
    config: Option<String>,
}

impl TryFrom<Value> for Nad {
    type Error = NadError;

    fn try_from(document: Value) -> Result<Self, NadError> {
        let Raw { api_version, kind, metadata, spec } =
            serde_path_to_error::deserialize(document).map_err(|error| NadError::Shape {
                path: error.path().to_string(),
                source: error.into_inner(),
            })?;
        if api_version != API_VERSION || kind != KIND {
            return Err(NadError::Kind { api_version, kind });
        }
        let namespace = metadata.namespace.as_deref().unwrap_or("default");
        let name = NadName {
            namespace: names::label(namespace)?.to_owned(),
            name: names::subdomain(&metadata.name)?.to_owned(),
        };
        match spec.config.filter(|config| !config.trim().is_empty()) {
            Some(config) => {
                let resource = metadata.annotations.get(RESOURCE).filter(|name| !name.is_empty()).cloned();
                Ok(Self { name, config, resource })
            }
            None => Err(NadError::NoConfig(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nad(text: &str) -> Result<Nad, NadError> {
        Nad::try_from(crate::yaml::documents(text).unwrap().remove(0))
    }

    #[test]
    fn the_manuals_definition_is_read() {
        let text = "
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: bridge-network
  annotations: {k8s.v1.cni.cncf.io/resourceName: bridge.network.kubevirt.io/br1}
spec:
  config: '{\"cniVersion\":\"0.3.1\",\"name\":\"bridge-network\",\"type\":\"cnv-bridge\",\"bridge\":\"br1\"}'
";
        let nad = nad(text).unwrap();
        assert_eq!(nad.name.to_string(), "default/bridge-network");
        assert!(nad.config.contains("\"type\":\"cnv-bridge\""));
        assert_eq!(nad.resource.as_deref(), Some("bridge.network.kubevirt.io/br1"));
    }

    #[test]
    fn what_is_no_definition_is_refused() {
        let head = "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\n";
        assert!(matches!(nad("apiVersion: v1\nkind: Secret\n"), Err(NadError::Kind { .. })));
        assert!(matches!(nad(&format!("{head}metadata: {{name: A}}\n")), Err(NadError::Name(_))));
        assert!(matches!(nad(&format!("{head}metadata: {{name: a}}\n")), Err(NadError::NoConfig(_))));
        let shape =
            nad(&format!("{head}metadata: {{name: a}}\nspec: {{config: {{type: x}}}}\n")).unwrap_err();
        assert_eq!(shape.to_string(), "spec.config");
    }

    #[test]
    fn a_network_name_may_carry_a_namespace() {
        assert_eq!(NadName::parse("blue", "vms").unwrap().to_string(), "vms/blue");
        assert_eq!(NadName::parse("default/blue", "vms").unwrap().to_string(), "default/blue");
        for name in ["", "/", "a/b/c", "../x", "a/", "/a"] {
            assert!(NadName::parse(name, "vms").is_err(), "{name:?}");
        }
    }
}
