//! What stands between one replica and the API server: sees each request, and lets a test hold it back, or its answer, or lose
//! either of them.
//!
//! The replica speaks plain HTTP to it. Each connection carries one request, so that its answer ends where the connection does.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::*;

/// What becomes of a request. Asked again whenever the rule changes, for as long as it is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Pass,
    /// It waits on its way to the API server.
    Held,
    /// It never gets there: the connection breaks.
    Refused,
    /// The API server acts, and its answer waits; or what a watch still has to tell.
    Unanswered,
    /// The API server acts, and its answer never comes: the connection breaks.
    Lost,
}

type Rule = Box<dyn Fn(&str) -> Fate + Send>;

struct State {
    rule: Rule,
    asked: Vec<String>,
    answered: Vec<String>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    api: SocketAddr,
    tls: Arc<ClientConfig>,
}

/// For the rest of the process.
pub(super) struct Between {
    shared: Arc<Shared>,
    /// Leads through it.
    pub(super) kubeconfig: PathBuf,
}

impl Between {
    /// Everything passes.
    pub(super) fn start(cluster: &Cluster) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(cluster.api.certificate()).unwrap() {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let state = State { rule: Box::new(|_| Fate::Pass), asked: Vec::new(), answered: Vec::new() };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            api: cluster.api.address(),
            tls: Arc::new(tls),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let text = std::fs::read_to_string(&cluster.kubeconfig).unwrap();
        let kubeconfig = cluster.kubeconfig.with_file_name(format!("by-{}.kubeconfig", address.port()));
        std::fs::write(&kubeconfig, text.replace(&cluster.api.url(), &format!("http://{address}"))).unwrap();
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let serving = Arc::clone(&serving);
                // A connection that breaks is the client's to mend.
                std::thread::spawn(move || serving.carry(&client).unwrap_or_default());
            }
        });
        Self { shared, kubeconfig }
    }

    /// From now on this decides, by method and path: `PUT /apis/…`.
    pub(super) fn rule(&self, rule: impl Fn(&str) -> Fate + Send + 'static) {
        self.shared.state.lock().unwrap().rule = Box::new(rule);
        self.shared.changed.notify_all();
    }

    /// Waits until so many requests that begin like this, and go on with `what`, have come.
    pub(super) fn await_asked(&self, method: &str, what: &str, count: usize) {
        eventually("it asks", PATIENCE, || (self.asked(method, what) >= count).then_some(()));
    }

    /// How many such requests have come.
    pub(super) fn asked(&self, method: &str, what: &str) -> usize {
        matching(&self.shared.state.lock().unwrap().asked, method, what).count()
    }

    /// How many such requests the API server has answered with this status.
    pub(super) fn answered(&self, method: &str, what: &str, status: &str) -> usize {
        let state = self.shared.state.lock().unwrap();
        matching(&state.answered, method, what).filter(|line| line.ends_with(status)).count()
    }

    /// Waits for the API server's answer to one; its status.
    pub(super) fn await_answer(&self, method: &str, what: &str) -> String {
        eventually("the API server answers", PATIENCE, || {
            let state = self.shared.state.lock().unwrap();
            let line = matching(&state.answered, method, what).next()?;
            Some(line.rsplit_once(' ')?.1.to_owned())
        })
    }
}

fn matching<'l>(lines: &'l [String], method: &'l str, what: &'l str) -> impl Iterator<Item = &'l String> {
    lines.iter().filter(move |line| is(line, method, what))
}

/// Is it a request of this kind?
pub(super) fn is(line: &str, method: &str, what: &str) -> bool {
    line.starts_with(method) && line.contains(what)
}

impl Shared {
    /// What is decided, once it is not `waiting`.
    fn fate(&self, line: &str, waiting: Fate) -> Fate {
        let state = self.state.lock().unwrap();
        let state = self.changed.wait_while(state, |state| (state.rule)(line) == waiting).unwrap();
        (state.rule)(line)
    }

    fn carry(&self, client: &TcpStream) -> std::io::Result<()> {
        let mut from = BufReader::new(client);
        let mut head = String::new();
        while from.read_line(&mut head)? > 2 {}
        let Some((first, rest)) = head.split_once("\r\n") else { return Ok(()) };
        let line = first.trim_end_matches(" HTTP/1.1");
        let length = rest.lines().find_map(|header| {
            let (name, value) = header.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        let mut body = vec![0; length.unwrap_or(0)];
        from.read_exact(&mut body)?;
        self.state.lock().unwrap().asked.push(line.to_owned());
        if self.fate(line, Fate::Held) == Fate::Refused {
            return client.shutdown(Shutdown::Both);
        }
        let name = ServerName::from(self.api.ip());
        let tls = ClientConnection::new(Arc::clone(&self.tls), name).unwrap();
        let mut server = StreamOwned::new(tls, TcpStream::connect(self.api)?);
        server.write_all(format!("{first}\r\nConnection: close\r\n{rest}").as_bytes())?;
        server.write_all(&body)?;
        self.answer(line, &mut server, client)?;
        client.shutdown(Shutdown::Both)
    }

    fn answer(
        &self,
        line: &str,
        server: &mut StreamOwned<ClientConnection, TcpStream>,
        mut client: &TcpStream,
    ) -> std::io::Result<()> {
        let mut octets = vec![0; 64 << 10];
        let mut begun = false;
        loop {
            let length = server.read(&mut octets)?;
            let octets = &octets[..length];
            if !std::mem::replace(&mut begun, true) {
                let status = String::from_utf8_lossy(octets.get(9..12).unwrap_or_default());
                self.state.lock().unwrap().answered.push(format!("{line} {status}"));
            }
            if octets.is_empty() || self.fate(line, Fate::Unanswered) == Fate::Lost {
                return Ok(());
            }
            client.write_all(octets)?;
        }
    }
}
