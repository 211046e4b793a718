//! macpool on a real API server: its manifests applied as they are, its replicas as processes, a Service in between.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::{ApiServer, Daemon, Forward, Sandbox, binary, eventually, output, run};
use serde_json::{Value, json};

mod admits;
mod between;
mod cut_off;
mod deployment;
mod duplicates;
mod hand_over;
mod inspects;
mod operations;
mod pods;
mod ranges;
mod replicas;
mod tls_files;
mod unheard;
mod unwelcome;
mod updates;
mod versions;

const ACCOUNT: &str = "macpool:macpool";
const VMS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
const VMIS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
const CONFIG: &str = "/api/v1/namespaces/macpool/configmaps/kubemacpool-mac-range-config";
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster with macpool's manifests, whose webhook leads to `service`.
struct Cluster {
    api: ApiServer,
    /// The Service: leads to the replicas.
    service: Forward,
    kubeconfig: PathBuf,
}

impl Cluster {
    /// With this range, and no replica yet. Reviews may take long: how busy the machine is, is not what is tested.
    fn start(first: &str, last: &str) -> Self {
        Self::with_timeout(first, last, 30)
    }

    /// With as many seconds for a review.
    fn with_timeout(first: &str, last: &str, seconds: u32) -> Self {
        let api = ApiServer::start(&Sandbox::enter(), &[ACCOUNT]);
        api.define_kubevirt();
        let service = Forward::start("127.0.0.1:0");
        for file in ["crd", "rbac", "deployment", "service", "networkpolicy"] {
            apply(&api, file, |text| text);
        }
        // Outside a cluster there is no service network: the same paths, under our Service's address.
        apply(&api, "webhook", |text| {
            let at = |path: &str| {
                format!("service:\n        name: macpool\n        namespace: macpool\n        path: {path}\n")
            };
            let text = text.replace("timeoutSeconds: 10", &format!("timeoutSeconds: {seconds}"));
            ["/mutate-virtualmachines", "/mutate-pods"].iter().fold(text, |text, path| {
                let with = text.replace(&at(path), &format!("url: https://{}{path}\n", service.address()));
                assert_ne!(with, text, "the manifest has no service for {path}");
                with
            })
        });
        let config = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kubemacpool-mac-range-config"},
            "data": {"RANGE_START": first, "RANGE_END": last},
        });
        api.create("/api/v1/namespaces/macpool/configmaps", &config.to_string());
        let kubeconfig = api.service_account(ACCOUNT);
        Self { api, service, kubeconfig }
    }

    /// A replica, ready, behind the Service.
    fn replica(&self, arguments: &[&str]) -> Replica {
        let replica = Replica::start(&self.kubeconfig, arguments);
        self.service.add(replica.reviews);
        replica
    }

    /// Creates a VM: the status and the answer.
    fn try_create(&self, vm: &Value) -> (u16, Value) {
        self.api.request("POST", VMS, Some(&vm.to_string()))
    }

    #[track_caller]
    fn create(&self, vm: &Value) -> Vec<String> {
        let (status, answer) = self.try_create(vm);
        assert_eq!(status, 201, "{answer}");
        macs(&answer)
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        let (status, answer) = self.api.request("GET", path, None);
        assert_eq!(status, 200, "GET {path}: {answer}");
        answer
    }

    #[track_caller]
    fn delete(&self, path: &str) {
        let (status, answer) = self.api.request("DELETE", path, None);
        assert_eq!(status, 200, "DELETE {path}: {answer}");
    }

    /// How many leases there are: a replica that was deposed has none.
    fn leases(&self) -> usize {
        let leases = self.get("/apis/coordination.k8s.io/v1/namespaces/macpool/leases");
        leases["items"].as_array().unwrap().len()
    }

    /// Four clients create VMs while something happens; how many, each of them with success.
    fn create_while(&self, happens: impl FnOnce()) -> usize {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let client = |client: usize| {
                let over = &over;
                scope.spawn(move || {
                    let vms = (0..5000).map(|n| vm(&format!("vm-{client}-{n}"), &[("red", "")]));
                    vms.take_while(|_| !over.load(Ordering::Relaxed))
                        .inspect(|vm| drop(self.create(vm)))
                        .count()
                })
            };
            let clients: Vec<_> = (0..4).map(client).collect();
            happens();
            over.store(true, Ordering::Relaxed);
            clients.into_iter().map(|client| client.join().unwrap()).sum()
        })
    }

    /// Every address of every VM, with the VMs that have it.
    fn all_macs(&self) -> HashMap<String, Vec<String>> {
        let mut all: HashMap<String, Vec<String>> = HashMap::new();
        for vm in self.get(VMS)["items"].as_array().unwrap() {
            for mac in macs(vm) {
                all.entry(mac).or_default().push(vm["metadata"]["name"].as_str().unwrap().to_owned());
            }
        }
        all
    }

    /// What this is all about.
    #[track_caller]
    fn assert_unique(&self, expected: usize) {
        let all = self.all_macs();
        let twice: Vec<_> = all.iter().filter(|(_, vms)| vms.len() > 1).collect();
        assert!(twice.is_empty(), "given twice: {twice:?}");
        assert_eq!(all.len(), expected);
    }
}

