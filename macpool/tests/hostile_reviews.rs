//! Reviews with anything anywhere: whatever is answered is an answer, and whatever is given is an address nobody has.

#![expect(clippy::unwrap_used, reason = "a helper's failure is the test's failure")]

#[path = "support/mod.rs"]
mod support;

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use macpool::admit::{self, Answer};
use macpool::range::Ranges;
use macpool::store::OnDuplicate;
use macpool::store::dir::{DirStore, Policy};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::create;

/// Any JSON, with texts that mean something here.
fn anything() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        Just("02:00:00:00:00:01".to_owned()),
        Just("ff-ff-ff-ff-ff-ff".to_owned()),
        Just("red".to_owned()),
        Just("DELETE".to_owned()),
        Just("WaitAsReceiver".to_owned()),
        "\\PC{0,20}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        let key = prop_oneof![
            Just("name".to_owned()),
            Just("macAddress".to_owned()),
            Just("multus".to_owned()),
            Just("networks".to_owned()),
            Just("interfaces".to_owned()),
            Just("spec".to_owned()),
            Just("metadata".to_owned()),
            "[a-z]{1,6}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// Every place of a review, from the whole of it to single texts.
fn places(review: &Value) -> Vec<String> {
    let mut places = vec![String::new()];
    match review {
        Value::Object(map) => {
            for (key, value) in map {
                places.extend(self::places(value).into_iter().map(|rest| format!("/{key}{rest}")));
            }
        }
        Value::Array(list) => {
            for (at, value) in list.iter().enumerate() {
                places.extend(self::places(value).into_iter().map(|rest| format!("/{at}{rest}")));
            }
        }
        _ => {}
    }
    places
}

/// The addresses of an answer's patch, each for a NIC that the object has.
fn given(response: &Value, review: &Value) -> Vec<String> {
    let Some(patch) = response["patch"].as_str() else { return Vec::new() };
    let patch: Value = serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
    let mac = |op: &Value| {
        let nic = op["path"].as_str().unwrap().strip_suffix("/macAddress").unwrap();
        let nic = review["request"]["object"].pointer(nic);
        assert!(nic.is_some_and(Value::is_object), "{op} in {review}");
        op["value"].as_str().unwrap().to_owned()
    };
    patch.as_array().unwrap().iter().map(mac).collect()
}

#[test]
fn whatever_a_review_holds_the_answer_is_one_and_addresses_stay_unique() {
    let folder = tempfile::tempdir().unwrap();
    let ranges = Ranges::new(&["02:00:00:00:00:00-02:00:00:ff:ff:ff".parse().unwrap()], &[]).unwrap();
    let policy = Policy { on_duplicate: OnDuplicate::Reject, ..Policy::default() };
    let store = DirStore::open(folder.path(), ranges, policy).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let template = create("vm", &[("red", ""), ("blue", "")]);
    let places = places(&template);
    let seen = std::cell::RefCell::new(HashSet::new());
    let number = std::cell::Cell::new(0);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let strategy = (prop::sample::select(places), anything());
    runner
        .run(&strategy, |(place, value)| {
            // A VM of its own each time, so that an address that comes back was given twice.
            number.set(number.get() + 1);
            let mut review = create(&format!("vm-{}", number.get()), &[("red", ""), ("blue", "")]);
            *review.pointer_mut(&place).unwrap() = value;
            let body = review.to_string();
            match runtime.block_on(admit::virtual_machine(&store, body.as_bytes())) {
                Answer::Allowed(body) | Answer::Refused(body) => {
                    let answer: Value = serde_json::from_slice(&body).unwrap();
                    let response = &answer["response"];
                    prop_assert_eq!(&response["uid"], &review["request"]["uid"]);
                    if review["request"]["name"] != json!(format!("vm-{}", number.get())) {
                        return Ok(());
                    }
                    for mac in given(response, &review) {
                        prop_assert!(seen.borrow_mut().insert(mac.clone()), "{mac} was given twice");
                    }
                }
                Answer::Bad(reason) => prop_assert!(!reason.is_empty()),
                Answer::Unavailable(reason) => panic!("{reason}"),
            }
            Ok(())
        })
        .unwrap();
    assert!(seen.borrow().len() > 100, "most reviews are good enough for addresses");
}
