//! Errors as the protocol carries them.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Error codes: those of the specification, and from 100 on each plugin's own (listed in `docs/errors.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 1: the plugin does not speak this `cniVersion`.
    IncompatibleVersion,
    /// 2: a field of the configuration is not supported.
    UnsupportedField,
    /// 3: the container is not known, or gone.
    UnknownContainer,
    /// 4: an environment variable is missing or wrong.
    InvalidEnvironment,
    /// 5: reading or writing failed.
    Io,
    /// 6: something could not be decoded.
    Decode,
    /// 7: the configuration is wrong.
    InvalidConfig,
    /// 8: the container's network namespace is the plugin's own.
    InvalidNetns,
    /// 11: a passing condition; the caller should try again.
    TryAgainLater,
    /// 50: STATUS: the plugin cannot serve an ADD.
    NotAvailable,
    /// 51: STATUS: nor may existing containers have connectivity.
    LimitedConnectivity,
    /// 100 and above: the plugin's own.
    Plugin(u32),
}

/// Codes that several plugins share. `docs/errors.md` says what a user does about each.
impl Code {
    /// 103: the container has an interface of that name already.
    pub const INTERFACE_EXISTS: Self = Self::Plugin(103);
    /// 104: the kernel refused a change.
    pub const KERNEL_REFUSED: Self = Self::Plugin(104);
    /// 105: CHECK found a difference.
    pub const DIFFERS: Self = Self::Plugin(105);
    /// 110: the container has no such interface.
    pub const NO_INTERFACE: Self = Self::Plugin(110);
    /// 111: a tap could not be made.
    pub const NO_TAP: Self = Self::Plugin(111);
    /// 112: a kernel setting or a file could not be used.
    pub const UNUSABLE_FILE: Self = Self::Plugin(112);
}

impl Code {
    /// As a number.
    pub const fn get(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::InvalidNetns => 8,
            Self::TryAgainLater => 11,
            Self::NotAvailable => 50,
            Self::LimitedConnectivity => 51,
            Self::Plugin(code) => code,
        }
    }
}

impl From<u32> for Code {
    fn from(code: u32) -> Self {
        match code {
            1 => Self::IncompatibleVersion,
            2 => Self::UnsupportedField,
            3 => Self::UnknownContainer,
            4 => Self::InvalidEnvironment,
            5 => Self::Io,
            6 => Self::Decode,
            7 => Self::InvalidConfig,
            8 => Self::InvalidNetns,
            11 => Self::TryAgainLater,
            50 => Self::NotAvailable,
            51 => Self::LimitedConnectivity,
            other => Self::Plugin(other),
        }
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.get())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u32::deserialize(deserializer).map(Self::from)
    }
}

/// Why a plugin could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What kind of failure.
    pub code: Code,
    /// One sentence.
    pub msg: String,
    /// The causes, or what is allowed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Error {
    /// An error of kind `code` described by `msg`.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// An error of kind `code` with the words of `error` as message and its causes as details.
    pub fn from_error(code: Code, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { code, msg: error.to_string(), details: causes(error) }
    }

    /// What another plugin printed when it failed; nothing if that is no error, or says nothing.
    pub fn read(output: &[u8]) -> Option<Self> {
        let mut error: Self = crate::json::read(serde_json::from_slice(output).ok()?).ok()?;
        if error.msg.is_empty() {
            error.msg = std::mem::take(&mut error.details);
        }
        (!error.msg.is_empty()).then_some(error)
    }

    /// As STATUS says it: what keeps an ADD from working makes the plugin unavailable (code 50). A request that is wrong by
    /// itself, and what says so already, stay as they are.
    #[must_use]
    pub fn unavailable(self) -> Self {
        match self.code {
            Code::IncompatibleVersion
            | Code::UnsupportedField
            | Code::InvalidEnvironment
            | Code::Decode
            | Code::InvalidConfig
            | Code::NotAvailable
            | Code::LimitedConnectivity => self,
            code => {
                let add = format!("an ADD would fail with code {}", code.get());
                let details = if self.details.is_empty() { add } else { format!("{}; {add}", self.details) };
                Self { code: Code::NotAvailable, details, ..self }
            }
        }
    }

    /// The same where containers that are attached already have no connectivity either (code 51).
    #[must_use]
    pub fn limits_connectivity(self) -> Self {
        Self { code: Code::LimitedConnectivity, ..self.unavailable() }
    }

    /// The same with `details`.
    #[must_use]
    pub fn details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }
}

/// The causes of `error`, outermost first, on one line.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let separator = if text.is_empty() { "" } else { ": " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{error}");
        cause = error.source();
    }
    text
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, msg, details } = self;
        write!(f, "{msg}")?;
        if !details.is_empty() {
            write!(f, ": {details}")?;
        }
        write!(f, " (code {})", code.get())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_has_codes_of_its_own_for_what_keeps_an_add_from_working() {
        for (code, expected) in [(7, 7), (6, 6), (4, 4), (1, 1), (2, 2), (50, 50), (51, 51)] {
            let error = Error::new(Code::from(code), "m").details("d");
            assert_eq!(error.clone().unavailable(), error, "{expected}");
        }
        for code in [3, 5, 8, 11, 100, 999] {
            let error = Error::new(Code::from(code), "m").unavailable();
            assert_eq!(error.code.get(), 50);
            assert_eq!(error.details, format!("an ADD would fail with code {code}"));
        }
        let error = Error::new(Code::Plugin(100), "m").details("create it").limits_connectivity();
        assert_eq!(error.to_string(), "m: create it; an ADD would fail with code 100 (code 51)");
    }
}
