//! What a plugin is asked: environment and standard input, checked.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use net_types::IfName;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::once::EachOnce;
use crate::{Args, Code, Error, Success, Version, json};

pub(crate) const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// The operations of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Undo an ADD.
    Del,
    /// Tell whether what ADD made is still there.
    Check,
    /// Tell whether ADD could work now.
    Status,
    /// Remove what belongs to none of the valid attachments.
    Gc,
    /// Tell which versions are spoken.
    Version,
}

impl Command {
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        match text {
            "ADD" => Ok(Self::Add),
            "DEL" => Ok(Self::Del),
            "CHECK" => Ok(Self::Check),
            "STATUS" => Ok(Self::Status),
            "GC" => Ok(Self::Gc),
            "VERSION" => Ok(Self::Version),
            _ => Err(Error::new(Code::InvalidEnvironment, format!("CNI_COMMAND is {text:?}"))
                .details("allowed: ADD, DEL, CHECK, STATUS, GC, VERSION")),
        }
    }

    /// As it stands in `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    /// The version that introduced it.
    pub(crate) const fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Status | Self::Gc => Version::V1_1_0,
        }
    }
}

/// A container's identifier.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if is_identifier(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::new(Code::InvalidEnvironment, format!("CNI_CONTAINERID is {text:?}"))
            .details("allowed: letters, digits, '_', '.' and '-', beginning with a letter or digit"))
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, the specification's rule for container and network names. At most 253 bytes, so
/// that it fits a file name.
pub(crate) fn is_identifier(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    first
        && text.len() <= 253
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// One interface of one container: what ADD, DEL and CHECK are about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container: ContainerId,
    /// `CNI_IFNAME`.
    pub if_name: IfName,
    /// `CNI_NETNS`; always there for ADD and CHECK.
    pub netns: Option<PathBuf>,
}

/// A request, checked as far as it can be without knowing the plugin.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// For which interface; none for STATUS and GC.
    pub attachment: Option<Attachment>,
    /// `CNI_ARGS`.
    pub args: Args,
    /// `CNI_PATH`: where to find plugins to delegate to.
    pub path: Vec<PathBuf>,
    /// The version to answer in.
    pub version: Version,
    /// The network's name.
    pub network: String,
    /// Result of the chain so far.
    pub prev_result: Option<Success>,
    /// The whole configuration as it came.
    pub config: Map<String, Value>,
}

/// The members every configuration has.
#[derive(Deserialize)]
struct Common {
    #[serde(rename = "cniVersion")]
    cni_version: Option<String>,
    name: Option<String>,
    #[serde(rename = "prevResult")]
    prev_result: Option<Value>,
}

impl Request {
    /// Reads a request from variables (by `variable`) and the text of standard input.
    ///
    /// # Errors
    /// Codes 4 for the environment, 6 for what is no JSON, 1 for the version and 7 for the network's name.
    pub fn parse(
        command: Command,
        variable: impl Fn(&str) -> Option<String>,
        stdin: &[u8],
    ) -> Result<Self, Error> {
        let (attachment, args, path) = environment(command, variable)?;
        let undecodable = |error| Error::from_error(Code::Decode, &Undecodable("the configuration", error));
        let config: Map<String, Value> = serde_json::from_slice(stdin).map_err(undecodable)?;
        match serde_json::from_slice(stdin).map_err(undecodable) {
            Ok(EachOnce) => {}
            // What another release made of it can be taken away.
            Err(error) if command == Command::Del => tracing::warn!("{error}; the last counts"),
            Err(error) => return Err(error),
        }
        let config = json::protocol_spelt(config);
        let common: Common = json::read(Value::Object(config.clone()))?;
        let version = Version::parse(common.cni_version.as_deref())?;
        if version < command.since() {
            return Err(Error::new(
                Code::IncompatibleVersion,
                format!("{} needs cniVersion {} or later", command.as_str(), command.since()),
            )
            .details(format!("the configuration has {version}")));
        }
        let network = common.name.unwrap_or_default();
        if !is_identifier(&network) {
            return Err(Error::new(Code::InvalidConfig, format!("name is {network:?}")).details(
                "allowed: letters, digits, '_', '.' and '-', beginning with a letter or digit, at most 253",
            ));
        }
        let prev_result = common.prev_result.map(Success::from_json).transpose().map_err(Error::from);
        let prev_result = match prev_result {
            // What ADD made can be taken away without it.
            Err(error) if command == Command::Del => {
                tracing::warn!("{error}; going on without it");
                None
            }
            other => other?,
        };
        Ok(Self { command, attachment, args, path, version, network, prev_result, config })
    }

