//! CHECK's vocabulary: what is there against what ADD made.

use std::fmt::Display;

/// The first difference that CHECK found.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {found}, expected {expected}")]
pub(crate) struct Difference {
    what: String,
    found: String,
    expected: String,
}

/// `what` is `found` where it should be `expected`.
pub(crate) fn difference(what: impl Display, found: impl Display, expected: impl Display) -> Difference {
    Difference { what: what.to_string(), found: found.to_string(), expected: expected.to_string() }
}

/// Fails unless `found` is `expected`.
pub(crate) fn expect<T: PartialEq + Display>(what: &str, found: T, expected: T) -> Result<(), Difference> {
    if found == expected { Ok(()) } else { Err(difference(what, found, expected)) }
}

/// A link's administrative state in words.
pub(crate) fn state(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

/// A link's index in words.
pub(crate) fn index(index: Option<u32>) -> String {
    index.map_or_else(|| "none".to_owned(), |index| format!("the link with index {index}"))
}
