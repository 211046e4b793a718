//! secondary-dns on a real API server: names follow VMIs, and outlive the API server's outages.

use std::io::{BufRead as _, BufReader, ErrorKind, Lines};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use e2e::{ApiServer, Daemon, Sandbox, binary, eventually, output};
use serde_json::{Value, json};

mod operations;

const ACCOUNT: &str = "secondary-dns:secondary-dns";
const VMIS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server and where it answers.
struct Dns {
    process: Daemon,
    address: SocketAddr,
    http: SocketAddr,
}

/// A server that has its pages, but perhaps no answers yet.
struct Starting {
    process: Daemon,
    http: SocketAddr,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Starting {
    fn new(kubeconfig: &Path, listen: &str) -> Self {
        let mut process = Daemon::start(
            Command::new(binary("secondary-dns"))
                .args(["--source", "kube", "--domain", "example.com", "--listen", listen])
                .args(["--http", "127.0.0.1:0", "--log-format", "json"])
                .env("KUBECONFIG", kubeconfig)
                .stderr(Stdio::piped()),
        );
        let mut lines = BufReader::new(process.child().stderr.take().unwrap()).lines();
        let http = await_field(&mut lines, "http");
        Self { process, http, lines }
    }

    /// Waits until it answers.
    fn answering(self) -> Dns {
        let Self { process, http, mut lines } = self;
        let address = await_field(&mut lines, "address");
        // Keep reading, or the server blocks on a full pipe.
        std::thread::spawn(move || lines.map(Result::unwrap).for_each(drop));
        Dns { process, address, http }
    }
}

/// The first log line with an address in this field.
fn await_field(lines: &mut Lines<BufReader<ChildStderr>>, name: &str) -> SocketAddr {
    let found = lines.find_map(|line| {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        line["fields"][name].as_str().map(|text| text.parse().unwrap())
    });
    found.unwrap_or_else(|| panic!("secondary-dns ended before it had said its {name}"))
}

/// The status code of `/readyz`.
fn readyz(http: SocketAddr) -> String {
    let url = format!("http://{http}/readyz");
    let answer = output(Command::new("curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]));
    String::from_utf8(answer.stdout).unwrap()
}

impl Dns {
    fn start(kubeconfig: &Path, listen: &str) -> Self {
        Starting::new(kubeconfig, listen).answering()
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
        metric(self.http, name)
    }
}

fn metric(http: SocketAddr, name: &str) -> f64 {
    let page = output(Command::new("curl").args(["-s", &format!("http://{http}/metrics")]));
    let text = String::from_utf8(page.stdout).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("secondary_dns_{name} ")));
    line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
}

/// Asks for vm1.default without pause; every reply must be one of its two addresses.
struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Tally>,
}

/// What became of the questions.
#[derive(Debug, Default)]
struct Tally {
    answered: u32,
    unanswered: u32,
}

impl Load {
    /// A question without a reply is asked again after `patience`.
    fn start(server: SocketAddr, patience: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(server).unwrap();
            socket.set_read_timeout(Some(patience)).unwrap();
            let mut tally = Tally::default();
            while !stopped.load(Ordering::Relaxed) {
                if ask(&socket) { tally.answered += 1 } else { tally.unanswered += 1 }
            }
            tally
        });
        Self { stop, thread }
    }

    /// Ends it and tells how it went.
    fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// One question; false if nobody is there to answer it.
fn ask(socket: &UdpSocket) -> bool {
    let query = b"\0\x01\0\0\0\x01\0\0\0\0\0\0\x03vm1\x07default\x02vm\x07example\x03com\0\0\x01\0\x01";
    let mut reply = [0; 512];
    let length = match socket.send(query).and_then(|_| socket.recv(&mut reply)) {
        Ok(length) => length,
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::WouldBlock) => {
            return false;
        }
        Err(error) => panic!("{error}"),
    };
    let (code, answers, address) = (reply[3] & 0xf, reply[7], &reply[length - 4..length]);
    assert!((code, answers) == (0, 1) && matches!(address, [10, 1, 0, 5 | 6]), "{reply:?}");
    true
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
    let api = ApiServer::start(&Sandbox::enter(), &[ACCOUNT]);
    api.define_kubevirt();
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
        assert!(readyz(dns.http) == "200");
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
    let api = cluster();
    api.create(VMIS, &vmi("vm1", "10.1.0.5"));
    let dns = Dns::start(&api.service_account(ACCOUNT), "127.0.0.1:0");
    assert_eq!(dns.short("vm1.default"), "10.1.0.5");
    let load = Load::start(dns.address, PATIENCE);
    api.crash();
    eventually("it notices", PATIENCE, || (dns.metric("source_staleness_seconds") > 0.0).then_some(()));
    assert!(readyz(dns.http) == "200", "it serves the last good zone");
    assert_eq!(dns.short("vm1.default"), "10.1.0.5");
    api.resume();
    move_to(&api, "vm1", "10.1.0.6");
    dns.await_short("vm1.default", "10.1.0.6");
    let tally = load.stop();
    assert!(tally.answered > 1000 && tally.unanswered == 0, "the outage was under load: {tally:?}");
    assert!(dns.metric("source_staleness_seconds") == 0.0);
}

#[test]
fn a_killed_server_comes_back_without_one_wrong_answer() {
    let api = cluster();
    api.create(VMIS, &vmi("vm1", "10.1.0.5"));
    let kubeconfig = api.service_account(ACCOUNT);
    let mut dns = Dns::start(&kubeconfig, "127.0.0.1:0");
    let load = Load::start(dns.address, Duration::from_millis(200));
    for round in 0..3 {
        let (address, serial) = (dns.address, dns.serial());
        dns.process.child().kill().unwrap();
        dns.process.child().wait().unwrap();
        // In its place, on the same port: as right as the old one from the first answer on.
        dns = Dns::start(&kubeconfig, &address.to_string());
        assert!(dns.serial() >= serial, "round {round}");
        dns.await_short("vm1.default", "10.1.0.5");
    }
    let Tally { answered, unanswered } = load.stop();
    assert!(answered > 100 && unanswered > 0, "it was killed under load: {answered}, {unanswered}");
}

#[test]
fn nothing_is_answered_before_the_first_full_list() {
    let api = cluster();
    api.create(VMIS, &vmi("vm1", "10.1.0.5"));
    api.crash();
    let starting = Starting::new(&api.service_account(ACCOUNT), "127.0.0.1:0");
    eventually("it tries", PATIENCE, || (metric(starting.http, "source_failures_total") > 0.0).then_some(()));
    assert_eq!(readyz(starting.http), "503");
    api.resume();
    let dns = starting.answering();
    assert_eq!(dns.short("vm1.default"), "10.1.0.5");
    assert_eq!(readyz(dns.http), "200");
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
    // Stored before the schema said that there are lists.
    let store = |name: &str, status: Value| {
        let mut object: Value = serde_json::from_str(&hostile(name, status)).unwrap();
        object["metadata"]["uid"] = json!(format!("uid-of-{name}"));
        object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        api.store_many(
            "kubevirt.io/virtualmachineinstances/default",
            [(name.to_owned(), object)].into_iter(),
        );
    };
    store("broken", json!({"interfaces": "none"}));
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
    store("broken2", json!({"interfaces": 7}));
    move_to(&api, "good", "10.1.0.7");
    dns.await_short("good.default", "10.1.0.7");
}
