//! The runtime side runs chains of real processes: small shell scripts that behave as plugins do, well and badly.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cni::Attachment;
use cni::runtime::{ExecError, Invocation, NetworkConfigList, Runtime, RuntimeError};
use serde_json::json;

struct Bench {
    directory: tempfile::TempDir,
    runtime: Runtime,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let cache = directory.path().join("cache");
        let runtime = Runtime { plugin_path: vec![bin], cache, timeout: Duration::from_secs(20) };
        Self { directory, runtime }
    }

    /// A plugin that appends `name command` to the log and then runs `body`, its configuration in `$config`.
    fn plugin(&self, name: &str, body: &str) {
        let path = self.runtime.plugin_path[0].join(name);
        let log = self.log_path();
        let script =
            format!("#!/bin/sh\nconfig=$(cat)\necho \"{name} $CNI_COMMAND\" >> {}\n{body}\n", log.display());
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn log(&self) -> Vec<String> {
        fs::read_to_string(self.log_path()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn records(&self) -> usize {
        fs::read_dir(&self.runtime.cache).map(Iterator::count).unwrap_or(0)
    }
}

const ANSWER: &str =
    r#"[ $CNI_COMMAND != ADD ] || echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}]}'"#;
const REFUSE_ADD: &str = r#"[ $CNI_COMMAND != ADD ] || { echo '{"cniVersion":"1.0.0","code":7,"msg":"no such bridge"}'; exit 1; }"#;

fn network(plugins: &[&str]) -> NetworkConfigList {
    let plugins: Vec<_> = plugins.iter().map(|kind| json!({"type": kind})).collect();
    NetworkConfigList::parse(&json!({"name": "n", "cniVersion": "1.0.0", "plugins": plugins}).to_string())
        .unwrap()
}

fn invocation() -> Invocation {
    let attachment = Attachment {
        container: "c1".parse().unwrap(),
        if_name: "eth0".parse().unwrap(),
        netns: Some(Path::new("/run/netns/c1").to_owned()),
    };
    Invocation {
        attachment,
        args: vec![("MAC".into(), "02:00:00:00:00:01".into())],
        capabilities: Default::default(),
    }
}

#[test]
fn a_chain_passes_results_on_and_is_taken_down_in_reverse() {
    let bench = Bench::new();
    bench.plugin("a", ANSWER);
    let pass_on = format!("case \"$config\" in *prevResult*) ;; *) exit 3;; esac\n{ANSWER}");
    bench.plugin("b", &pass_on);
    let result = bench.runtime.add(&network(&["a", "b"]), &invocation()).unwrap();
    assert_eq!(result.interfaces[0].name, "eth0");
    bench.runtime.check("n", &invocation().attachment).unwrap();
    bench.runtime.del("n", &invocation().attachment).unwrap();
    bench.runtime.del("n", &invocation().attachment).unwrap();
    assert_eq!(bench.log(), ["a ADD", "b ADD", "a CHECK", "b CHECK", "b DEL", "a DEL"]);
    assert_eq!(bench.records(), 0);
}

#[test]
fn a_failed_chain_is_taken_down_and_the_plugin_s_words_are_kept() {
    let bench = Bench::new();
    bench.plugin("a", ANSWER);
    bench.plugin("b", REFUSE_ADD);
    let error = bench.runtime.add(&network(&["a", "b"]), &invocation()).unwrap_err();
    let RuntimeError::Plugin { plugin, source, .. } = &error else { panic!("{error:?}") };
    assert_eq!((plugin.as_str(), source.code.get(), source.msg.as_str()), ("b", 7, "no such bridge"));
    assert_eq!(bench.log(), ["a ADD", "b ADD", "b DEL", "a DEL"]);
    assert_eq!(bench.records(), 0);
}

#[test]
fn a_second_attachment_of_one_interface_is_refused_and_the_first_left_alone() {
    let bench = Bench::new();
    bench.plugin("a", ANSWER);
    bench.runtime.add(&network(&["a"]), &invocation()).unwrap();
    let error = bench.runtime.add(&network(&["a"]), &invocation()).unwrap_err();
    assert!(matches!(error, RuntimeError::AlreadyAttached { .. }));
    assert_eq!(bench.log(), ["a ADD"]);
    assert_eq!(bench.records(), 1);
}

#[test]
fn an_attachment_that_was_never_finished_is_taken_down_before_the_next() {
    let bench = Bench::new();
    bench.plugin("a", "exit 1");
    bench.runtime.add(&network(&["a"]), &invocation()).unwrap_err();
    assert_eq!(bench.records(), 1);
    bench.plugin("a", ANSWER);
    bench.runtime.add(&network(&["a"]), &invocation()).unwrap();
    assert_eq!(bench.log(), ["a ADD", "a DEL", "a DEL", "a ADD"]);
}

#[test]
fn a_record_stays_while_del_fails_and_every_plugin_is_asked() {
    let bench = Bench::new();
    bench.plugin("a", ANSWER);
    bench.plugin("b", ANSWER);
    bench.runtime.add(&network(&["a", "b"]), &invocation()).unwrap();
    bench.plugin("b", "exit 1");
    bench.runtime.del("n", &invocation().attachment).unwrap_err();
    assert_eq!(bench.records(), 1);
    assert_eq!(bench.log()[2..], ["b DEL", "a DEL"]);
    bench.plugin("b", ANSWER);
    let cached = bench.runtime.cached().unwrap();
    bench.runtime.del_cached(&cached[0]).unwrap();
    assert_eq!(bench.records(), 0);
}

/// The network of [`network`] in the version that has STATUS and GC, with more members.
fn newest(plugins: &[&str], more: serde_json::Value) -> NetworkConfigList {
    let plugins: Vec<_> = plugins.iter().map(|kind| json!({"type": kind})).collect();
    let mut config = json!({"name": "n", "cniVersion": "1.1.0", "plugins": plugins});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    NetworkConfigList::parse(&config.to_string()).unwrap()
}

#[test]
fn status_is_asked_of_each_plugin_and_a_plugin_s_no_is_told_in_its_words() {
    let bench = Bench::new();
    bench.plugin("a", ANSWER);
    bench.plugin("b", ANSWER);
    bench.runtime.status(&newest(&["a", "b"], json!({}))).unwrap();
    bench.runtime.status(&network(&["a", "b"])).unwrap();
    assert_eq!(bench.log(), ["a STATUS", "b STATUS"], "STATUS came with 1.1.0");
    for code in [50, 51] {
        let no = format!(
            r#"echo '{{"cniVersion":"1.1.0","code":{code},"msg":"bridge br1 does not exist","details":"create it"}}'; exit 1"#
        );
        bench.plugin("b", &no);
        let error = bench.runtime.status(&newest(&["a", "b"], json!({}))).unwrap_err();
        let RuntimeError::Plugin { network, plugin, source, .. } = &error else { panic!("{error:?}") };
        assert_eq!((network.as_str(), plugin.as_str(), source.code.get()), ("n", "b", code));
        assert_eq!(
            (source.msg.as_str(), source.details.as_str()),
            ("bridge br1 does not exist", "create it")
        );
        assert_eq!(error.to_string(), "network n: b STATUS");
    }
    let missing = bench.runtime.status(&newest(&["a", "c"], json!({}))).unwrap_err();
    assert!(matches!(missing, RuntimeError::Exec { .. }), "{missing:?}");
}

#[test]
fn gc_tells_what_is_valid_goes_on_past_failures_and_is_not_called_where_it_is_disabled() {
    let bench = Bench::new();
    let valid = r#"case "$config" in *'"cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]'*) exit 1;; esac; exit 2"#;
    bench.plugin("a", valid);
    bench.plugin("b", ANSWER);
    let plugins = ["a", "b"];
    let gc = |more| bench.runtime.gc(&newest(&plugins, more), &[invocation().attachment]);
    gc(json!({"disableGC": true, "loadOnlyInlinedPlugins": true})).unwrap();
    bench.runtime.gc(&network(&plugins), &[]).unwrap();
    assert_eq!(bench.log(), [""; 0]);
    let error = gc(json!({"loadOnlyInlinedPlugins": true})).unwrap_err();
    let RuntimeError::Plugin { plugin, source, .. } = &error else { panic!("{error:?}") };
    assert!(plugin == "a" && source.msg.contains("exit status: 1"), "{error:?}");
    assert_eq!(bench.log(), ["a GC", "b GC"]);
}

#[test]
fn plugins_that_misbehave_are_ended_and_described() {
    let mut bench = Bench::new();
    let add = |bench: &Bench| match bench.runtime.add(&network(&["a"]), &invocation()).unwrap_err() {
        RuntimeError::Exec { source, .. } => source,
        RuntimeError::Plugin { source, .. } => ExecError::Plugin(source),
        other => panic!("{other:?}"),
    };
    assert!(matches!(add(&bench), ExecError::NotFound { .. }));
    assert_eq!(bench.records(), 0);
    bench.plugin("a", "[ $CNI_COMMAND = DEL ] || echo hello");
    assert!(matches!(add(&bench), ExecError::Answer(_)));
    bench.plugin("a", "[ $CNI_COMMAND = DEL ] && exit 0; echo what went wrong >&2; kill -9 $$");
    let ExecError::Plugin(error) = add(&bench) else { panic!() };
    assert!(error.msg.contains("signal: 9") && error.details == "what went wrong", "{error:?}");
    bench.plugin("a", "[ $CNI_COMMAND = DEL ] || yes");
    assert!(matches!(add(&bench), ExecError::TooMuch));
    bench.runtime.timeout = Duration::from_millis(300);
    bench.plugin("a", "[ $CNI_COMMAND = DEL ] && exit 0; exec 2>&-; exec sleep 60");
    assert!(matches!(add(&bench), ExecError::Timeout(_)));
    bench.plugin("a", "[ $CNI_COMMAND = DEL ] && exit 0; exec >&- 2>&-; exec sleep 60");
    assert!(matches!(add(&bench), ExecError::Timeout(_)), "it answered and did not end");
}

/// A pipe holds 64 KiB: whoever has its other end and reads nothing must not be waited for.
#[test]
fn a_configuration_that_nobody_reads_is_not_waited_for() {
    let mut bench = Bench::new();
    bench.runtime.timeout = Duration::from_millis(300);
    let path = bench.runtime.plugin_path[0].join("a");
    fs::write(&path, "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\nsleep 60\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let plugins = json!([{"type": "a", "note": "x".repeat(1 << 20)}]);
    let network = json!({"name": "n", "cniVersion": "1.0.0", "plugins": plugins}).to_string();
    let network = NetworkConfigList::parse(&network).unwrap();
    let error = bench.runtime.add(&network, &invocation()).unwrap_err();
    assert!(matches!(error, RuntimeError::Exec { source: ExecError::Timeout(_), .. }), "{error:?}");
}

#[test]
fn a_plugin_gets_its_caller_s_environment() {
    let bench = Bench::new();
    // What every test run has.
    let name = "CARGO_MANIFEST_DIR";
    let expected = std::env::var(name).unwrap();
    bench.plugin("a", &format!("[ \"${name}\" = '{expected}' ] || exit 3\n{ANSWER}"));
    bench.runtime.add(&network(&["a"]), &invocation()).unwrap();
}
