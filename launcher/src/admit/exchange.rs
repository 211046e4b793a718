//! One POST over TLS 1.3: address, certificate, time and size of the answer are all bounded or checked.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName, pem};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What a webhook has in a cluster, unless its configuration says otherwise.
const PATIENCE: Duration = Duration::from_secs(10);
/// An answer is a patch; an object is smaller than that.
const MAX_ANSWER: usize = 4 << 20;

/// `https://HOST[:PORT]/PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
    path: String,
    server: ServerName<'static>,
}

/// Why a text is no endpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndpointError {
    #[error("not a URL")]
    Url(#[from] hyper::http::uri::InvalidUri),
    #[error("expected https://HOST[:PORT]/PATH")]
    Form,
    #[error("the host is neither a name nor an address")]
    Host(#[from] InvalidDnsNameError),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let uri: Uri = text.parse()?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(EndpointError::Form)?;
        if uri.scheme_str() != Some("https") {
            return Err(EndpointError::Form);
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let server = ServerName::try_from(host.clone())?;
        Ok(Self { host, port: uri.port_u16().unwrap_or(443), path, server })
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("--admit-ca {}: not a certificate in PEM", path.display())]
    Ca { path: PathBuf, source: pem::Error },
    #[error("--admit-ca {}: it can verify nobody", path.display())]
    Anchor { path: PathBuf, source: rustls::Error },
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot reach the webhook {host}:{port}")]
    Connect { host: String, port: u16, source: io::Error },
    #[error("write the request")]
    Request(#[from] hyper::http::Error),
    #[error("the webhook {0} does not speak HTTP")]
    Http(String, #[source] hyper::Error),
    #[error("read the webhook's answer")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the webhook answers {status}: {message}")]
    Status { status: StatusCode, message: String },
    #[error("the webhook {0} does not answer within {PATIENCE:?}")]
    Timeout(String),
}

/// Posts a JSON text and gives the answer's body.
pub(super) fn post(endpoint: &Endpoint, ca: &Path, body: String) -> Result<Bytes, ExchangeError> {
    let config = trust(ca)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ExchangeError::Runtime)?;
    runtime.block_on(async {
        let exchange = exchange(endpoint, config, body);
        let elapsed = |_| ExchangeError::Timeout(endpoint.host.clone());
        tokio::time::timeout(PATIENCE, exchange).await.map_err(elapsed)?
    })
}

/// TLS that believes this certificate only.
fn trust(ca: &Path) -> Result<ClientConfig, ExchangeError> {
    let wrong = |source| ExchangeError::Ca { path: ca.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(wrong)? {
        let anchor = |source| ExchangeError::Anchor { path: ca.to_owned(), source };
        roots.add(certificate.map_err(wrong)?).map_err(anchor)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

async fn exchange(endpoint: &Endpoint, config: ClientConfig, body: String) -> Result<Bytes, ExchangeError> {
    let Endpoint { host, port, path, server } = endpoint;
    let unreachable = |source| ExchangeError::Connect { host: host.clone(), port: *port, source };
    let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(server.clone(), stream).await.map_err(unreachable)?;
    let no_http = |source| ExchangeError::Http(host.clone(), source);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(no_http)?;
    let connection = tokio::spawn(connection);
    let request = Request::post(path.as_str())
        .header(HOST, host.as_str())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let answer = sender.send_request(request).await.map_err(no_http)?;
    let status = answer.status();
    let body =
        Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(ExchangeError::Body)?.to_bytes();
    connection.abort();
    if status != StatusCode::OK {
        let message: String = String::from_utf8_lossy(&body).trim().chars().take(500).collect();
        return Err(ExchangeError::Status { status, message });
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_https_url() {
        let read = |text: &str| text.parse::<Endpoint>().map(|e| (e.host, e.port, e.path)).ok();
        let whole = |host: &str, port, path: &str| Some((host.to_owned(), port, path.to_owned()));
        assert_eq!(read("https://localhost:8000/mutate?x=1"), whole("localhost", 8000, "/mutate?x=1"));
        assert_eq!(read("https://[::1]/mutate"), whole("::1", 443, "/mutate"));
        assert_eq!(read("https://pool.example.com"), whole("pool.example.com", 443, "/"));
        for wrong in [
            "",
            "localhost:8000",
            "http://localhost/",
            "https://",
            "https:///x",
            "https://a b/",
            "https://-/",
        ] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
