//! Reading JSON that comes from outside: a request's configuration, and results of other plugins.
//!
//! It is read as the Go programs read it that most of it is written for: a member that is null is not there, and the case
//! of a configuration's keys does not matter. A list is no object.

use objects_only::ObjectsOnly;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::request::VALID_ATTACHMENTS;
use crate::{Code, Error, Request};

/// Members of a configuration that are the protocol's own.
const PROTOCOL_KEYS: [&str; 13] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "args",
    "capabilities",
    "dns",
    "disableCheck",
    "ipam",
    "prevResult",
    "runtimeConfig",
    VALID_ATTACHMENTS,
    "cni.dev/attachments",
];

/// A member that does not fit.
#[derive(Debug, thiserror::Error)]
#[error("{field} cannot be read")]
pub struct Unreadable {
    /// Where it stands; `.` for the whole.
    field: String,
    source: serde_json::Error,
}

impl Unreadable {
    /// The same where what was read is the member `whole` of something.
    pub(crate) fn of(self, whole: &str) -> Self {
        let separator = if self.field.starts_with('[') { "" } else { "." };
        let field =
            if self.field == "." { whole.to_owned() } else { format!("{whole}{separator}{}", self.field) };
        Self { field, ..self }
    }
}

impl From<Unreadable> for Error {
    fn from(error: Unreadable) -> Self {
        Self::from_error(Code::Decode, &error)
    }
}

/// Reads `value` as a `T`.
pub(crate) fn read<T: DeserializeOwned>(mut value: Value) -> Result<T, Unreadable> {
    remove_nulls(&mut value);
    serde_path_to_error::deserialize(ObjectsOnly(value))
        .map_err(|error| Unreadable { field: error.path().to_string(), source: error.into_inner() })
}

/// As deep as the text may nest, which its reader has bounded.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(remove_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

/// The same configuration with the protocol's own members under their names, whatever case they are written in.
pub(crate) fn protocol_spelt(config: Map<String, Value>) -> Map<String, Value> {
    if config.keys().all(|key| right(key, &PROTOCOL_KEYS).is_none_or(|right| right == key)) {
        return config;
    }
    respelt(&config, &PROTOCOL_KEYS)
}

impl Request {
    /// The member of the configuration with that name, whatever case it is written in.
    pub fn member(&self, name: &str) -> Option<&Value> {
        let similar = || self.config.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        self.config.get(name).or_else(|| similar().map(|(_, value)| value))
    }

    /// The configuration as a plugin's own type, whose keys are `known`. Logs a warning for each other one that is not the
    /// protocol's, with the nearest known one: a misspelt key must not silently do nothing.
    ///
    /// # Errors
    /// Code 6, naming the member that does not fit.
    pub fn config_of<T: DeserializeOwned>(&self, known: &[&str]) -> Result<T, Error> {
        self.config_with_lists(known, &[])
    }

    /// The same, where the members named in `lists` are lists of objects with these keys.
    ///
    /// # Errors
    /// As [`Request::config_of`].
    pub fn config_with_lists<T: DeserializeOwned>(
        &self,
        known: &[&str],
        lists: &[(&str, &[&str])],
    ) -> Result<T, Error> {
        let mut config = spelt(&self.config, known, &PROTOCOL_KEYS);
        for (list, known) in lists {
            let Some(Value::Array(entries)) = config.get_mut(*list) else { continue };
            for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
                *entry = spelt(entry, known, &[]);
            }
        }
        Ok(read(Value::Object(config))?)
    }

    /// Some of the configuration.
    ///
    /// # Errors
    /// Code 6, naming the member that does not fit.
    pub fn config_as<T: DeserializeOwned>(&self) -> Result<T, Error> {
        Ok(read(Value::Object(self.config.clone()))?)
    }
}

/// The members under the names that are `known`, whatever case they are written in; the others as they are, with a
/// warning for those that are not somebody `else_s` either.
fn spelt(members: &Map<String, Value>, known: &[&str], else_s: &[&str]) -> Map<String, Value> {
    for key in members.keys() {
        if right(key, known).is_none() && !else_s.contains(&key.as_str()) {
            warn_of_unknown(key, known);
        }
    }
    respelt(members, known)
}

