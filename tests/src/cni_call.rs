//! Calling a CNI plugin as a runtime does: variables, configuration on stdin, JSON on stdout.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::binaries::{binary, binary_dir};
use crate::namespace::Namespace;

/// One attachment, and the plugin that makes it.
#[derive(Debug, Clone)]
pub struct CniCall {
    plugin: PathBuf,
    /// A program and its arguments that run the plugin, and measure it for instance.
    by: Vec<String>,
    variables: BTreeMap<&'static str, OsString>,
    conf: Value,
}

/// How a plugin answered.
#[derive(Debug)]
pub struct Answer {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The result or error object; null if stdout was empty.
    pub json: Value,
    /// Its log.
    pub stderr: String,
}

impl CniCall {
    /// A call of one of our plugins with a network configuration, for interface `net1` of container `c1`.
    ///
    /// The environment holds CNI's variables and nothing else.
    #[track_caller]
    pub fn new(plugin: &str, conf: Value) -> Self {
        Self::foreign(&binary(plugin), conf)
    }

    /// The same for a plugin from elsewhere.
    pub fn foreign(plugin: &Path, conf: Value) -> Self {
        let variables = BTreeMap::from([
            ("CNI_CONTAINERID", "c1".into()),
            ("CNI_IFNAME", "net1".into()),
            ("CNI_PATH", binary_dir().into_os_string()),
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".into()),
        ]);
        Self { plugin: plugin.to_owned(), by: Vec::new(), variables, conf }
    }

    /// Has another program run the plugin: `time`, say, and its arguments.
    #[must_use]
    pub fn by(self, program: &[&str]) -> Self {
        Self { by: program.iter().map(|word| (*word).to_owned()).collect(), ..self }
    }

    /// The container's namespace.
    #[must_use]
    pub fn netns(self, namespace: &Namespace) -> Self {
        self.var("CNI_NETNS", namespace.path())
    }

    /// The container's id.
    #[must_use]
    pub fn container(self, id: &str) -> Self {
        self.var("CNI_CONTAINERID", id)
    }

    /// The interface's name in the container.
    #[must_use]
    pub fn ifname(self, name: &str) -> Self {
        self.var("CNI_IFNAME", name)
    }

    /// CNI_ARGS: `KEY=value;KEY=value`.
    #[must_use]
    pub fn args(self, args: &str) -> Self {
        self.var("CNI_ARGS", args)
    }

    /// Any other variable.
    #[must_use]
    pub fn var(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.variables.insert(name, value.into());
        self
    }

    /// Leaves a variable out.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    /// Sets one field of the configuration, `prevResult` for instance.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.conf[field] = value;
        self
    }

    /// Leaves one field of the configuration out.
    #[must_use]
    pub fn without_field(mut self, field: &str) -> Self {
        self.conf.as_object_mut().map(|conf| conf.remove(field));
        self
    }

    /// Calls it: `ADD`, `DEL`, `CHECK`, `VERSION`, `STATUS`, `GC` or what a test makes up.
    #[track_caller]
    pub fn call(&self, verb: &str) -> Answer {
        self.call_with_stdin(verb, self.conf.to_string().as_bytes())
    }

    /// Cuts ADD off after each of its changes in turn, and deletes what it left each time: whatever is there must pass `gone`
    /// then. Ends with an attachment; returns how many changes ADD made.
    ///
    /// # Panics
    /// If DEL fails, or ADD has no end.
    #[track_caller]
    pub fn cut_off_add(&self, gone: impl Fn()) -> u32 {
        for changes in 0..50 {
            if self.clone().var("GUESTWIRE_CRASH_AFTER", (changes + 1).to_string()).call("ADD").code
                == Some(0)
            {
                return changes;
            }
            self.call("DEL").success();
            gone();
        }
        panic!("the crashes never end");
    }

    /// Cuts DEL off after each of its changes in turn, finishes it by another each time and attaches again: whatever is
    /// there must pass `gone` then. Begins with what is attached, ends with nothing.
    ///
    /// # Panics
    /// If a call fails, or DEL has no end.
    #[track_caller]
    pub fn cut_off_del(&self, gone: impl Fn()) {
        for change in 1..50 {
            let ended = self.clone().var("GUESTWIRE_CRASH_AFTER", change.to_string()).call("DEL").code;
            self.call("DEL").success();
            gone();
            if ended == Some(0) {
                return;
            }
            self.call("ADD").success();
        }
        panic!("the crashes never end");
    }

    /// Calls it with these bytes instead of the configuration.
    ///
    /// # Panics
    /// If it does not start, or prints something on stdout that is not JSON.
    #[track_caller]
    pub fn call_with_stdin(&self, verb: &str, stdin: &[u8]) -> Answer {
        let mut words = self.by.iter().map(OsStr::new).chain([self.plugin.as_os_str()]);
        let mut command = Command::new(words.next().expect("there is at least the plugin"));
        command.args(words);
        command.env_clear().envs(&self.variables).env("CNI_COMMAND", verb);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // A plugin may refuse a call by its variables alone and never read this: its answer tells.
        let _written = child.stdin.take().map(|mut pipe| pipe.write_all(stdin));
        let output = child.wait_with_output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let json = match output.stdout.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
                panic!(
                    "{verb}: stdout is no JSON: {error}\n{}\n{stderr}",
                    String::from_utf8_lossy(&output.stdout)
                )
            }),
        };
        Answer { code: output.status.code(), json, stderr }
    }
}

impl Answer {
    /// The result of a call that must succeed.
    ///
    /// # Panics
    /// If it failed.
    #[track_caller]
    pub fn success(self) -> Value {
        assert_eq!(self.code, Some(0), "the plugin failed: {}\n{}", self.json, self.stderr);
        self.json
    }

    /// The code and message of a call that must fail.
    ///
    /// # Panics
    /// If it succeeded, or failed without an error object as CNI asks for.
    #[track_caller]
    pub fn error(self) -> (u64, String) {
        assert_ne!(self.code, Some(0), "the plugin succeeded: {}", self.json);
        let code = self.json["code"].as_u64();
        let message = self.json["msg"].as_str();
        match (code, message) {
            (Some(code), Some(message)) => (code, message.to_owned()),
            _ => panic!("exit {:?} without a CNI error: {}\n{}", self.code, self.json, self.stderr),
        }
    }
}
