//! What the secondary networks of a pod want: the annotation `k8s.v1.cni.cncf.io/networks` (Network Plumbing WG,
//! "Kubernetes Network Custom Resource Definition De-facto Standard", 4.1), in its JSON and its comma form.
//!
//! A comma form has no place for an address, so one that gets addresses becomes a JSON form of the same meaning. Other
//! fields of a JSON form, and all other annotations, stay as they are.

use std::borrow::Cow;
use std::fmt;

use net_types::Mac;
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::envelope::{Operation, Request};
use super::{Address, MAX_NICS, Refusal, Want, parse_mac, refuse_shared};
use crate::segment::{Nic, Segment};

/// The annotation's key.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";

/// The fields of a pod that decide. Borrows from the review.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow)]
    status: Status<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status<'a> {
    #[serde(borrow)]
    phase: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow)]
    generate_name: Cow<'a, str>,
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    #[serde(borrow)]
    annotations: Option<One<'a, Networks>>,
    #[serde(borrow)]
    labels: Option<One<'a, KubevirtRole>>,
}

/// The key of the one entry of a map that is read.
trait Key: fmt::Debug {
    const KEY: &'static str;
}

#[derive(Debug)]
struct Networks;
impl Key for Networks {
    const KEY: &'static str = NETWORKS;
}

#[derive(Debug)]
struct KubevirtRole;
impl Key for KubevirtRole {
    const KEY: &'static str = "kubevirt.io";
}

/// One entry of a map of texts; the others, megabytes maybe, are skipped without being kept.
#[derive(Debug)]
struct One<'a, K>(Option<Cow<'a, str>>, std::marker::PhantomData<K>);

impl<'de: 'a, 'a, K: Key> Deserialize<'de> for One<'a, K> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Find<K>(std::marker::PhantomData<K>);
        impl<'de, K: Key> Visitor<'de> for Find<K> {
            type Value = One<'de, K>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = None;
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    if key.0 == K::KEY {
                        found = Some(map.next_value::<Text<'de>>()?.0);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(One(found, self.0))
            }
        }
        deserializer.deserialize_map(Find(std::marker::PhantomData))
    }
}

/// A text, borrowed if it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Pod<'a> {
    fn networks(&self) -> Option<&str> {
        self.metadata.annotations.as_ref()?.0.as_deref().filter(|text| !text.trim().is_empty())
    }

    /// A VM's pod: its addresses are the VM's.
    fn is_launcher(&self) -> bool {
        self.metadata.labels.as_ref().and_then(|labels| labels.0.as_deref()) == Some("virt-launcher")
    }

    /// It has ended, and never runs again.
    fn is_over(&self) -> bool {
        matches!(&*self.status.phase, "Succeeded" | "Failed")
    }

    /// The NICs with addresses it asks for or was given. None of a VM's pod: they are the VM's. Those of one that has ended
    /// meet nobody, and are its own until it is deleted.
    pub(crate) fn nics(&self, namespace: &str) -> Vec<Nic> {
        let annotation = self.networks().filter(|_| !self.is_launcher());
        let entries = annotation.and_then(|text| entries(text).ok()).unwrap_or_default();
        let nic = |entry: &Map<String, Value>| {
            let mac = entry.get("mac")?.as_str()?.parse().ok()?;
            let segment = if self.is_over() { Segment::Alone } else { segment(entry, namespace) };
            Some(Nic { mac, segment })
        };
        entries.iter().filter_map(nic).collect()
    }

    /// The namespace in its metadata.
    pub(crate) fn namespace(&self) -> &str {
        &self.metadata.namespace
    }

    /// The start of the name that will be made up for it.
    pub fn generate_name(&self) -> &str {
        &self.metadata.generate_name
    }
}

/// The networks of a pod and what they want.
#[derive(Debug, Clone, PartialEq)]
pub struct PodWants {
    /// What they want; the index counts the annotation's entries.
    pub wants: Vec<Want>,
    entries: Vec<Map<String, Value>>,
}

