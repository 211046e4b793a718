//! What the cluster knows of every address, for `macpool inspect`: read once, consistently, from records and objects.

use std::collections::{BTreeMap, HashMap};

use net_types::Mac;
use serde::Deserialize;

use super::api::{Api, ApiError};
use super::config;
use super::objects;
use super::reflect::{ReflectError, read_list};
use super::seen::sighting_of;
use crate::block::BlockId;
use crate::index::{Index, Place, Sighting};
use crate::inspect::{Entry, State, network};
use crate::range_config::{self, NAME};
use crate::record::Record;
use crate::segment::{Domains, Nic};
use crate::store::{Owner, may_be};

/// A `MacBlock`, with what tells its age.
#[derive(Deserialize)]
struct Block {
    metadata: Dated,
    spec: Record,
}

/// The metadata of an object, with what tells its age.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Dated {
    namespace: String,
    name: String,
    creation_timestamp: Option<String>,
    managed_fields: Vec<Written>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Written {
    time: Option<String>,
}

impl Dated {
    /// When it was written last. Times of one form and zone, so the greatest is the latest.
    fn written(self) -> Option<String> {
        let times = self.managed_fields.into_iter().filter_map(|written| written.time);
        times.max().or(self.creation_timestamp)
    }
}

#[derive(Deserialize)]
struct Object {
    metadata: Dated,
}

/// An object's NIC.
struct Use {
    place: Place,
    key: String,
    since: Option<String>,
    nic: Nic,
}

impl Use {
    fn owner(&self) -> Owner {
        Owner { kind: self.place.kind(), key: self.key.as_str().into() }
    }
}

/// Each address with an entry per reason why it is not free, in no order.
pub(crate) async fn entries(
    client: kube::Client,
    namespace: &str,
    domains: Option<Domains>,
) -> Result<Vec<Entry>, ReflectError> {
    let api = Api::new(client);
    let mut blocks: HashMap<BlockId, (Record, Option<String>)> = HashMap::new();
    read_list(&api, objects::BLOCKS, |json| {
        let Block { metadata, spec } = serde_json::from_slice(json)?;
        if let Ok(block) = metadata.name.parse() {
            blocks.insert(block, (spec, metadata.written()));
        }
        Ok(())
    })
    .await?;
    let mut index = Index::default();
    let mut uses: BTreeMap<Mac, Vec<Use>> = BTreeMap::new();
    for (place, path) in [(Place::Vm, objects::VMS), (Place::Vmi, objects::VMIS), (Place::Pod, objects::PODS)]
    {
        read_list(&api, path, |json| {
            let Object { metadata: Dated { namespace, name, creation_timestamp, .. } } =
                serde_json::from_slice(json)?;
            let key = format!("{namespace}/{name}");
            let sighting = sighting_of(place, json).unwrap_or_else(|error| {
                tracing::warn!(path, key, %error, "an object cannot be read");
                Sighting::default()
            });
            for nic in &sighting.nics {
                let (key, since, nic) = (key.clone(), creation_timestamp.clone(), nic.clone());
                uses.entry(nic.mac).or_default().push(Use { place, key, since, nic });
            }
            index.put(place, &key, sighting, 0);
            Ok(())
        })
        .await?;
    }
    index.set_domains(match domains {
        Some(domains) => domains,
        None => configured(&api, namespace).await?,
    });
    let mut entries = Vec::new();
    for (block, (record, since)) in &blocks {
        for offset in record.taken.iter() {
            let mac = block.mac(offset);
            let users = uses.get(&mac).map(Vec::as_slice).unwrap_or_default();
            let entry = |state| Entry { since: since.clone(), ..Entry::new(mac, state) };
            match record.claims.get(&offset) {
                // Its claim is fulfilled.
                Some(claim) if users.iter().any(|user| may_be(claim, &user.owner().to_string())) => {}
                Some(claim) => {
                    entries.push(entry(State::Claimed).of(claim.strip_prefix("pod ").unwrap_or(claim)));
                }
                None if users.is_empty() => entries.push(entry(State::Reserved)),
                None => {}
            }
        }
    }
    entries.extend(uses.into_values().flatten().map(|user| in_use(user, &index)));
    for entry in &mut entries {
        let (block, _) = BlockId::of(entry.mac);
        entry.block = Some(block.to_string());
        entry.replica = blocks.get(&block).and_then(|(record, _)| Some(record.holder.as_ref()?.to_string()));
    }
    Ok(entries)
}

fn in_use(user: Use, index: &Index) -> Entry {
    let owner = user.owner();
    let Use { place, key, since, nic } = user;
    let kind = match place {
        Place::Vm => "VirtualMachine",
        Place::Vmi => "VirtualMachineInstance",
        Place::Pod => "Pod",
    };
    let state = if index.rivals(&owner, &nic).is_empty() { State::InUse } else { State::Duplicate };
    Entry { kind: Some(kind), since, network: network(&nic.segment), ..Entry::new(nic.mac, state).of(&key) }
}

/// The domains that the ConfigMap names.
async fn configured(api: &Api, namespace: &str) -> Result<Domains, ReflectError> {
    let data = match config::data(api, namespace).await {
        Ok(data) => data,
        Err(ApiError::NotFound { .. }) => {
            tracing::warn!(
                namespace,
                "there is no ConfigMap {NAME}: networks are taken to meet (--namespace says where it is)"
            );
            return Ok(Domains::default());
        }
        Err(error) => return Err(error.into()),
    };
    Ok(range_config::domains(&data).unwrap_or_else(|error| {
        tracing::warn!(%error, "ConfigMap {NAME} is not read: networks are taken to meet");
        Domains::default()
    }))
}
