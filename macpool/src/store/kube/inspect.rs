//! What the cluster knows of every address, for `macpool inspect`: read once, consistently, from records and objects.

use std::collections::{BTreeMap, HashMap};

use net_types::Mac;

use super::api::Api;
use super::objects::{self, MacBlock, Named};
use super::reflect::{ReflectError, read_list};
use super::seen::macs_of;
use crate::block::BlockId;
use crate::index::Place;
use crate::record::Record;

/// Each address with one line per reason why it is not free.
pub(crate) async fn lines(client: kube::Client) -> Result<BTreeMap<Mac, Vec<String>>, ReflectError> {
    let api = Api::new(client);
    let mut records: HashMap<BlockId, Record> = HashMap::new();
    read_list(&api, objects::BLOCKS, |json| {
        let object: MacBlock = serde_json::from_slice(json)?;
        if let Ok(block) = object.metadata.name.parse() {
            records.insert(block, object.spec);
        }
        Ok(())
    })
    .await?;
    let mut lines: BTreeMap<Mac, Vec<String>> = BTreeMap::new();
    let places = [
        ("vm", Place::Vm, objects::VMS),
        ("vmi", Place::Vmi, objects::VMIS),
        ("pod", Place::Pod, objects::PODS),
    ];
    for (name, place, path) in places {
        read_list(&api, path, |json| {
            let key = serde_json::from_slice::<Named<'_>>(json)?.metadata.key();
            for mac in macs_of(place, json)? {
                lines.entry(mac).or_default().push(format!("in use    {name} {key}"));
            }
            Ok(())
        })
        .await?;
    }
    for (block, record) in records {
        for offset in record.taken.iter() {
            let reasons = lines.entry(block.mac(offset)).or_default();
            if let Some(owner) = record.claims.get(&offset) {
                reasons.push(format!("claimed   {owner}"));
            } else if reasons.is_empty() {
                reasons.push("reserved  no object with it is seen; freed after the grace time".to_owned());
            }
        }
        if let Some(holder) = record.holder {
            for reasons in lines.range_mut(block.mac(0)..=block.mac(u8::MAX)).map(|(_, reasons)| reasons) {
                reasons.push(format!("held      its block, by replica {holder}"));
            }
        }
    }
    Ok(lines)
}
