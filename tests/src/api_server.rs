//! A real etcd and kube-apiserver on a sandbox's loopback, in a folder of their own; no mock, no container engine.
//!
//! Both are built or unpacked by `tests/api/kube-apiserver` into the cache. The server checks RBAC: [`ApiServer::admin`]
//! is cluster-admin, [`ApiServer::service_account`] may do what was granted to it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::{Daemon, Sandbox, eventually, kubevirt, output, run};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
const VERSION: &str = "1.20.2";
/// Where they listen. Outside of the range that the kernel gives to clients: one that knocks before its server is there
/// could be given the server's own port.
const PORT: u16 = 16443;
const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;

/// A running API server. Dropping it ends both processes and removes their data.
pub struct ApiServer {
    folder: tempfile::TempDir,
    binaries: PathBuf,
    accounts: Vec<String>,
    _etcd: Daemon,
    server: Mutex<Option<Daemon>>,
}

impl ApiServer {
    /// Starts a server that knows these service accounts (`namespace:name`), and waits until it is ready. Only one fits
    /// into a sandbox.
    #[track_caller]
    pub fn start(_inside: &Sandbox, accounts: &[&str]) -> Self {
        let cache = std::env::var_os("GUESTWIRE_CACHE").map(PathBuf::from);
        let cache =
            cache.unwrap_or_else(|| Path::new(&std::env::var("HOME").unwrap()).join(".cache/guestwire"));
        let binaries = cache.join(format!("kube-apiserver-{VERSION}"));
        assert!(binaries.is_dir(), "{} is missing: run tests/api/kube-apiserver", binaries.display());
        let folder = tempfile::tempdir().unwrap();
        let mut tokens = "admin-token,admin,admin,system:masters\n".to_owned();
        for account in accounts {
            let token = Self::token(account);
            tokens += &format!("{token},system:serviceaccount:{account},{account}\n");
        }
        fs::write(folder.path().join("tokens"), tokens).unwrap();
        let etcd = Daemon::start(
            quiet(Command::new(binaries.join("etcd")), folder.path(), "etcd")
                .arg("--data-dir")
                .arg(folder.path().join("etcd"))
                .arg(format!("--listen-client-urls=http://127.0.0.1:{ETCD_PORT}"))
                .arg(format!("--advertise-client-urls=http://127.0.0.1:{ETCD_PORT}"))
                .arg(format!("--listen-peer-urls=http://127.0.0.1:{ETCD_PEER_PORT}"))
                .arg("--unsafe-no-fsync"),
        );
        let accounts = accounts.iter().map(|&account| account.to_owned()).collect();
        let server = Self { folder, binaries, accounts, _etcd: etcd, server: Mutex::default() };
        server.resume();
        server
    }

    /// Kills the API server, as a crash would; etcd keeps the data.
    pub fn crash(&self) {
        *self.server.lock().unwrap() = None;
    }

