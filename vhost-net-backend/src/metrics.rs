//! `/metrics`, `/healthz` and `/readyz` over plain HTTP, for Prometheus and the kubelet.
//!
//! One thread with a small runtime of its own, which never comes near a packet. Healthy means that every worker answers;
//! ready, that all links asked for at the start are there.

mod text;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use connections::Connections;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::control::server::Shared;

/// Connections at once.
const CONNECTIONS: usize = 64;
/// Connections at once from one client: who holds them all does not keep the kubelet from asking.
const PER_CLIENT: usize = 8;
/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take for all: its request, and to read the page.
const IN_ALL: Duration = Duration::from_secs(10);

/// The pages, served until dropped.
#[derive(Debug)]
pub struct Server {
    ready: Arc<AtomicBool>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `address`; not ready yet.
    ///
    /// # Errors
    /// What binding, or starting a thread, says.
    pub fn start(address: SocketAddr, shared: Arc<Shared>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind(address))?;
        tracing::info!(address = %listener.local_addr()?, "serving metrics");
        let ready = Arc::new(AtomicBool::new(false));
        let pages = Arc::new(Pages { shared, ready: Arc::clone(&ready) });
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, pages) => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(run)?;
        Ok(Self { ready, stop: Some(stop), thread: Some(thread) })
    }

    /// All links are there.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread for metrics has panicked");
        }
    }
}

struct Pages {
    shared: Arc<Shared>,
    ready: Arc<AtomicBool>,
}

async fn accept(listener: TcpListener, pages: Arc<Pages>) {
    let connections = Connections::new(CONNECTIONS, PER_CLIENT);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: wait for one to come back.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // A connection beyond the limits is closed at once.
        let Some(admitted) = connections.admit(peer.ip()) else { continue };
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            if tokio::time::timeout(IN_ALL, serve(stream, &pages)).await.is_err() {
                tracing::debug!(%peer, "an HTTP client took too long");
            }
            drop(admitted);
        });
    }
}

async fn serve(stream: TcpStream, pages: &Arc<Pages>) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = pages.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = http1::Builder::new();
    // One page for each connection: the next would have its time as well.
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "HTTP connection");
    }
}

impl Pages {
    fn metrics(&self) -> String {
        let daemon = self.shared.daemon();
        text::render(&daemon.report(), &daemon.load())
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return page(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        }
        match path {
            "/metrics" => page(StatusCode::OK, self.metrics()),
            "/healthz" if self.shared.daemon().is_alive() => page(StatusCode::OK, "ok\n".to_owned()),
            "/healthz" => page(StatusCode::INTERNAL_SERVER_ERROR, "a worker does not answer\n".to_owned()),
            "/readyz" if self.ready.load(Ordering::Acquire) => page(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => page(StatusCode::SERVICE_UNAVAILABLE, "not all links are there yet\n".to_owned()),
            _ => page(StatusCode::NOT_FOUND, "see /metrics, /healthz and /readyz\n".to_owned()),
        }
    }
}

fn page(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
