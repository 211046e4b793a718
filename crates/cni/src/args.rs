//! `CNI_ARGS`: `KEY=VALUE;KEY=VALUE…`.

use crate::{Code, Error};

/// Parsed `CNI_ARGS`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Args {
    pairs: Vec<(String, String)>,
}

/// Keys that say nothing to a plugin but are known to all (libcni's `CommonArgs` and the container's address).
const COMMON: [&str; 2] = ["IgnoreUnknown", "IP"];

impl Args {
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let pair = |pair: &str| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Error::new(Code::InvalidEnvironment, format!("CNI_ARGS has {pair:?}"))
                .details("allowed: KEY=VALUE pairs separated by ';'")),
        };
        let pairs = text.split(';').filter(|part| !part.is_empty()).map(pair).collect::<Result<_, _>>()?;
        Ok(Self { pairs })
    }

    /// All pairs in order.
    pub(crate) fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// The value of `key`; of several, the last.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Refuses keys other than `known`, unless `IgnoreUnknown` is set to `1` or `true`.
    pub fn expect_only(&self, known: &[&str]) -> Result<(), Error> {
        if matches!(self.get("IgnoreUnknown"), Some("1" | "true" | "True" | "TRUE")) {
            return Ok(());
        }
        let unknown = self
            .pairs
            .iter()
            .find(|(key, _)| !known.contains(&key.as_str()) && !COMMON.contains(&key.as_str()));
        match unknown {
            None => Ok(()),
            Some((key, _)) => {
                Err(Error::new(Code::InvalidEnvironment, format!("CNI_ARGS has the unknown key {key:?}"))
                    .details(format!("known: {}; IgnoreUnknown=1 lets others pass", known.join(", "))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_and_the_last_wins() {
        let args = Args::parse("MAC=02:00:00:00:00:01;X=a=b;MAC=02:00:00:00:00:02;").unwrap();
        assert_eq!(args.get("MAC"), Some("02:00:00:00:00:02"));
        assert_eq!(args.get("X"), Some("a=b"));
        assert_eq!(Args::parse("").unwrap(), Args::default());
    }

    #[test]
    fn half_a_pair_is_refused() {
        for text in ["MAC", "=x", "A=1;B"] {
            assert_eq!(Args::parse(text).unwrap_err().code, Code::InvalidEnvironment, "{text}");
        }
    }

    #[test]
    fn unknown_keys_pass_only_when_told_to() {
        let strange = Args::parse("K8S_POD_NAME=p").unwrap();
        assert!(strange.expect_only(&["MAC"]).unwrap_err().msg.contains("K8S_POD_NAME"));
        for ignore in ["1", "true"] {
            Args::parse(&format!("IgnoreUnknown={ignore};K8S_POD_NAME=p"))
                .unwrap()
                .expect_only(&["MAC"])
                .unwrap();
        }
        assert!(Args::parse("IgnoreUnknown=0;A=1").unwrap().expect_only(&["MAC"]).is_err());
    }
}
