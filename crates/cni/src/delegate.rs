//! Delegation: a plugin that has another do part of its work, above all an IPAM plugin its addresses.
//!
//! The other gets the same environment and the same configuration, and is found in CNI_PATH (specification, section 4).

use std::time::Duration;

use serde_json::{Map, Value};

use crate::exec::{self, Call, ExecError};
use crate::request::{Attachment, Command, VALID_ATTACHMENTS};
use crate::success::ResultError;
use crate::{Code, Error, Request, Success};

/// How long an IPAM plugin may take: DHCP over a slow network takes tens of seconds.
const TIMEOUT: Duration = Duration::from_secs(110);

/// The IPAM plugin of a network.
#[derive(Debug, Clone)]
pub struct Ipam<'a> {
    kind: &'a str,
    request: &'a Request,
}

impl<'a> Ipam<'a> {
    /// The plugin that `ipam.type` names; none if the network has no IPAM: `ipam` is missing or empty, or nothing but an
    /// empty type.
    ///
    /// # Errors
    /// Code 7 if `ipam` is no object or its type no file name.
    pub fn of(request: &'a Request) -> Result<Option<Self>, Error> {
        let wrong = |what: &str| Error::new(Code::InvalidConfig, format!("ipam: {what}"));
        let ipam = match request.config.get("ipam") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(ipam)) if ipam.iter().all(says_nothing) => return Ok(None),
            Some(Value::Object(ipam)) => ipam,
            Some(_) => return Err(wrong("must be an object")),
        };
        match ipam.get("type").and_then(Value::as_str) {
            Some(kind) if crate::request::is_identifier(kind) => Ok(Some(Self { kind, request })),
            Some(kind) => Err(wrong(&format!("type is {kind:?}; it must be the file name of a plugin"))),
            None => Err(wrong("type is missing")),
        }
    }

    /// True if it speaks by way of the container's interface, which must be up for it to have an address assigned and still be
    /// there when it releases that: the reference plugin `dhcp`.
    pub fn needs_port(&self) -> bool {
        self.kind == "dhcp"
    }

    /// Has addresses assigned.
    ///
    /// # Errors
    /// The plugin's own, or code 5 if it cannot be run.
    pub fn add(&self) -> Result<Success, Error> {
        let answer = self.call(Command::Add)?;
        Success::read(&answer).map_err(|source| {
            let error = NoResult { kind: self.kind.to_owned(), source };
            Error::from_error(Code::Decode, &error)
        })
    }

    /// Has the addresses released.
    ///
    /// # Errors
    /// As [`Ipam::add`].
    pub fn del(&self) -> Result<(), Error> {
        self.call(Command::Del).map(drop)
    }

    /// Has the addresses released of an attachment that GC has found to be none any more. Not every IPAM plugin knows GC, and
    /// those that do mind no DEL before.
    ///
    /// # Errors
    /// As [`Ipam::add`].
    pub fn del_stale(&self, attachment: &Attachment) -> Result<(), Error> {
        let mut config = self.request.config.clone();
        config.remove(VALID_ATTACHMENTS);
        self.call_with(Command::Del, Some(attachment), config).map(drop)
    }

    /// Asks whether the addresses are still assigned.
    ///
    /// # Errors
    /// As [`Ipam::add`].
    pub fn check(&self) -> Result<(), Error> {
        self.call(Command::Check).map(drop)
    }

    /// Asks whether addresses could be assigned now.
    ///
    /// # Errors
    /// As [`Ipam::add`].
    pub fn status(&self) -> Result<(), Error> {
        self.call(Command::Status).map(drop)
    }

    /// Has the addresses of invalid attachments released.
    ///
    /// # Errors
    /// As [`Ipam::add`].
    pub fn gc(&self) -> Result<(), Error> {
        self.call(Command::Gc).map(drop)
    }

    fn call(&self, command: Command) -> Result<Vec<u8>, Error> {
        if self.request.version < command.since() {
            return Ok(Vec::new());
        }
        self.call_with(command, self.request.attachment.as_ref(), self.request.config.clone())
    }

    fn call_with(
        &self,
        command: Command,
        attachment: Option<&Attachment>,
        config: Map<String, Value>,
    ) -> Result<Vec<u8>, Error> {
        let call = Call {
            command,
            attachment,
            args: self.request.args.pairs(),
            path: &self.request.path,
            timeout: TIMEOUT,
        };
        let config = Value::Object(config).to_string();
        exec::call(&call, self.kind, config.as_bytes()).map_err(|error| match error {
            ExecError::Plugin(error) => {
                Error { msg: format!("IPAM plugin {}: {}", self.kind, error.msg), ..error }
            }
            error => Error::from_error(Code::Io, &Unusable { kind: self.kind.to_owned(), source: error }),
        })
    }
}

fn says_nothing((key, value): (&String, &Value)) -> bool {
    key == "type" && (value.is_null() || value.as_str() == Some(""))
}

#[derive(Debug, thiserror::Error)]
#[error("the result of IPAM plugin {kind} cannot be read")]
struct NoResult {
    kind: String,
    source: ResultError,
}

#[derive(Debug, thiserror::Error)]
#[error("IPAM plugin {kind} cannot be run")]
struct Unusable {
    kind: String,
    source: ExecError,
}
