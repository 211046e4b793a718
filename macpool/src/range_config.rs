//! The ConfigMap that says which addresses may be given: KubeMacPool's, with three keys of ours.
//!
//! `RANGE_START` and `RANGE_END` are KubeMacPool's one range. `RANGES` may name more (`FIRST-LAST`, separated by commas or
//! blanks) and `EXCLUDE`, in the same form, what is not to be given. `L2_DOMAINS` names networks that never meet
//! ([`crate::segment`]), separated by blanks.

use std::collections::BTreeMap;

use net_types::{Mac, MacError};

use crate::range::{MacRange, RangeError, Ranges};
use crate::segment::{Domains, DomainsError};

/// KubeMacPool's name for it.
pub const NAME: &str = "kubemacpool-mac-range-config";
/// Beyond this many it is no configuration.
const MAX_RANGES: usize = 1000;

/// Why the configuration is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// One of the two ends is missing.
    #[error("{0} is missing: RANGE_START and RANGE_END belong together")]
    Half(&'static str),
    /// An end is no address.
    #[error("{key}: {source}")]
    End {
        /// Which key.
        key: &'static str,
        /// What is wrong.
        source: MacError,
    },
    /// A range cannot be used.
    #[error("{key}: {source}")]
    Range {
        /// Which key.
        key: &'static str,
        /// What is wrong.
        source: RangeError,
    },
    /// The domains make no sense.
    #[error("L2_DOMAINS: {0}")]
    Domains(#[from] DomainsError),
    /// Too many.
    #[error("{key}: more than {MAX_RANGES} ranges")]
    TooMany {
        /// Which key.
        key: &'static str,
    },
}

/// Reads the ConfigMap's data. `None` if it names no range at all.
pub fn parse(data: &BTreeMap<String, String>) -> Result<Option<Ranges>, ConfigError> {
    let value = |key| data.get(key).map(|text| text.trim()).filter(|text| !text.is_empty());
    let mut ranges = list("RANGES", value("RANGES"))?;
    match (value("RANGE_START"), value("RANGE_END")) {
        (None, None) => {}
        (Some(_), None) => return Err(ConfigError::Half("RANGE_END")),
        (None, Some(_)) => return Err(ConfigError::Half("RANGE_START")),
        (Some(start), Some(end)) => {
            let (start, end) = (end_of("RANGE_START", start)?, end_of("RANGE_END", end)?);
            let range = MacRange::new(start, end);
            ranges.push(range.map_err(|source| ConfigError::Range { key: "RANGE_START", source })?);
        }
    }
    let exclusions = list("EXCLUDE", value("EXCLUDE"))?;
    if ranges.is_empty() {
        return Ok(None);
    }
    Ranges::new(&ranges, &exclusions).map(Some).map_err(|source| ConfigError::Range { key: "RANGES", source })
}

/// Reads which networks never meet: none, if the ConfigMap does not say.
pub fn domains(data: &BTreeMap<String, String>) -> Result<Domains, ConfigError> {
    let text = data.get("L2_DOMAINS").map(String::as_str).unwrap_or_default();
    Ok(Domains::new(text.split_whitespace())?)
}

/// The data for a range picked at random, as KubeMacPool picks its default: 02:XX:XX:00:00:00 to 02:XX:XX:ff:ff:ff.
pub fn random() -> BTreeMap<String, String> {
    let [a, b, ..] = crate::random().to_be_bytes();
    [
        ("RANGE_START".to_owned(), Mac([2, a, b, 0, 0, 0]).to_string()),
        ("RANGE_END".to_owned(), Mac([2, a, b, 0xff, 0xff, 0xff]).to_string()),
    ]
    .into()
}

fn end_of(key: &'static str, text: &str) -> Result<Mac, ConfigError> {
    text.parse().map_err(|source| ConfigError::End { key, source })
}

fn list(key: &'static str, text: Option<&str>) -> Result<Vec<MacRange>, ConfigError> {
    let items = text.unwrap_or_default().split([',', ' ', '\n', '\t']).filter(|item| !item.is_empty());
    let mut ranges = Vec::new();
    for item in items {
        if ranges.len() == MAX_RANGES {
            return Err(ConfigError::TooMany { key });
        }
        ranges.push(item.parse().map_err(|source| ConfigError::Range { key, source })?);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<String>, String> {
        let data = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        parse(&data).map(|ranges| ranges.map(|ranges| ranges.to_string())).map_err(|error| error.to_string())
    }

    #[test]
    fn kubemacpools_keys_and_ours_add_up() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("RANGE_START", ""), ("RANGE_END", "")]), Ok(None));
        let two = [("RANGE_START", " 02:00:00:00:00:00\n"), ("RANGE_END", "02-00-00-00-00-FF")];
        assert_eq!(read(&two), Ok(Some("02:00:00:00:00:00-02:00:00:00:00:ff".to_owned())));
        let all = [
            two[0],
            two[1],
            ("RANGES", "06:00:00:00:00:00-06:00:00:00:00:01\n"),
            ("EXCLUDE", "02:00:00:00:00:01-02:00:00:00:00:ff, 06:00:00:00:00:00"),
        ];
        assert_eq!(
            read(&all),
            Ok(Some("02:00:00:00:00:00-02:00:00:00:00:00, 06:00:00:00:00:01-06:00:00:00:00:01".to_owned()))
        );
    }

    #[test]
    fn a_hostile_configuration_is_refused_with_its_key() {
        let start = ("RANGE_START", "02:00:00:00:00:00");
        for (data, message) in [
            (vec![start], "RANGE_END is missing"),
            (vec![("RANGE_END", start.1)], "RANGE_START is missing"),
            (vec![start, ("RANGE_END", "x")], "RANGE_END: \"x\" is not an Ethernet address"),
            (vec![start, ("RANGE_END", "01:00:00:00:00:00")], "RANGE_START: the range ends at"),
            (vec![("RANGES", "a-b")], "RANGES: \"a-b\" is not a range"),
            (
                vec![start, ("RANGE_END", start.1), ("EXCLUDE", start.1)],
                "RANGES: the ranges contain no address",
            ),
        ] {
            let error = read(&data).unwrap_err();
            assert!(error.starts_with(message), "{error}");
        }
        let many = "02:00:00:00:00:00 ".repeat(2000);
        assert_eq!(read(&[("RANGES", &many)]), Err("RANGES: more than 1000 ranges".to_owned()));
    }

    #[test]
    fn a_random_range_is_one() {
        let text = parse(&random()).unwrap().unwrap();
        assert_eq!(text.len(), 1 << 24);
    }
}
