//! YAML as Kubernetes writes it: a stream of documents, read into JSON values.
//!
//! Plain `yes` and `no` are booleans and duplicate keys are an error, as in Kubernetes' own reader. The reader
//! bounds nesting, aliases and size, so a hostile file ends in an error. JSON is YAML enough to be read too.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system said no, or it is no text.
    #[error("cannot read {}", path.display())]
    Io {
        /// As given.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// More than a manifest can have.
    #[error("{} is larger than {MAX_FILE} bytes", .0.display())]
    TooLarge(PathBuf),
}

/// Why a text is no YAML. Prints the line it goes wrong at.
#[derive(Debug, thiserror::Error)]
#[error("not YAML")]
pub struct YamlError(#[source] serde_saphyr::Error);

/// The text of a file that a user names; "-" is standard input.
///
/// # Errors
/// It cannot be read, is no text, or is larger than 4 MiB.
pub fn read(path: &Path) -> Result<String, ReadError> {
    let failed = |source| ReadError::Io { path: path.to_owned(), source };
    let reader: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(path).map_err(failed)?)
    };
    let mut text = String::new();
    let length = reader.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if length as u64 > MAX_FILE { Err(ReadError::TooLarge(path.to_owned())) } else { Ok(text) }
}

/// The documents of a stream, empty ones left out.
pub fn documents(text: &str) -> Result<Vec<Value>, YamlError> {
    serde_saphyr::from_multiple(text).map_err(YamlError)
}

/// A document that prints `value`.
pub fn to_string(value: &impl serde::Serialize) -> Result<String, serde_saphyr::ser_error::Error> {
    serde_saphyr::to_string(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_come_one_by_one() {
        let text = "---\na: 02:00:00:00:00:01\n---\n---\nb: [yes, 1Gi, 2]\n...\n";
        assert_eq!(
            documents(text).unwrap(),
            [json!({"a": "02:00:00:00:00:01"}), json!({"b": [true, "1Gi", 2]})]
        );
        assert_eq!(documents("").unwrap(), [] as [Value; 0]);
    }

    #[test]
    fn a_file_is_read_up_to_a_limit_and_errors_name_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        let message = || read(&path).unwrap_err().to_string();
        assert_eq!(message(), format!("cannot read {}", path.display()));
        std::fs::write(&path, "a: 1").unwrap();
        assert_eq!(read(&path).unwrap(), "a: 1");
        File::create(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert_eq!(message(), format!("{} is larger than 4194304 bytes", path.display()));
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(message(), format!("cannot read {}", path.display()));
    }

    #[test]
    fn broken_and_hostile_texts_end_in_an_error() {
        let bomb = format!(
            "a0: &a0 [x, x, x, x, x, x, x, x, x]\n{}",
            (1..40)
                .map(|i| format!("a{i}: &a{i} [{}]\n", format!("*a{}, ", i - 1).repeat(9)))
                .collect::<String>()
        );
        let deep = "[".repeat(100_000);
        for text in ["a: [1", "a: 1\na: 2", "a: b: c", "? [a]\n: 1", &bomb, &deep] {
            assert!(documents(text).is_err(), "{}", &text[..text.len().min(40)]);
        }
    }
}
