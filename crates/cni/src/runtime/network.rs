//! Network configurations: a single plugin's, or a list of plugins.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::request::is_identifier;
use crate::{Error, Version};

/// A network: a name and the plugins to call in turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct NetworkConfigList {
    name: String,
    version: Version,
    disable_check: bool,
    disable_gc: bool,
    plugins: Vec<PluginConfig>,
}

/// One plugin of a network, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginConfig {
    kind: String,
    config: Map<String, Value>,
}

/// What is wrong with a network configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkConfigError {
    /// No JSON at all.
    #[error("the network configuration is not JSON: {0}")]
    Json(String),
    /// JSON, but no object.
    #[error("the network configuration is not a JSON object")]
    NotAnObject,
    /// A member of the wrong type.
    #[error("{field} must be {expected}")]
    Type {
        /// The member.
        field: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The name is missing or could not be part of a file name.
    #[error("name is {0:?}; allowed: letters, digits, '_', '.' and '-', beginning with a letter or digit")]
    Name(String),
    /// A plugin without a type, or with one that is a path.
    #[error("{field} is {value:?}; it must be the file name of a plugin, such as \"cnv-bridge\"")]
    PluginType {
        /// `type` or `plugins[N].type`.
        field: String,
        /// What is there.
        value: String,
    },
    /// `plugins: []`.
    #[error("plugins is empty")]
    NoPlugins,
    /// A version nobody speaks.
    #[error("{}", .0.msg)]
    Version(Error),
}

impl NetworkConfigList {
    /// Reads the JSON text of a NetworkAttachmentDefinition's `spec.config`. See [`NetworkConfigList::read`] for files.
    pub fn parse(text: &str) -> Result<Self, NetworkConfigError> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| NetworkConfigError::Json(error.to_string()))?;
        Self::try_from(value)
    }

    /// The network's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version its plugins are spoken to in.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The plugins in the order of ADD.
    pub fn plugins(&self) -> &[PluginConfig] {
        &self.plugins
    }

    /// True if the network asks that CHECK is not called.
    pub fn check_disabled(&self) -> bool {
        self.disable_check
    }

    /// True if the network asks that GC is not called.
    pub fn gc_disabled(&self) -> bool {
        self.disable_gc
    }

    /// The device that the network's own configuration names: `deviceID` of its first plugin.
    pub fn device(&self) -> Option<&str> {
        self.plugins.first()?.config.get("deviceID")?.as_str().filter(|device| !device.is_empty())
    }

    /// The same network for this device, which its first plugin is told as `deviceID`, as by Multus.
    pub fn with_device(mut self, device: &str) -> Self {
        if let Some(plugin) = self.plugins.first_mut() {
            plugin.config.insert("deviceID".to_owned(), device.into());
        }
        self
    }

    /// The same network with one more plugin at the end; if one of this type is in it already, that one gets the
    /// configuration's members.
    pub fn with_plugin(mut self, config: Map<String, Value>) -> Result<Self, NetworkConfigError> {
        let plugin = PluginConfig::parse(config, &format!("plugins[{}]", self.plugins.len()))?;
        match self.plugins.iter_mut().find(|own| own.kind == plugin.kind) {
            Some(own) => own.config.extend(plugin.config),
            None => self.plugins.push(plugin),
        }
        Ok(self)
    }
}

impl TryFrom<Value> for NetworkConfigList {
    type Error = NetworkConfigError;

