//! secondary-dns on a real API server: names follow VMIs, and outlive the API server's outages.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use e2e::{ApiServer, Daemon, binary, eventually, output};
use serde_json::{Value, json};

const ACCOUNT: &str = "secondary-dns:secondary-dns";
const VMIS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server and where it answers.
struct Dns {
    process: Daemon,
    address: SocketAddr,
    http: SocketAddr,
}

impl Dns {
    fn start(kubeconfig: &Path, listen: &str) -> Self {
        let mut process = Daemon::start(
            Command::new(binary("secondary-dns"))
                .args(["--source", "kube", "--domain", "example.com", "--listen", listen])
                .args(["--http", "127.0.0.1:0", "--log-format", "json"])
                .env("KUBECONFIG", kubeconfig)
                .stderr(Stdio::piped()),
        );
        let stderr = process.child().stderr.take().unwrap();
        let mut lines = BufReader::new(stderr).lines().map(|line| line.unwrap());
        let mut http = None;
        let address = lines.by_ref().find_map(|line| {
            let line: Value = serde_json::from_str(&line).unwrap();
            let field = |name: &str| line["fields"][name].as_str().map(|text| text.parse().unwrap());
            http = http.or(field("http"));
            field("address")
        });
        // Keep reading, or the server blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address: address.unwrap(), http: http.unwrap() }
    }

    /// dig's output without comments; "" also stands for no answer at all.
    fn dig(&self, arguments: &[&str]) -> String {
        let server = [format!("@{}", self.address.ip()), "-p".to_owned(), self.address.port().to_string()];
        let dig = output(Command::new("dig").args(server).args(["+tries=1", "+time=3"]).args(arguments));
        String::from_utf8(dig.stdout).unwrap()
    }

    fn short(&self, name: &str) -> String {
        self.dig(&["+short", &format!("{name}.vm.example.com")]).trim().to_owned()
    }

    fn await_short(&self, name: &str, expected: &str) {
        eventually(&format!("{name} answers {expected:?}"), PATIENCE, || {
            (self.short(name) == expected).then_some(())
        });
    }

    fn serial(&self) -> u32 {
        self.dig(&["+short", "vm.example.com", "SOA"]).split(' ').nth(2).unwrap().parse().unwrap()
    }

    fn metric(&self, name: &str) -> f64 {
        let page = output(Command::new("curl").args(["-s", &format!("http://{}/metrics", self.http)]));
        let text = String::from_utf8(page.stdout).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("secondary_dns_{name} ")));
        line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
    }

    fn ready(&self) -> bool {
        output(Command::new("curl").args(["-sf", &format!("http://{}/readyz", self.http)])).status.success()
    }
}

/// Asks for vm1.default without pause; every reply must be one of its two addresses.
struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Load {
    fn start(server: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(server).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let query =
                b"\0\x01\0\0\0\x01\0\0\0\0\0\0\x03vm1\x07default\x02vm\x07example\x03com\0\0\x01\0\x01";
            let mut count = 0;
            while !stopped.load(Ordering::Relaxed) {
                socket.send(query).unwrap();
                let mut reply = [0; 512];
                let length = socket.recv(&mut reply).unwrap();
                let (code, answers, address) = (reply[3] & 0xf, reply[7], &reply[length - 4..length]);
                assert!((code, answers) == (0, 1) && matches!(address, [10, 1, 0, 5 | 6]), "{reply:?}");
                count += 1;
            }
            count
        });
        Self { stop, thread }
    }

    /// Ends it and tells how many replies there were.
    fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn vmi(name: &str, address: &str) -> String {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"domain": {"devices": {}}, "networks": [
            {"name": "default", "pod": {}}, {"name": "blue", "multus": {"networkName": "blue"}},
        ]},
        "status": {"phase": "Running", "interfaces": [
            {"name": "default", "ipAddresses": ["10.0.2.2"], "infoSource": "domain, guest-agent"},
            {"name": "blue", "mac": "02:00:00:00:00:01", "ipAddress": address, "ipAddresses": [address],
             "infoSource": "domain, guest-agent, multus-status", "queueCount": 1},
        ]},
    })
    .to_string()
}

fn move_to(api: &ApiServer, name: &str, address: &str) {
    let patch = json!({"status": {"interfaces": [{"name": "blue", "ipAddresses": [address]}]}});
    let (status, answer) = api.request("PATCH", &format!("{VMIS}/{name}"), Some(&patch.to_string()));
    assert_eq!(status, 200, "{answer}");
}

/// An API server that knows VMIs, with our manifests applied as they are.
fn cluster() -> ApiServer {
    let api = ApiServer::start(&[ACCOUNT]);
    api.define("kubevirt.io", "VirtualMachineInstance", "virtualmachineinstances");
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/secondary-dns");
    for file in ["rbac.yaml", "deployment.yaml", "service.yaml", "networkpolicy.yaml"] {
        let text = std::fs::read_to_string(deploy.join(file)).unwrap();
        for object in text.split("---\n").filter(|text| text.contains("kind:")) {
            let kind = object.lines().find_map(|line| line.strip_prefix("kind: ")).unwrap();
            api.create(collection(kind), object);
        }
    }
    api
}

