//! How an error is told to people: all of it, on one line.

use std::error::Error;
use std::fmt;

/// An error and its causes, outermost first, each after a colon. Some libraries' errors tell their cause themselves: it
/// is not said again.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

/// See [`chain`].
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = self.0.to_string();
        f.write_str(&told)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !told.contains(&text) {
                write!(f, ": {text}")?;
                told.push_str(&text);
            }
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open {name}")]
    struct Open {
        name: &'static str,
        source: io::Error,
    }

    /// Says its cause, as errors of libraries do.
    #[derive(Debug, thiserror::Error)]
    #[error("start: {0}")]
    struct Wordy(#[source] Open);

    #[test]
    fn every_cause_is_told_once() {
        let error = Open { name: "x", source: io::Error::other("no luck") };
        assert_eq!(chain(&error).to_string(), "cannot open x: no luck");
        assert_eq!(chain(&error.source).to_string(), "no luck");
        let wordy = Wordy(error);
        assert_eq!(chain(&wordy).to_string(), "start: cannot open x: no luck");
    }
}