impl PodWants {
    /// The annotation with these addresses (entry, address) in it.
    pub fn with(mut self, macs: impl IntoIterator<Item = (usize, Mac)>) -> Result<String, serde_json::Error> {
        for (index, mac) in macs {
            if let Some(entry) = self.entries.get_mut(index) {
                entry.insert("mac".to_owned(), mac.to_string().into());
            }
        }
        serde_json::to_string(&self.entries)
    }
}

/// What the networks of a new pod want; `None` if there is nothing to do.
pub fn wants(request: &Request<'_, Pod<'_>>) -> Result<Option<PodWants>, Refusal> {
    if request.operation != Operation::Create {
        return Ok(None);
    }
    let Some(pod) = &request.object else { return Err(Refusal::Malformed("there is none".into())) };
    match pod.networks() {
        Some(text) if !pod.is_launcher() => parse(text, &request.namespace).map(Some),
        _ => Ok(None),
    }
}

/// The network of an entry in a pod of `namespace`.
fn segment(entry: &Map<String, Value>, namespace: &str) -> Segment {
    let text = |key| entry.get(key).and_then(Value::as_str);
    Segment::network(text("namespace").unwrap_or(namespace), text("name").unwrap_or_default())
}

/// What all annotations of an object may have (TotalAnnotationSizeLimitB in k8s.io/apimachinery's validation), in bytes.
const MAX_ANNOTATIONS: usize = 256 << 10;

fn parse(text: &str, namespace: &str) -> Result<PodWants, Refusal> {
    // Read, it takes many times the memory of its text.
    if text.len() > MAX_ANNOTATIONS {
        return Err(Refusal::Networks(format!("is larger than {MAX_ANNOTATIONS} bytes")));
    }
    let entries = entries(text)?;
    if entries.len() > MAX_NICS {
        return Err(Refusal::TooMany(entries.len()));
    }
    let mut wants = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let nic = entry.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let address = match entry.get("mac") {
            None | Some(Value::Null) => Address::Any,
            Some(Value::String(text)) if text.is_empty() => Address::Any,
            Some(Value::String(text)) => Address::Named(parse_mac(&nic, text)?),
            Some(other) => return Err(Refusal::Networks(format!("\"mac\" is {other}, not a text"))),
        };
        wants.push(Want { index, nic, address, segment: segment(entry, namespace) });
    }
    let named: Vec<_> = wants
        .iter()
        .filter_map(|want| match want.address {
            Address::Named(mac) => Some((want.nic.as_str(), mac)),
            Address::Any | Address::Restored(_) | Address::Carried(_) | Address::Moved(_) => None,
        })
        .collect();
    refuse_shared(named.iter().copied())?;
    Ok(PodWants { wants, entries })
}

/// The entries of either form, as JSON objects.
fn entries(text: &str) -> Result<Vec<Map<String, Value>>, Refusal> {
    // As Multus tells them apart: a list in JSON begins with a bracket.
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).map_err(|error| Refusal::Networks(error.to_string()));
    }
    text.split(',').map(|item| comma_entry(item.trim())).collect()
}

/// `[namespace/]name[@interface]`.
fn comma_entry(item: &str) -> Result<Map<String, Value>, Refusal> {
    let wrong = || Refusal::Networks(format!("{item:?} is not [NAMESPACE/]NAME[@INTERFACE]"));
    let (network, interface) = match item.split_once('@') {
        Some((network, interface)) => (network, Some(interface)),
        None => (item, None),
    };
    let (namespace, name) = match network.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, network),
    };
    let is_name = |text: &str| vm_api::names::subdomain(text).is_ok();
    if !is_name(name) || namespace.is_some_and(|text| !is_name(text)) {
        return Err(wrong());
    }
    if interface.is_some_and(|text| text.is_empty() || text.contains(['@', '/'])) {
        return Err(wrong());
    }
    let mut entry = Map::new();
    entry.insert("name".to_owned(), name.into());
    if let Some(namespace) = namespace {
        entry.insert("namespace".to_owned(), namespace.into());
    }
    if let Some(interface) = interface {
        entry.insert("interface".to_owned(), interface.into());
    }
    Ok(entry)
}
