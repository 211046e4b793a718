//! `/metrics`, `/healthz` and `/readyz` over plain HTTP, for Prometheus and the kubelet.
//!
//! Ready means: the source has been read whole and queries are being answered. It stays so while the API server is
//! away, since the last good zone is served. Healthy means that a restart would not help.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use connections::Connections;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::source::State;
use crate::stats::{AllStats, header, line};
use crate::zone::SharedZone;

/// Connections at once.
const MAX_CONNECTIONS: usize = 64;
/// Connections at once from one client: who holds them all does not keep the kubelet from asking.
const MAX_PER_CLIENT: usize = 8;
/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the pages are made from.
pub struct Pages {
    /// What is served.
    pub zone: Arc<SharedZone>,
    /// How the source is.
    pub state: Arc<State>,
    /// True while queries are answered.
    pub answering: AtomicBool,
    /// What was answered, once the sockets are there.
    pub stats: OnceLock<AllStats>,
}

/// Serves until it is dropped.
pub async fn serve(pages: Arc<Pages>, listener: TcpListener) {
    let connections = Connections::new(MAX_CONNECTIONS, MAX_PER_CLIENT);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // A connection beyond the limits is closed at once.
        let Some(admitted) = connections.admit(peer.ip()) else { continue };
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            let _admitted = admitted;
            let service = service_fn(move |request| {
                let page = pages.page(&request);
                async move { Ok::<_, Infallible>(page) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(true)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "HTTP connection");
            }
        });
    }
}

impl Pages {
    fn page(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return page(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        }
        match request.uri().path() {
            "/metrics" => page(StatusCode::OK, self.metrics()),
            "/healthz" if self.state.is_broken() => {
                page(StatusCode::INTERNAL_SERVER_ERROR, "the source can no longer be followed\n".to_owned())
            }
            "/healthz" => page(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" if !self.state.is_synced() => {
                page(StatusCode::SERVICE_UNAVAILABLE, "the source has not been read whole yet\n".to_owned())
            }
            "/readyz" if !self.answering.load(Ordering::Acquire) => {
                page(StatusCode::SERVICE_UNAVAILABLE, "not answering\n".to_owned())
            }
            "/readyz" => page(StatusCode::OK, "ok\n".to_owned()),
            _ => page(StatusCode::NOT_FOUND, "see /metrics, /healthz and /readyz\n".to_owned()),
        }
    }

    fn metrics(&self) -> String {
        let mut out = String::new();
        let zone = self.zone.load_full();
        let (names, pointers) = zone.size();
        for (name, kind, help, value) in [
            ("names", "gauge", "Names below the zone that have or lead to records.", names.to_string()),
            ("pointers", "gauge", "PTR records.", pointers.to_string()),
            ("serial", "gauge", "The SOA serial served.", zone.serial().to_string()),
            (
                "source_synced",
                "gauge",
                "1 once the source has been read whole.",
                u8::from(self.state.is_synced()).to_string(),
            ),
            (
                "source_staleness_seconds",
                "gauge",
                "How long the source has not been followed; 0 while it is.",
                self.state.staleness().as_secs_f64().to_string(),
            ),
            (
                "source_failures_total",
                "counter",
                "Attempts to follow the source that failed.",
                self.state.failures().to_string(),
            ),
        ] {
            header(&mut out, name, kind, help);
            line(&mut out, name, "", value);
        }
        header(&mut out, "build_info", "gauge", "The version that runs.");
        line(&mut out, "build_info", &format!("version=\"{}\"", telemetry::VERSION), 1);
        if let Some(stats) = self.stats.get() {
            stats.render(&mut out);
        }
        out
    }
}

fn page(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let plain = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, plain);
    response
}
