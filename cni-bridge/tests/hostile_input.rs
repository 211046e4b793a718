//! What comes from outside is read or refused with a code, whatever it is: the fuzz targets' corpus (`corpus/`), cut
//! off and changed in every place, and every key with a value of every type.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use cni::runtime::NetworkConfigList;
use cni::{Command, Request};
use cni_bridge::readers;
use serde_json::{Value, json};

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty());
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// The code of each refusal: version, field, decode or configuration.
fn expect_a_code(error: &cni::Error) {
    assert!([1, 2, 4, 6, 7].contains(&error.code.get()), "{error}");
    assert!(!error.msg.is_empty());
}

fn read_call(text: &[u8]) {
    readers::call(text).iter().for_each(expect_a_code);
}

fn request(text: &[u8]) -> Result<Request, cni::Error> {
    readers::parse(Command::Add, text)
}

/// `text` cut off at each place, and with bytes that mean something to JSON or YAML in many.
fn variants(text: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let cut = (0..text.len()).map(|end| text[..end].to_vec());
    let changed = (0..text.len()).map(move |at| {
        let mut changed = text.to_vec();
        changed[at] = b"\0\"{}[]:,-9e\\ \xff\n&*"[at % 17];
        changed
    });
    cut.chain(changed)
}

#[test]
fn the_corpus_is_what_it_says() {
    for (path, text) in corpus("request") {
        let request = request(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let kind = request.config.get("type").unwrap().as_str().unwrap();
        let index = ["cnv-bridge", "cnv-tuning", "vm-tap"].iter().position(|known| *known == kind).unwrap();
        readers::request(&request)[index]
            .as_ref()
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    for (path, text) in corpus("conflist") {
        let list = NetworkConfigList::parse(std::str::from_utf8(&text).unwrap());
        assert!(list.is_ok(), "{}: {list:?}", path.display());
    }
    for (path, text) in corpus("policy") {
        let policy = readers::policy(std::str::from_utf8(&text).unwrap());
        assert!(policy.is_ok(), "{}: {policy:?}", path.display());
    }
    for (path, text) in corpus("answer") {
        let answer = readers::answer(&text);
        assert!(answer.as_ref().is_ok_and(|answer| !answer.ips.is_empty()), "{}: {answer:?}", path.display());
    }
}

#[test]
fn what_fuzzing_found_is_refused() {
    for (path, text) in corpus("request-refused") {
        assert!(!readers::call(&text).is_empty(), "{}", path.display());
        read_call(&text);
    }
    for (path, text) in corpus("answer-refused") {
        assert!(readers::answer(&text).is_err_and(|error| !error.msg.is_empty()), "{}", path.display());
    }
    for (path, text) in corpus("policy-refused") {
        assert!(readers::policy(std::str::from_utf8(&text).unwrap()).is_err(), "{}", path.display());
    }
}

#[test]
fn broken_requests_are_refused_with_a_code() {
    for (_, text) in corpus("request") {
        variants(&text).for_each(|variant| read_call(&variant));
    }
}

#[test]
fn broken_lists_policies_and_answers_are_refused() {
    for (_, text) in corpus("conflist") {
        for variant in variants(&text) {
            // Either is fine: that it ends is the promise.
            let _read = std::str::from_utf8(&variant).map(NetworkConfigList::parse);
        }
    }
    for (_, text) in corpus("answer") {
        for variant in variants(&text) {
            assert!(readers::answer(&variant).err().is_none_or(|error| !error.msg.is_empty()));
        }
    }
    for (_, text) in corpus("policy") {
        for variant in variants(&text) {
            let _read = std::str::from_utf8(&variant).map(readers::policy);
        }
    }
}

#[test]
fn every_key_of_every_type_is_read_or_refused_by_name() {
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1.5),
        json!(18446744073709551615u64),
        json!(1e300),
        json!(""),
        json!("x\u{0}y"),
        json!("x".repeat(70_000)),
        json!([]),
        json!([[[[null]]]]),
        json!({}),
        json!({"cni": {"mac": {"a": []}}}),
    ];
    for (path, text) in corpus("request") {
        let variables = text.iter().position(|byte| *byte == b'{').unwrap();
        let good: Value = serde_json::from_slice(&text[variables..]).unwrap();
        for key in good.as_object().unwrap().keys() {
            for value in &values {
                let mut changed = good.clone();
                changed[key] = value.clone();
                let stdin = changed.to_string();
                read_call(stdin.as_bytes());
                let Ok(request) = request(stdin.as_bytes()) else { continue };
                for refusal in readers::request(&request).into_iter().filter_map(Result::err) {
                    let text = refusal.to_string();
                    let known = text.contains(key) || !names_another(&text, key, &good);
                    assert!(known, "{}: {key} is {value}: {text}", path.display());
                }
            }
        }
    }
}

/// The message blames a key that was not changed.
fn names_another(text: &str, changed: &str, config: &Value) -> bool {
    // Keys of which one is only allowed with, or without, another.
    const TOGETHER: [&str; 6] = ["vlan", "vlanTrunk", "ipam", "hairpinMode", "args", "runtimeConfig"];
    let first = text.split([':', ' ', '[', '.']).next().unwrap_or_default();
    config.get(first).is_some() && first != changed && !TOGETHER.contains(&changed)
}

#[test]
fn long_and_deep_texts_end_in_an_error() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for depth in [100, 10_000, 100_000] {
            let deep =
                format!(r#"{{"name":"n","vlanTrunk":{}1{}}}"#, open.repeat(depth), close.repeat(depth));
            read_call(deep.as_bytes());
        }
    }
    let long_key = format!(r#"{{"name":"n","{}":1}}"#, "k".repeat(1 << 20));
    read_call(long_key.as_bytes());
    let many_keys: Vec<_> = (0..50_000).map(|number| format!(r#""key{number}":0"#)).collect();
    read_call(format!(r#"{{"name":"n",{}}}"#, many_keys.join(",")).as_bytes());
    let many_vlans = vec![r#"{"minID":1,"maxID":4094}"#; 40_000].join(",");
    read_call(format!(r#"{{"name":"n","vlanTrunk":[{many_vlans}]}}"#).as_bytes());
}