fn collection(kind: &str) -> &'static str {
    match kind {
        "Namespace" => "/api/v1/namespaces",
        "ServiceAccount" => "/api/v1/namespaces/secondary-dns/serviceaccounts",
        "ConfigMap" => "/api/v1/namespaces/secondary-dns/configmaps",
        "Service" => "/api/v1/namespaces/secondary-dns/services",
        "Deployment" => "/apis/apps/v1/namespaces/secondary-dns/deployments",
        "NetworkPolicy" => "/apis/networking.k8s.io/v1/namespaces/secondary-dns/networkpolicies",
        "ClusterRole" => "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "ClusterRoleBinding" => "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        other => panic!("a kind nobody told this test of: {other}"),
    }
}

#[test]
fn names_follow_the_cluster_on_every_replica_with_one_serial() {
    let api = cluster();
    api.create(VMIS, &vmi("vm1", "10.1.0.5"));
    let kubeconfig = api.service_account(ACCOUNT);
    let replicas = [Dns::start(&kubeconfig, "127.0.0.1:0"), Dns::start(&kubeconfig, "127.0.0.1:0")];
    for dns in &replicas {
        // Ready, so the first answer is right.
        assert_eq!(dns.short("blue.vm1.default"), "10.1.0.5");
        assert!(dns.ready());
    }
    let before = replicas[0].serial();
    api.create(VMIS, &vmi("vm2", "10.1.0.6"));
    move_to(&api, "vm1", "10.1.0.7");
    for dns in &replicas {
        dns.await_short("vm2.default", "10.1.0.6");
        dns.await_short("vm1.default", "10.1.0.7");
    }
    assert_eq!(replicas[0].serial(), replicas[1].serial());
    assert!(replicas[0].serial() > before);
    let (status, _) = api.request("DELETE", &format!("{VMIS}/vm2"), None);
    assert_eq!(status, 200);
    for dns in &replicas {
        dns.await_short("vm2.default", "");
    }
    // A restart goes on from there.
    let last = replicas[0].serial();
    let again = Dns::start(&kubeconfig, "127.0.0.1:0");
    assert!(again.serial() >= last);
    assert_eq!(again.short("vm1.default"), "10.1.0.7");
}

#[test]
fn an_outage_of_the_api_server_costs_no_answer() {
    let mut api = cluster();
    api.create(VMIS, &vmi("vm1", "10.1.0.5"));
    let mut dns = Dns::start(&api.service_account(ACCOUNT), "127.0.0.1:0");
    assert_eq!(dns.short("vm1.default"), "10.1.0.5");
    let load = Load::start(dns.address);
    api.crash();
    eventually("it notices", PATIENCE, || (dns.metric("source_staleness_seconds") > 0.0).then_some(()));
    assert!(dns.ready(), "it serves the last good zone");
    assert_eq!(dns.short("vm1.default"), "10.1.0.5");
    api.resume();
    move_to(&api, "vm1", "10.1.0.6");
    dns.await_short("vm1.default", "10.1.0.6");
    assert!(load.stop() > 1000, "the outage was under load");
    assert!(dns.metric("source_staleness_seconds") == 0.0);
    // kill -9, and a new one in its place: as right as the old one from the first answer on.
    let (address, serial) = (dns.address, dns.serial());
    dns.process.child().kill().unwrap();
    dns.process.child().wait().unwrap();
    let dns = Dns::start(&api.service_account(ACCOUNT), &address.to_string());
    assert_eq!(dns.short("vm1.default"), "10.1.0.6");
    assert!(dns.serial() >= serial);
}

#[test]
fn hostile_objects_cost_only_their_own_names() {
    let api = cluster();
    api.create(VMIS, &vmi("good", "10.1.0.5"));
    let hostile = |name: &str, status: Value| {
        let mut object: Value = serde_json::from_str(&vmi(name, "10.1.0.6")).unwrap();
        object["status"] = status;
        object.to_string()
    };
    api.create(
        VMIS,
        &hostile("a.good", json!({"interfaces": [{"name": "blue", "ipAddresses": ["10.6.6.6"]}]})),
    );
    api.create(VMIS, &hostile("broken", json!({"interfaces": "none"})));
    api.create(
        VMIS,
        &hostile(
            "addresses",
            json!({"interfaces": [{"name": "blue", "ipAddresses": ["x", "::1", "10.1.0.9"]}]}),
        ),
    );
    let nics: Vec<Value> =
        (0..10_000).map(|n| json!({"name": format!("n{n}"), "ipAddresses": ["10.1.0.8"]})).collect();
    api.create(VMIS, &hostile("many", json!({"interfaces": nics})));
    let dns = Dns::start(&api.service_account(ACCOUNT), "127.0.0.1:0");
    assert_eq!(dns.short("good.default"), "10.1.0.5");
    assert_eq!(dns.short("a.good.default"), "", "a VM's name with a dot lies below another VM");
    assert_eq!(dns.short("broken.default"), "");
    assert_eq!(dns.short("addresses.default"), "10.1.0.9");
    assert_eq!(dns.short("n255.many.default"), "10.1.0.8");
    assert_eq!(dns.short("n256.many.default"), "");
    // The same by the watch.
    api.create(VMIS, &hostile("broken2", json!({"interfaces": 7})));
    move_to(&api, "good", "10.1.0.7");
    dns.await_short("good.default", "10.1.0.7");
}