    fn try_from(value: Value) -> Result<Self, NetworkConfigError> {
        let Value::Object(config) = value else { return Err(NetworkConfigError::NotAnObject) };
        let name = text(&config, "name")?.unwrap_or_default().to_owned();
        if !is_identifier(&name) {
            return Err(NetworkConfigError::Name(name));
        }
        let version = version(&config)?;
        let (disable_check, disable_gc) = (switch(&config, "disableCheck")?, switch(&config, "disableGC")?);
        // Whatever it says, plugins come from the list alone here: this need not be a file that has a folder beside it.
        switch(&config, "loadOnlyInlinedPlugins")?;
        let plugins = match config.get("plugins") {
            None => vec![PluginConfig::parse(config, "")?],
            Some(Value::Array(plugins)) if plugins.is_empty() => return Err(NetworkConfigError::NoPlugins),
            Some(Value::Array(plugins)) => {
                plugins.iter().enumerate().map(list_member).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(NetworkConfigError::Type { field: "plugins".into(), expected: "a list" }),
        };
        Ok(Self { name, version, disable_check, disable_gc, plugins })
    }
}

fn list_member((index, plugin): (usize, &Value)) -> Result<PluginConfig, NetworkConfigError> {
    let field = format!("plugins[{index}]");
    match plugin {
        Value::Object(config) => PluginConfig::parse(config.clone(), &field),
        _ => Err(NetworkConfigError::Type { field, expected: "an object" }),
    }
}

impl From<NetworkConfigList> for Value {
    fn from(network: NetworkConfigList) -> Self {
        let plugins: Vec<_> = network.plugins.into_iter().map(|plugin| Self::Object(plugin.config)).collect();
        serde_json::json!({
            "name": network.name,
            "cniVersion": network.version.as_str(),
            "disableCheck": network.disable_check,
            "disableGC": network.disable_gc,
            "plugins": plugins,
        })
    }
}

impl PluginConfig {
    fn parse(config: Map<String, Value>, field: &str) -> Result<Self, NetworkConfigError> {
        let field = if field.is_empty() { "type".to_owned() } else { format!("{field}.type") };
        let kind = match config.get("type") {
            None => String::new(),
            Some(Value::String(kind)) => kind.clone(),
            Some(_) => return Err(NetworkConfigError::Type { field, expected: "text" }),
        };
        // A path would run a program from anywhere on the node.
        if !is_identifier(&kind) {
            return Err(NetworkConfigError::PluginType { field, value: kind });
        }
        Ok(Self { kind, config })
    }

    /// The plugin's `type`: the name of its binary.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The plugin that it has assign addresses, if it names one: `ipam.type`.
    pub fn ipam(&self) -> Option<&str> {
        self.config.get("ipam")?.get("type")?.as_str().filter(|kind| !kind.is_empty())
    }

    /// A text in the plugin's configuration.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.config.get(key)?.as_str()
    }

    /// A number, not negative, in the plugin's configuration.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.config.get(key)?.as_u64()
    }

    /// What the plugin reads on standard input.
    pub(super) fn for_call(
        &self,
        network: &NetworkConfigList,
        capabilities: &Map<String, Value>,
        previous: Option<Value>,
    ) -> Map<String, Value> {
        let mut config = self.config.clone();
        config.insert("name".to_owned(), network.name.as_str().into());
        config.insert("cniVersion".to_owned(), network.version.as_str().into());
        let declared = config.remove("capabilities");
        let declared = declared.as_ref().and_then(Value::as_object);
        let is_declared =
            |key: &String| declared.is_some_and(|known| known.get(key) == Some(&Value::Bool(true)));
        let runtime_config: Map<String, Value> = capabilities
            .iter()
            .filter(|(key, _)| is_declared(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !runtime_config.is_empty() {
            config.insert("runtimeConfig".to_owned(), runtime_config.into());
        }
        if let Some(previous) = previous {
            config.insert("prevResult".to_owned(), previous);
        }
        config
    }
}

/// The newest version that is spoken here of those the network names (`cniVersion`, `cniVersions`).
fn version(config: &Map<String, Value>) -> Result<Version, NetworkConfigError> {
    let one = text(config, "cniVersion")?;
    let list = match config.get("cniVersions") {
        None => return Version::parse(one).map_err(NetworkConfigError::Version),
        Some(Value::Array(list)) => list.iter().map(Value::as_str).collect::<Option<Vec<_>>>(),
        Some(_) => None,
    };
    let expected = "a list of texts";
    let list = list.ok_or(NetworkConfigError::Type { field: "cniVersions".into(), expected })?;
    let versions: Vec<_> = one.into_iter().chain(list).map(|text| Version::parse(Some(text))).collect();
    let newest = versions.iter().flatten().max().copied();
    let first = || versions.into_iter().next().unwrap_or_else(|| Version::parse(None));
    newest.map_or_else(first, Ok).map_err(NetworkConfigError::Version)
}

pub(super) fn switch(config: &Map<String, Value>, field: &str) -> Result<bool, NetworkConfigError> {
    match config.get(field) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        // As libcni takes them.
        Some(Value::String(word)) if is_word(word, ["true", "yes", "1"]) => Ok(true),
        Some(Value::String(word)) if is_word(word, ["false", "no", "0"]) => Ok(false),
        Some(_) => Err(NetworkConfigError::Type { field: field.to_owned(), expected: "true or false" }),
    }
}

fn is_word(word: &str, words: [&str; 3]) -> bool {
    words.iter().any(|known| known.eq_ignore_ascii_case(word))
}

