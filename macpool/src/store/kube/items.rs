//! A list's JSON, item by item: a cluster's VMs are read in the memory that one of them takes.
//!
//! Fed with the bytes as they arrive. What is not in `items` is kept as a skeleton, because `metadata` may come before
//! or behind them. Scans only as far as telling strings from brackets takes; serde reads the items.

use serde::Deserialize;

/// The largest item read. etcd's own limit is 1.5 MiB.
const MAX_ITEM: usize = 8 << 20;

/// What a list says beside its items.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    /// The version the list shows.
    pub(super) resource_version: String,
    /// Where the next page begins; empty on the last.
    #[serde(rename = "continue")]
    pub(super) continue_token: String,
}

/// Why a list cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    /// Not the JSON of a list.
    #[error("the list is malformed")]
    Json(#[from] serde_json::Error),
    /// Beyond any size that etcd stores.
    #[error("an item of the list is larger than {MAX_ITEM} bytes")]
    TooLarge,
    /// It ended in the middle.
    #[error("the list ends early")]
    Truncated,
}

/// The state between two bytes.
#[derive(Debug, Default)]
pub(super) struct Items {
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The last string at the top level: a key, when a bracket follows.
    last: Vec<u8>,
    in_items: bool,
    item: Vec<u8>,
    skeleton: Vec<u8>,
}

impl Items {
    /// Takes the next bytes and calls `each` with the JSON of every item that they complete.
    pub(super) fn feed<E: From<ListError>>(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for &byte in bytes {
            let in_item = self.in_items && self.depth > 2;
            self.step(byte);
            if in_item || self.in_items && self.depth > 2 {
                self.item.push(byte);
            } else if !self.in_items || self.depth == 2 && byte == b'[' {
                self.skeleton.push(byte);
            }
            if self.item.len() > MAX_ITEM || self.skeleton.len() > MAX_ITEM {
                return Err(ListError::TooLarge.into());
            }
            if in_item && self.depth == 2 {
                each(&self.item)?;
                self.item.clear();
            }
        }
        Ok(())
    }

    fn step(&mut self, byte: u8) {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ if self.depth == 1 => self.last.push(byte),
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if self.depth == 1 {
                    self.last.clear();
                }
            }
            b'{' | b'[' => {
                self.in_items |= self.depth == 1 && byte == b'[' && self.last == b"items";
                self.depth += 1;
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 1 {
                    self.in_items = false;
                }
            }
            _ => {}
        }
    }

    /// The end of the list: what it says beside its items.
    pub(super) fn finish(self) -> Result<ListMeta, ListError> {
        #[derive(Deserialize)]
        struct Skeleton {
            metadata: ListMeta,
        }
        if self.depth != 0 || self.skeleton.is_empty() {
            return Err(ListError::Truncated);
        }
        Ok(serde_json::from_slice::<Skeleton>(&self.skeleton)?.metadata)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(list: &[u8], chunk: usize) -> Result<(Vec<Value>, ListMeta), ListError> {
        let (mut items, mut seen) = (Items::default(), Vec::new());
        for bytes in list.chunks(chunk) {
            items.feed(bytes, |item| {
                seen.push(serde_json::from_slice(item)?);
                Ok::<_, ListError>(())
            })?;
        }
        Ok((seen, items.finish()?))
    }

    #[test]
    fn both_orders_of_a_list_are_read() {
        let item = r#"{"metadata":{"name":"a\"]}","items":["x"]},"n":[{}]}"#;
        let meta = r#""metadata":{"resourceVersion":"7","continue":"t"}"#;
        for list in [
            format!("{{\"kind\":\"L\",{meta},\"items\":[{item}, {item}]}}\n"),
            format!("{{\"items\":[{item},{item}],\"kind\":\"items\",{meta}}}"),
        ] {
            for chunk in [1, 3, 1000] {
                let (items, meta) = read(list.as_bytes(), chunk).unwrap();
                assert_eq!(items, vec![serde_json::from_str::<Value>(item).unwrap(); 2]);
                assert_eq!((meta.resource_version.as_str(), meta.continue_token.as_str()), ("7", "t"));
            }
        }
    }

    #[test]
    fn half_a_list_is_no_list() {
        let list = json!({"metadata": {"resourceVersion": "7"}, "items": [{}]}).to_string();
        for end in 0..list.len() {
            assert!(read(&list.as_bytes()[..end], 4).is_err(), "{end}");
        }
        assert!(matches!(read(b"[]", 1), Err(ListError::Json(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, chunk in 1usize..9) {
            let _any = read(&bytes, chunk);
        }
    }
}