fn manifest(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/macpool/{file}.yaml"));
    std::fs::read_to_string(path).unwrap()
}

fn apply(api: &ApiServer, file: &str, change: impl Fn(String) -> String) {
    let text = change(manifest(file));
    for object in text.split("---\n").filter(|text| text.contains("kind:")) {
        let kind = object.lines().find_map(|line| line.strip_prefix("kind: ")).unwrap();
        let collection = match kind {
            "CustomResourceDefinition" => "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            "Namespace" => "/api/v1/namespaces",
            "ServiceAccount" => "/api/v1/namespaces/macpool/serviceaccounts",
            "Service" => "/api/v1/namespaces/macpool/services",
            "Deployment" => "/apis/apps/v1/namespaces/macpool/deployments",
            "NetworkPolicy" => "/apis/networking.k8s.io/v1/namespaces/macpool/networkpolicies",
            "ClusterRole" => "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            "ClusterRoleBinding" => "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            "Role" => "/apis/rbac.authorization.k8s.io/v1/namespaces/macpool/roles",
            "RoleBinding" => "/apis/rbac.authorization.k8s.io/v1/namespaces/macpool/rolebindings",
            "MutatingWebhookConfiguration" => {
                "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
            }
            other => panic!("a kind nobody told this test of: {other}"),
        };
        api.create(collection, object);
    }
}

/// A replica of macpool.
struct Replica {
    process: Daemon,
    pid: u32,
    reviews: SocketAddr,
    metrics: SocketAddr,
}

impl Replica {
    fn start(kubeconfig: &Path, arguments: &[&str]) -> Self {
        Self::run(&mut Command::new(binary("macpool")), "127.0.0.1:0", kubeconfig, arguments)
    }

    /// By this command, which begins with what runs it; listening there.
    fn run(command: &mut Command, listen: &str, kubeconfig: &Path, arguments: &[&str]) -> Self {
        let replica = Self::launch(command, listen, kubeconfig, arguments);
        eventually("the replica is ready", PATIENCE, || replica.is_ready().then_some(()));
        replica
    }

    /// The same, as soon as it listens.
    fn launch(command: &mut Command, listen: &str, kubeconfig: &Path, arguments: &[&str]) -> Self {
        let mut process = Daemon::start(
            command
                .args(["--listen", listen, "--listen-metrics", listen])
                .args(["--namespace", "macpool", "--tls-name", "127.0.0.1", "--log-format", "json"])
                .args(arguments)
                .env("KUBECONFIG", kubeconfig)
                .stderr(Stdio::piped()),
        );
        let stderr = process.child().stderr.take().unwrap();
        let mut lines = BufReader::new(stderr).lines().map(|line| line.unwrap());
        let (reviews, metrics) = lines
            .by_ref()
            .inspect(|line| eprintln!("{line}"))
            .find_map(|line| {
                let line: Value = serde_json::from_str(&line).unwrap();
                let field = |name: &str| line["fields"][name].as_str()?.parse().ok();
                Some((field("address")?, field("metrics")?))
            })
            .unwrap();
        // Into the test's report, and lest the replica blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(|line| eprintln!("{line}")));
        let pid = process.child().id();
        Self { process, pid, reviews, metrics }
    }

