//! The messages of `malformed.txt`: the corpus of the fuzz target and of two tests.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper's failure is the test's failure")]

/// The question vm1.ns1.vm.example.com A IN.
const QUESTION: &str = "03766d31 036e7331 02766d 076578616d706c65 03636f6d 00 0001 0001";

/// One line of the file.
pub(crate) struct Case {
    /// What is wrong with it.
    pub(crate) description: &'static str,
    /// The message.
    pub(crate) octets: Vec<u8>,
    /// A response code's name, or "silence".
    pub(crate) expected: &'static str,
}

/// Every line of the file.
pub(crate) fn cases() -> Vec<Case> {
    let lines = include_str!("../malformed.txt").lines();
    let cases = lines.filter(|line| !line.starts_with('#')).map(|line| {
        let [description, hex, expected] = line.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let digits: String = hex.replace("{vm}", QUESTION).split_whitespace().collect();
        let octets =
            (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap());
        Case { description, octets: octets.collect(), expected }
    });
    cases.collect()
}