    /// Starts the API server again, on the same port, and waits until it is ready.
    #[track_caller]
    pub fn resume(&self) {
        let folder = self.folder.path();
        let key = folder.join("service-account.key");
        if !key.exists() {
            let made = output(Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048"));
            assert!(made.status.success(), "openssl: {made:?}");
        }
        let server = Daemon::start(
            quiet(Command::new(self.binaries.join("kube-apiserver")), folder, "kube-apiserver")
                .arg(format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"))
                .arg(format!("--cert-dir={}", folder.join("certificates").display()))
                .arg(format!("--secure-port={PORT}"))
                .args([
                    "--bind-address=127.0.0.1",
                    "--advertise-address=127.0.0.1",
                    "--authorization-mode=RBAC",
                ])
                .args(["--service-cluster-ip-range=10.96.0.0/16", "--service-account-issuer=https://api"])
                .args(["--feature-gates=MixedProtocolLBService=true"])
                .arg(format!("--service-account-key-file={}", key.display()))
                .arg(format!("--service-account-signing-key-file={}", key.display()))
                .arg(format!("--token-auth-file={}", folder.join("tokens").display())),
        );
        *self.server.lock().unwrap() = Some(server);
        eventually("kube-apiserver is ready", PATIENCE, || {
            let (status, _) = self.request("GET", "/readyz", None);
            (status == 200).then_some(())
        });
    }

    /// A kubeconfig with every right.
    pub fn admin(&self) -> PathBuf {
        self.kubeconfig("admin", "admin-token")
    }

    /// A kubeconfig of one of the service accounts given at the start.
    #[track_caller]
    pub fn service_account(&self, account: &str) -> PathBuf {
        assert!(self.accounts.iter().any(|known| known == account), "{account} was not given to start()");
        self.kubeconfig(&account.replace(':', "-"), &Self::token(account))
    }

    /// The same kubeconfig, through what forwards from `address` to the server.
    #[track_caller]
    pub fn kubeconfig_by(&self, kubeconfig: &Path, address: SocketAddr) -> PathBuf {
        let text = fs::read_to_string(kubeconfig).unwrap();
        let path = self.folder.path().join("forwarded.kubeconfig");
        fs::write(&path, text.replace(&self.url(), &format!("https://{address}"))).unwrap();
        path
    }

    /// The token of one of the service accounts given at the start.
    pub fn token(account: &str) -> String {
        format!("token-{account}")
    }

    /// The certificate that verifies the server.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificates/apiserver.crt")
    }

    fn kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": self.url(), "insecure-skip-tls-verify": true,
            }}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        let path = self.folder.path().join(format!("{name}.kubeconfig"));
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    /// The same as an address.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], PORT))
    }

    /// A request with every right: status code (0: no answer) and body.
    pub fn request(&self, method: &str, path: &str, body: Option<&str>) -> (u16, Value) {
        let mut command = Command::new("curl");
        command.args([
            "-sk",
            "-X",
            method,
            "-w",
            "\n%{http_code}",
            "-H",
            "Authorization: Bearer admin-token",
        ]);
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/yaml" };
        if let Some(body) = body {
            // From a file: a body may be longer than a command line.
            let file = self.folder.path().join(format!("body-{:?}", std::thread::current().id()));
            fs::write(&file, body).unwrap();
            command.args(["-H", &format!("Content-Type: {kind}"), "--data-binary"]);
            command.arg(format!("@{}", file.display()));
        }
        let text = String::from_utf8(output(command.arg(format!("{}{path}", self.url()))).stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap_or_default();
        (status.parse().unwrap_or(0), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// A page of text, with every right: status code (0: no answer) and text.
    pub fn page(&self, path: &str) -> (u16, String) {
        let mut command = Command::new("curl");
        command.args(["-sk", "-w", "\n%{http_code}", "-H", "Authorization: Bearer admin-token"]);
        let text = String::from_utf8(output(command.arg(format!("{}{path}", self.url()))).stdout).unwrap();
        let (page, status) = text.rsplit_once('\n').unwrap_or_default();
        (status.parse().unwrap_or(0), page.to_owned())
    }

    /// Creates an object (YAML or JSON) in the collection at `path`.
    #[track_caller]
    pub fn create(&self, path: &str, object: &str) -> Value {
        let (status, answer) = self.request("POST", path, Some(object));
        assert_eq!(status, 201, "POST {path}: {answer}");
        answer
    }

    /// Creates many objects in the collection at `path`, over a few connections at a time.
    #[track_caller]
    pub fn create_many(&self, path: &str, objects: impl Iterator<Item = String>) {
        let folder = self.folder.path().join("many");
        fs::create_dir_all(&folder).unwrap();
        let mut scripts = vec![String::new(); 4];
        let mut count = 0;
        for (n, object) in objects.enumerate() {
            let file = folder.join(n.to_string());
            fs::write(&file, object).unwrap();
            scripts[n % 4] += &format!(
                "next\nurl = {}{path}\nheader = \"Authorization: Bearer admin-token\"\n\
                 header = \"Content-Type: application/json\"\ndata-binary = @{}\n\
                 insecure\nsilent\nshow-error\noutput = /dev/null\nwrite-out = \"%{{http_code}}\\n\"\n",
                self.url(),
                file.display(),
            );
            count += 1;
        }
        let outputs = std::thread::scope(|scope| {
            let run = |(n, script): (usize, String)| {
                let file = folder.join(format!("script-{n}"));
                fs::write(&file, script.trim_start_matches("next\n")).unwrap();
                scope.spawn(move || output(Command::new("curl").arg("--config").arg(file)))
            };
            let threads: Vec<_> = scripts.into_iter().enumerate().map(run).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let made = |output: &std::process::Output| {
            String::from_utf8_lossy(&output.stdout).lines().filter(|code| *code == "201").count()
        };
        let errors = outputs.iter().map(|output| String::from_utf8_lossy(&output.stderr)).collect::<String>();
        assert_eq!(outputs.iter().map(made).sum::<usize>(), count, "POST {path}: {errors}");
        fs::remove_dir_all(&folder).unwrap();
    }

    /// Puts custom objects (name and content) straight into etcd, as the API server would have stored them: hundreds of
    /// times as fast, for benchmarks. `folder` is `<group>/<plural>/<namespace>`. Nothing completes these objects:
    /// they need uid and creationTimestamp.
    #[track_caller]
    pub fn store_many(&self, folder: &str, objects: impl Iterator<Item = (String, Value)>) {
        // etcd takes 128 operations, and 1.5 MB, in one transaction.
        let mut puts = Vec::new();
        let mut objects = objects.peekable();
        while let Some((name, object)) = objects.next() {
            let key = STANDARD.encode(format!("/registry/{folder}/{name}"));
            puts.push(json!({"requestPut": {"key": key, "value": STANDARD.encode(object.to_string())}}));
            if puts.len() == 128 || objects.peek().is_none() {
                let file = self.folder.path().join("transaction");
                fs::write(&file, json!({"success": std::mem::take(&mut puts)}).to_string()).unwrap();
                let url = format!("http://127.0.0.1:{ETCD_PORT}/v3/kv/txn");
                let answer =
                    run(Command::new("curl").args(["-s", "-d"]).arg(format!("@{}", file.display())).arg(url));
                assert!(answer.contains("\"succeeded\":true"), "{answer}");
            }
        }
    }

    /// GETs a path and throws the answer away: for what is measured, or too large to look at.
    #[track_caller]
    pub fn download(&self, path: &str) {
        run(Command::new("curl")
            .args(["-skf", "-o", "/dev/null", "-H", "Authorization: Bearer admin-token"])
            .arg(format!("{}{path}", self.url())));
    }

    /// Makes KubeVirt's VirtualMachine and VirtualMachineInstance known.
    #[track_caller]
    pub fn define_kubevirt(&self) {
        for definition in kubevirt::definitions() {
            self.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition.to_string());
        }
        for plural in ["virtualmachines", "virtualmachineinstances"] {
            eventually("the new kind is served", PATIENCE, || {
                let (status, _) = self.request("GET", &format!("/apis/kubevirt.io/v1/{plural}"), None);
                (status == 200).then_some(())
            });
        }
    }
}

/// Its output goes to a file in `folder`: kept out of the test's report, there to look at when a test stops.
fn quiet(mut command: Command, folder: &Path, name: &str) -> Command {
    let log = fs::File::create(folder.join(format!("{name}.log"))).unwrap();
    command.stdout(Stdio::from(log.try_clone().unwrap())).stderr(Stdio::from(log));
    command
}