fn respelt(members: &Map<String, Value>, known: &[&str]) -> Map<String, Value> {
    let mut spelt = Map::new();
    for (key, value) in members {
        // Where it is written in both ways, the right one counts.
        let written = right(key, known).unwrap_or(key);
        if written == key || !members.contains_key(written) {
            spelt.insert(written.to_owned(), value.clone());
        }
    }
    spelt
}

/// The one of `known` that is meant by `key`.
fn right<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    known.iter().copied().find(|known| known.eq_ignore_ascii_case(key))
}

fn warn_of_unknown(key: &str, known: &[&str]) {
    let distance = |candidate: &&&str| strsim::damerau_levenshtein(key, candidate);
    // Comparing grows with the product of the lengths, and a key may be as long as the configuration.
    let similar = known.iter().filter(|candidate| candidate.len().abs_diff(key.len()) <= 3);
    // Something of it must be the same: to a short key any other is near.
    let is_near = |nearest: &&&str| distance(nearest) <= 3 && distance(nearest) < key.chars().count();
    match similar.min_by_key(distance).filter(is_near) {
        Some(nearest) => {
            tracing::warn!("{key:?} is not a known key and is ignored; did you mean {nearest:?}?");
        }
        None => tracing::warn!("{key:?} is not a known key and is ignored"),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;
    use crate::Command;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Config {
        bridge: Option<String>,
        #[serde(default)]
        vlan: u8,
        #[serde(default)]
        trunk: Vec<Range>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Range {
        min: u8,
        max: Option<u8>,
    }

    fn config(config: &str) -> Result<Config, Error> {
        let variable = |name: &str| (name == "CNI_PATH").then(|| "/p".to_owned());
        let text = format!(r#"{{"name":"n","cniVersion":"1.1.0",{config}}}"#);
        let request = Request::parse(Command::Status, variable, text.as_bytes())?;
        request.config_with_lists(&["bridge", "vlan", "trunk"], &[("trunk", &["min", "max"])])
    }

    #[test]
    fn keys_of_any_case_and_nulls_are_read_as_go_does() {
        let trunk = || vec![Range { min: 1, max: None }];
        let expected = Config { bridge: Some("b".to_owned()), vlan: 0, trunk: trunk() };
        assert_eq!(config(r#""Bridge":"b","VLAN":null,"trunk":[{"min":1,"max":null}]"#), Ok(expected));
        assert_eq!(config(r#""Bridge":"x","bridge":"b""#).unwrap().bridge.unwrap(), "b");
        assert_eq!(config(r#""CNIVersion":"x","NAME":"/""#).unwrap().vlan, 0, "what is written right counts");
        let trunk = config(r#""Trunk":[{"MIN":1,"mAx":2},{"Min":8,"min":3}]"#).unwrap().trunk;
        assert_eq!(trunk, [Range { min: 1, max: Some(2) }, Range { min: 3, max: None }]);
    }

    #[test]
    fn a_list_is_no_object_and_the_place_is_named() {
        let table = [
            (r#""trunk":[[1,2]]"#, "trunk[0] cannot be read"),
            (r#""trunk":[{"min":1},{"min":"x"}]"#, "trunk[1].min cannot be read"),
            (r#""trunk":[{"MIN":"x"}]"#, "trunk[0].min cannot be read"),
            (r#""trunk":{"min":1}"#, "trunk cannot be read"),
            (r#""trunk":[7]"#, "trunk[0] cannot be read"),
            (r#""trunk":[null]"#, "trunk[0] cannot be read"),
            (r#""vlan":256"#, "vlan cannot be read"),
        ];
        for (text, message) in table {
            let error = config(text).unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (Code::Decode, message), "{text}");
        }
    }

    #[test]
    fn what_is_inside_a_member_is_named_with_it() {
        for (value, message) in [
            (json!([[]]), "whole[0] cannot be read"),
            (json!([{"min": "x"}]), "whole[0].min cannot be read"),
            (json!({}), "whole cannot be read"),
        ] {
            let error = read::<Vec<Range>>(value).map_err(|error| error.of("whole")).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}
