//! JSON patches (RFC 6902) as far as webhooks send them: `add`, `replace`, `remove`.

use serde::Deserialize;
use serde_json::Value;

/// Why a patch cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PatchError {
    #[error("it is no list of add, replace and remove")]
    Form(#[from] serde_json::Error),
    #[error("{operation} {path:?}: there is no such place")]
    Place { operation: &'static str, path: String },
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Operation {
    Add { path: String, value: Value },
    Replace { path: String, value: Value },
    Remove { path: String },
}

/// Changes `document`; after an error it may be changed in part.
pub(super) fn apply(document: &mut Value, patch: &[u8]) -> Result<(), PatchError> {
    for operation in serde_json::from_slice::<Vec<Operation>>(patch)? {
        let (name, path, done) = match operation {
            Operation::Add { path, value } => ("add", path.clone(), add(document, &path, value)),
            Operation::Replace { path, value } => {
                let done = document.pointer_mut(&path).map(|old| *old = value);
                ("replace", path, done)
            }
            Operation::Remove { path } => ("remove", path.clone(), remove(document, &path)),
        };
        done.ok_or(PatchError::Place { operation: name, path })?;
    }
    Ok(())
}

/// The container that a path leads into, and the key in it.
fn parent<'d>(document: &'d mut Value, path: &str) -> Option<(&'d mut Value, String)> {
    let (container, key) = path.rsplit_once('/')?;
    Some((document.pointer_mut(container)?, key.replace("~1", "/").replace("~0", "~")))
}

fn add(document: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *document = value;
        return Some(());
    }
    match parent(document, path)? {
        (Value::Object(fields), key) => {
            fields.insert(key, value);
        }
        (Value::Array(items), key) if key == "-" => items.push(value),
        (Value::Array(items), key) => {
            let at = key.parse().ok().filter(|at| *at <= items.len())?;
            items.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(document: &mut Value, path: &str) -> Option<()> {
    match parent(document, path)? {
        (Value::Object(fields), key) => fields.remove(&key).map(drop),
        (Value::Array(items), key) => {
            let at = key.parse().ok().filter(|at| *at < items.len())?;
            items.remove(at);
            Some(())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_webhooks_send_is_applied() {
        let mut document = json!({"nics": [{"name": "a"}, {"name": "b"}], "notes": {"a/b": 1, "m~n": 2}});
        let patch = json!([
            {"op": "add", "path": "/nics/1/mac", "value": "02:00:00:00:00:01"},
            {"op": "add", "path": "/nics/-", "value": "last"},
            {"op": "add", "path": "/nics/0", "value": "first"},
            {"op": "replace", "path": "/notes/a~1b", "value": {"x": true}},
            {"op": "remove", "path": "/notes/m~0n"},
            {"op": "remove", "path": "/nics/3"},
        ]);
        apply(&mut document, patch.to_string().as_bytes()).unwrap();
        assert_eq!(
            document,
            json!({
                "nics": ["first", {"name": "a"}, {"name": "b", "mac": "02:00:00:00:00:01"}],
                "notes": {"a/b": {"x": true}},
            })
        );
    }

    #[test]
    fn places_that_are_not_there_are_named() {
        for (operation, path) in [
            ("add", "/none/x"),
            ("add", "/nics/2"),
            ("add", "/nics/0/name/x"),
            ("replace", "/none"),
            ("remove", "/none"),
            ("remove", "/nics/x"),
        ] {
            let mut document = json!({"nics": [{"name": "a"}]});
            let patch = json!([{"op": operation, "path": path, "value": 1}]).to_string();
            let error = apply(&mut document, patch.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), format!("{operation} {path:?}: there is no such place"));
        }
        assert!(matches!(
            apply(&mut json!({}), br#"[{"op":"move","path":"/a","from":"/b"}]"#),
            Err(PatchError::Form(_))
        ));
    }
}
