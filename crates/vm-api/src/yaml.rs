//! YAML as Kubernetes writes it: a stream of documents, read into JSON values.
//!
//! Plain `yes` and `no` are booleans and duplicate keys are an error, as in Kubernetes' own reader. The reader
//! bounds nesting, aliases and size, so a hostile file ends in an error. JSON is YAML enough to be read too.

use serde_json::Value;

/// Why a text is no YAML. Prints the line it goes wrong at.
#[derive(Debug, thiserror::Error)]
#[error("not YAML")]
pub struct YamlError(#[source] serde_saphyr::Error);

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