fn text<'a>(config: &'a Map<String, Value>, field: &str) -> Result<Option<&'a str>, NetworkConfigError> {
    match config.get(field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(NetworkConfigError::Type { field: field.to_owned(), expected: "text" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_plugin_and_a_list_of_one_are_the_same_chain() {
        let one = NetworkConfigList::parse(
            r#"{"cniVersion":"1.0.0","name":"n","type":"cnv-bridge","bridge":"br1"}"#,
        );
        let list = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"cnv-bridge","bridge":"br1"}]}"#;
        let (one, list) = (one.unwrap(), NetworkConfigList::parse(list).unwrap());
        let call = |network: &NetworkConfigList| network.plugins()[0].for_call(network, &Map::new(), None);
        assert_eq!(call(&one), call(&list));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("x", "is not JSON"),
            ("[]", "not a JSON object"),
            (r#"{"type":"a"}"#, "name is \"\""),
            (r#"{"name":"a/b","type":"a"}"#, "name is \"a/b\""),
            (r#"{"name":"n"}"#, "type is \"\""),
            (r#"{"name":"n","type":"../../bin/sh"}"#, "type is \"../../bin/sh\""),
            (r#"{"name":"n","plugins":[]}"#, "plugins is empty"),
            (r#"{"name":"n","plugins":{}}"#, "plugins must be a list"),
            (r#"{"name":"n","plugins":[{"type":"a"},{}]}"#, "plugins[1].type is \"\""),
            (r#"{"name":"n","plugins":[{"type":"a"}],"disableGC":1}"#, "disableGC must be true or false"),
            (
                r#"{"name":"n","plugins":[{"type":"a"}],"disableCheck":"on"}"#,
                "disableCheck must be true or false",
            ),
            (
                r#"{"name":"n","plugins":[{"type":"a"}],"loadOnlyInlinedPlugins":[]}"#,
                "loadOnlyInlinedPlugins must be true or false",
            ),
            (r#"{"name":"n","loadOnlyInlinedPlugins":true,"plugins":[]}"#, "plugins is empty"),
            (r#"{"name":"n","type":"a","cniVersion":"7"}"#, "cniVersion \"7\" is not supported"),
        ];
        for (text, message) in table {
            let error = NetworkConfigList::parse(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn switches_are_read_as_libcni_reads_them_and_recorded() {
        for (value, on) in [
            ("true", true),
            ("\"True\"", true),
            ("\"yes\"", true),
            ("\"1\"", true),
            ("false", false),
            ("\"NO\"", false),
        ] {
            let text = format!(
                r#"{{"name":"n","plugins":[{{"type":"a"}}],"disableCheck":{value},"disableGC":{value},"loadOnlyInlinedPlugins":{value}}}"#
            );
            let network = NetworkConfigList::parse(&text).unwrap();
            assert_eq!((network.check_disabled(), network.gc_disabled()), (on, on), "{value}");
            assert_eq!(NetworkConfigList::try_from(Value::from(network.clone())), Ok(network));
        }
    }

    #[test]
    fn the_newest_version_that_both_speak_is_chosen() {
        let version = |versions: &str| {
            let text = format!(r#"{{"name":"n","type":"a",{versions}}}"#);
            NetworkConfigList::parse(&text).map(|network| network.version().as_str().to_owned())
        };
        assert_eq!(version(r#""cniVersions":["0.4.0","1.1.0","9.0.0"]"#).unwrap(), "1.1.0");
        assert_eq!(version(r#""cniVersion":"1.0.0","cniVersions":["0.3.1"]"#).unwrap(), "1.0.0");
        assert_eq!(version(r#""cniVersions":[]"#).unwrap(), "0.1.0");
        for wrong in
            [r#""cniVersions":["8.0.0","9.0.0"]"#, r#""cniVersions":"1.0.0""#, r#""cniVersions":[1]"#]
        {
            assert!(version(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_declared_capabilities_reach_a_plugin() {
        let text = r#"{"name":"n","type":"a","capabilities":{"mac":true,"ips":false}}"#;
        let network = NetworkConfigList::parse(text).unwrap();
        let given = serde_json::json!({"mac": "m", "ips": [], "bandwidth": {}});
        let call = network.plugins()[0].for_call(&network, given.as_object().unwrap(), None);
        assert_eq!(call["runtimeConfig"], serde_json::json!({"mac": "m"}));
        assert!(!call.contains_key("capabilities"));
    }

    #[test]
    fn a_network_survives_being_recorded() {
        let network =
            NetworkConfigList::parse(r#"{"name":"n","plugins":[{"type":"a","x":[1]},{"type":"b"}]}"#)
                .unwrap();
        assert_eq!(NetworkConfigList::try_from(Value::from(network.clone())), Ok(network));
    }
}