    /// The attachments a GC leaves alone: container and interface.
    ///
    /// # Errors
    /// Code 7 if the list is missing or malformed: without it everything would be removed.
    pub fn valid_attachments(&self) -> Result<Vec<(ContainerId, String)>, Error> {
        #[derive(Deserialize)]
        struct Valid {
            #[serde(rename = "containerID")]
            container: String,
            ifname: String,
        }
        let list = self
            .config
            .get(VALID_ATTACHMENTS)
            .cloned()
            .ok_or_else(|| Error::new(Code::InvalidConfig, format!("{VALID_ATTACHMENTS} is missing")))?;
        let list: Vec<Valid> = json::read(list)
            .map_err(|error| error.of(VALID_ATTACHMENTS))
            .map_err(|error| Error::from_error(Code::InvalidConfig, &error))?;
        list.into_iter().map(|valid| Ok((valid.container.parse()?, valid.ifname))).collect()
    }

    /// The attachment; an error for STATUS and GC, which have none.
    pub fn attachment(&self) -> Result<&Attachment, Error> {
        self.attachment.as_ref().ok_or_else(|| {
            Error::new(Code::InvalidEnvironment, format!("{} names no container", self.command.as_str()))
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0} cannot be read")]
struct Undecodable(&'static str, #[source] serde_json::Error);

/// Reads the variables `command` needs; all that are missing are named at once.
fn environment(
    command: Command,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(Option<Attachment>, Args, Vec<PathBuf>), Error> {
    let needed: &[&str] = match command {
        Command::Add | Command::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
        Command::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
        Command::Status | Command::Gc => &["CNI_PATH"],
        Command::Version => &[],
    };
    let given = |name: &str| variable(name).filter(|value| !value.is_empty());
    let missing: Vec<_> = needed.iter().copied().filter(|name| given(name).is_none()).collect();
    if !missing.is_empty() {
        return Err(Error::new(
            Code::InvalidEnvironment,
            format!("{} needs {}", command.as_str(), missing.join(", ")),
        ));
    }
    let args = Args::parse(&given("CNI_ARGS").unwrap_or_default())?;
    let path = given("CNI_PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    let attachment = match (given("CNI_CONTAINERID"), given("CNI_IFNAME")) {
        (Some(container), Some(if_name)) => Some(Attachment {
            container: container.parse()?,
            if_name: if_name
                .parse()
                .map_err(|error| Error::from_error(Code::InvalidEnvironment, &BadIfName(error)))?,
            netns: given("CNI_NETNS").map(PathBuf::from),
        }),
        _ => None,
    };
    Ok((attachment, args, path))
}

#[derive(Debug, thiserror::Error)]
#[error("CNI_IFNAME is not usable")]
struct BadIfName(#[source] net_types::IfNameError);

#[cfg(test)]
mod tests {
    use super::*;

    const VARIABLES: [(&str, &str); 4] = [
        ("CNI_CONTAINERID", "abc"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
    ];

    fn parse(command: Command, but: Option<(&str, &str)>, stdin: &str) -> Result<Request, Error> {
        let variable = |name: &str| match but {
            Some((changed, value)) if changed == name => Some(value.to_owned()),
            _ => VARIABLES.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
        };
        Request::parse(command, variable, stdin.as_bytes())
    }

    #[test]
    fn a_good_request_is_read() {
        let request = parse(Command::Add, None, r#"{"cniVersion":"1.0.0","name":"n","type":"t"}"#).unwrap();
        assert_eq!(request.version, Version::V1_0_0);
        assert_eq!(request.attachment().unwrap().if_name.as_str(), "eth0");
        assert_eq!(request.path.len(), 2);
        let spelt = parse(Command::Add, None, r#"{"CniVersion":"1.0.0","Name":"n","IPAM":{"type":"a"}}"#);
        let spelt = spelt.unwrap();
        assert_eq!((spelt.version, spelt.network.as_str()), (Version::V1_0_0, "n"));
        assert!(crate::Ipam::of(&spelt).unwrap().is_some());
    }

    #[test]
    fn each_variable_is_missed_by_name() {
        for (name, _) in VARIABLES {
            let error = parse(Command::Add, Some((name, "")), r#"{"name":"n"}"#).unwrap_err();
            assert_eq!((error.code, error.msg), (Code::InvalidEnvironment, format!("ADD needs {name}")));
        }
        assert!(parse(Command::Del, Some(("CNI_NETNS", "")), r#"{"name":"n"}"#).is_ok());
    }

    #[test]
    fn broken_values_are_refused_with_their_code() {
        let config = r#"{"name":"n"}"#;
        let table = [
            (Some(("CNI_CONTAINERID", "a/b")), config, Code::InvalidEnvironment),
            (Some(("CNI_IFNAME", "sixteen-bytes-xx")), config, Code::InvalidEnvironment),
            (Some(("CNI_IFNAME", "a:b")), config, Code::InvalidEnvironment),
            (Some(("CNI_ARGS", "MAC")), config, Code::InvalidEnvironment),
            (None, "", Code::Decode),
            (None, "[]", Code::Decode),
            (None, "{\"name\":\"n\"", Code::Decode),
            (None, "{\"name\":5}", Code::Decode),
            (None, "{}", Code::InvalidConfig),
            (None, r#"{"name":"../x"}"#, Code::InvalidConfig),
            (None, r#"{"name":"n","cniVersion":"9.9.9"}"#, Code::IncompatibleVersion),
            (None, r#"{"name":"n","cniVersion":1}"#, Code::Decode),
            (None, r#"{"name":"n","prevResult":{"ips":7}}"#, Code::Decode),
            (None, r#"{"name":"n","sysctl":{"net.x":"1","net.x":"0"}}"#, Code::Decode),
        ];
        for (variable, stdin, code) in table {
            assert_eq!(parse(Command::Add, variable, stdin).unwrap_err().code, code, "{variable:?} {stdin}");
        }
    }

    #[test]
    fn what_stands_twice_is_named_and_still_deleted() {
        let twice = r#"{"name":"n","sysctl":{"net.x":"1","net.x":"0"}}"#;
        let error = parse(Command::Add, None, twice).unwrap_err();
        assert!(error.details.starts_with("\"net.x\" stands twice in one object"), "{error:?}");
        assert_eq!(parse(Command::Del, None, twice).unwrap().config["sysctl"]["net.x"], "0");
    }

    #[test]
    fn deep_nesting_is_an_error_not_a_crash() {
        let deep = format!(r#"{{"name":"n","x":{}}}"#, "[".repeat(100_000));
        assert_eq!(parse(Command::Add, None, &deep).unwrap_err().code, Code::Decode);
    }

    #[test]
    fn operations_are_refused_before_the_version_that_has_them() {
        for (command, version) in
            [(Command::Check, "0.3.1"), (Command::Status, "1.0.0"), (Command::Gc, "1.0.0")]
        {
            let error =
                parse(command, None, &format!(r#"{{"name":"n","cniVersion":"{version}"}}"#)).unwrap_err();
            assert_eq!(error.code, Code::IncompatibleVersion, "{command:?}");
        }
    }
}
