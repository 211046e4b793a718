//! The ways to run `vhost-net-backend` that are shipped: with their own arguments and no other rights, its CNI plugin finds
//! it without being told where.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::{ApiServer, CniCall, Daemon, Namespace, Sandbox, binary, eventually, output, run, sh};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const DAEMON_SETS: &str = "/apis/apps/v1/namespaces/vhost-net-backend/daemonsets";
const STATE: &str = "/var/lib/guestwire/vhost";

fn shipped(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/vhost-net-backend").join(file);
    std::fs::read_to_string(path).unwrap()
}

/// The daemon with these arguments, as root with these capabilities (`net_admin`) and hardly any memory to lock without
/// one for that, on a node of the test's own.
fn starts(arguments: &[&str], capabilities: &[String]) {
    let state = tempfile::tempdir().unwrap();
    let arguments: Vec<_> = arguments
        .iter()
        .map(|argument| argument.replace(STATE, &state.path().display().to_string()))
        .collect();
    let capabilities: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let start = || {
        let mut command = Command::new("prlimit");
        command.arg("--memlock=65536").arg("setpriv");
        command.arg(format!("--bounding-set=-all{capabilities}")).arg(binary("vhost-net-backend"));
        let daemon = Daemon::start(command.args(&arguments));
        for page in ["readyz", "healthz"] {
            let url = format!("http://127.0.0.1:9105/{page}");
            eventually(page, PATIENCE, || {
                output(Command::new("curl").args(["-sf", &url])).status.success().then_some(())
            });
        }
        daemon
    };
    let daemon = start();
    sh("ip link add br1 up type bridge");
    let pod = Namespace::new("pod");
    let bridge = json!({"cniVersion": "1.1.0", "name": "net", "type": "cnv-bridge", "bridge": "br1"});
    let result = CniCall::new("cnv-bridge", bridge).netns(&pod).call("ADD").success();
    // The plugin's defaults.
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "vhost-user"});
    let plugin = CniCall::new("vhost-user", config).netns(&pod).with("prevResult", result);
    let added = plugin.call("ADD").success();
    let socket =
        added["interfaces"].as_array().unwrap().iter().find_map(|nic| nic["socketPath"].as_str()).unwrap();
    assert!(socket.starts_with("/run/guestwire/vhost/"), "{socket}");
    plugin.call("CHECK").success();
    // A new release, or a crash, loses no pod's link.
    drop(daemon);
    let _daemon = start();
    plugin.call("CHECK").success();
    let listed = run(Command::new(binary("vhost-net-backend")).args(["ctl", "list"]));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["links"].as_array().unwrap().len(), 1, "{listed}");
    plugin.call("DEL").success();
    assert!(!Path::new(socket).exists());
}

#[test]
fn the_daemon_set_serves_the_plugins_of_its_node() {
    let sandbox = Sandbox::enter();
    let api = ApiServer::start(&sandbox, &[]);
    let text = shipped("daemonset.yaml");
    let (namespace, daemon_set) = text.split_once("---\n").unwrap();
    api.create("/api/v1/namespaces", namespace);
    let stored = api.create(DAEMON_SETS, daemon_set);
    let pod = &stored["spec"]["template"]["spec"];
    assert_eq!(&stored["spec"]["selector"]["matchLabels"], &stored["spec"]["template"]["metadata"]["labels"]);
    let container = &pod["containers"][0];
    // What it and the plugin, which runs on the node itself, tell each other by path is in one place for both.
    for folder in ["/run/guestwire", STATE, "/run/netns"] {
        let mounts = container["volumeMounts"].as_array().unwrap();
        let mount = mounts.iter().find(|mount| mount["mountPath"] == folder).unwrap();
        let volumes = pod["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        assert_eq!(volume["hostPath"]["path"], folder);
    }
    for probe in ["readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], 9105, "{container}");
    }
    let strings = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let capabilities = strings(&container["securityContext"]["capabilities"]["add"]);
    let capabilities: Vec<_> = capabilities.iter().map(|name| name.to_lowercase()).collect();
    let arguments = strings(&container["args"]);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    starts(&arguments, &capabilities);
}

#[test]
fn the_systemd_unit_serves_the_plugins_of_its_machine() {
    let _sandbox = Sandbox::enter();
    let unit = shipped("vhost-net-backend.service");
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
    let arguments: Vec<_> = value("ExecStart").split(' ').collect();
    assert_eq!(arguments[0], "/usr/bin/vhost-net-backend");
    let name = |name: &str| name.strip_prefix("CAP_").unwrap().to_lowercase();
    let mut capabilities: Vec<_> = value("CapabilityBoundingSet").split(' ').map(name).collect();
    assert_eq!(value("LimitMEMLOCK"), "infinity");
    // The same, for who may not raise limits.
    capabilities.push("ipc_lock".to_owned());
    starts(&arguments[1..], &capabilities);
}