    fn is_ready(&self) -> bool {
        let url = format!("http://{}/readyz", self.metrics);
        output(Command::new("curl").args(["-sf", &url])).status.success()
    }

    /// What it says to a review of a new VM, sent past the API server, unless it may not give any address.
    fn answer(&self, uid: &str, vm: &Value) -> Option<Value> {
        self.answer_in("default", uid, vm)
    }

    /// The same in another namespace.
    fn answer_in(&self, namespace: &str, uid: &str, vm: &Value) -> Option<Value> {
        let name = vm["metadata"]["name"].as_str().unwrap_or_default();
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
                "uid": uid, "operation": "CREATE", "namespace": namespace, "name": name,
                "resource": {"group": "kubevirt.io", "version": "v1", "resource": "virtualmachines"},
                "object": vm,
            },
        });
        let url = format!("https://{}/mutate-virtualmachines", self.reviews);
        let mut curl = Command::new("curl");
        curl.args(["-sk", "-w", "\n%{http_code}", "-d", &review.to_string(), &url]);
        let text = run(&mut curl);
        let (body, status) = text.rsplit_once('\n').unwrap();
        if status == "503" {
            return None;
        }
        let mut answer: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}"));
        Some(answer["response"].take())
    }

    /// The addresses that it gives to a VM with one NIC.
    fn review(&self, name: &str) -> Option<Vec<String>> {
        let response = self.answer("u", &vm(name, &[("red", "")]))?;
        let patch = response["patch"].as_str()?;
        let patch: Value = serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
        Some(patch.as_array().unwrap().iter().map(|op| op["value"].as_str().unwrap().to_owned()).collect())
    }

    fn metrics(&self) -> String {
        run(Command::new("curl").args(["-sf", &format!("http://{}/metrics", self.metrics)]))
    }

    fn metric(&self, name: &str) -> Option<u64> {
        let text = self.metrics();
        text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")))?.parse().ok()
    }

    /// As `kill -9` does it.
    fn crash(mut self) {
        self.process.child().kill().unwrap();
        self.process.child().wait().unwrap();
    }

    /// `-STOP` is what a node does to it that has other things to do, or has swapped it out.
    fn signal(&self, signal: &str) {
        run(Command::new("kill").args([signal, &self.pid.to_string()]));
    }

    /// As a rolling update does it.
    fn terminate(mut self) {
        self.signal("-TERM");
        assert!(self.process.child().wait().unwrap().success(), "it stops cleanly");
    }
}

/// A VM with a NIC on a secondary network for each pair of name and address ("" for any).
fn vm(name: &str, nics: &[(&str, &str)]) -> Value {
    let interfaces: Vec<_> = nics
        .iter()
        .map(|(name, mac)| match *mac {
            "" => json!({"name": name, "bridge": {}}),
            mac => json!({"name": name, "bridge": {}, "macAddress": mac}),
        })
        .collect();
    let networks: Vec<_> =
        nics.iter().map(|(name, _)| json!({"name": name, "multus": {"networkName": "br1"}})).collect();
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"running": false, "template": {"spec": {
            "domain": {
                "devices": {"interfaces": interfaces, "disks": [{"name": "root", "disk": {"bus": "virtio"}}]},
                "features": {"hyperv": {"spinlocks": {"spinlocks": 8191}}},
                "resources": {"requests": {"memory": "2Gi", "cpu": 1}},
            },
            "networks": networks,
        }}},
    })
}

/// The instance that a controller makes of a VM.
fn vmi_of(vm: &Value) -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": vm["metadata"]["name"], "namespace": "default"},
        "spec": vm["spec"]["template"]["spec"],
        "status": {"phase": "Running"},
    })
}

fn macs(vm: &Value) -> Vec<String> {
    let interfaces = vm["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"].as_array().unwrap();
    interfaces.iter().map(|nic| nic["macAddress"].as_str().unwrap_or_default().to_owned()).collect()
}
