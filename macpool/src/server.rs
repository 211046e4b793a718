//! The two listeners: HTTPS for reviews, plain HTTP for metrics and probes.
//!
//! Everything a client can do to us is bounded here: connections, the time of a handshake, of a header and of a
//! body, and the body's size. What a review means is [`crate::admit`]'s business.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use connections::Connections;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::admit::{self, Answer};
use crate::metrics::{Metrics, Path};
use crate::review::envelope::MAX_REVIEW;
use crate::store::Store;

/// Connections for reviews at once: in all, and from one client. The API servers of a cluster hold some dozens.
const REVIEWS: (usize, usize) = (512, 128);
/// Connections for metrics and probes at once: in all, and from one client.
const OPERATIONS: (usize, usize) = (64, 8);
/// For a handshake, for a header, and for a body.
const CLIENT_TIME: Duration = Duration::from_secs(10);
/// For what is under way when we stop.
const DRAIN: Duration = Duration::from_secs(10);

type Reply = Response<Full<Bytes>>;

/// What both listeners share.
pub struct Server<S> {
    store: S,
    metrics: Arc<Metrics>,
    phase: watch::Receiver<Phase>,
    /// Whether pods are served.
    pods: bool,
}

/// How a server ends: in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Business as usual.
    Serving,
    /// Not ready any more, so that no new client is sent here; those that come all the same are served, once.
    Leaving,
    /// No new connection; what is under way is finished.
    Closing,
}

impl<S: Store> Server<S> {
    /// Serves from `store` until `phase` says [`Phase::Closing`]; pods too, or VMs only.
    pub fn new(store: S, metrics: Arc<Metrics>, phase: watch::Receiver<Phase>, pods: bool) -> Arc<Self> {
        Arc::new(Self { store, metrics, phase, pods })
    }

    /// Serves reviews; ends when stopping, with every review answered that had begun.
    pub async fn reviews(self: Arc<Self>, listener: TcpListener, tls: TlsAcceptor) {
        let serve = |server: Arc<Self>, stream: TcpStream| {
            let tls = tls.clone();
            async move {
                match tokio::time::timeout(CLIENT_TIME, tls.accept(stream)).await {
                    Ok(Ok(stream)) => server.connection(stream, true).await,
                    Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                    Err(_elapsed) => tracing::debug!("a TLS handshake took too long"),
                }
            }
        };
        self.accept(listener, REVIEWS, serve).await;
    }

    /// Serves metrics and probes.
    pub async fn operations(self: Arc<Self>, listener: TcpListener) {
        let serve = |server: Arc<Self>, stream| async move { server.connection(stream, false).await };
        self.accept(listener, OPERATIONS, serve).await;
    }

    async fn accept<F>(
        self: Arc<Self>,
        listener: TcpListener,
        (most, per_client): (usize, usize),
        serve: impl Fn(Arc<Self>, TcpStream) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut phase = self.phase.clone();
        let limits = Connections::new(most, per_client);
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = next(&listener) => accepted,
                Some(_ended) = connections.join_next() => continue,
                () = closing_time(&mut phase) => break,
            };
            // A connection beyond the limits is closed at once.
            let Some((admitted, stream)) =
                accepted.and_then(|(stream, peer)| Some((limits.admit(peer.ip())?, stream)))
            else {
                continue;
            };
            let connection = serve(Arc::clone(&self), stream);
            connections.spawn(async move {
                connection.await;
                drop(admitted);
            });
        }
        drop(listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
    }

    async fn connection(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin, reviews: bool) {
        let mut phase = self.phase.clone();
        let service = service_fn(|request| {
            let server = Arc::clone(&self);
            async move {
                let reply = match reviews {
                    true if *server.phase.borrow() > Phase::Serving => closing(server.review(request).await),
                    true => server.review(request).await,
                    false => server.operation(&request),
                };
                Ok::<_, Infallible>(reply)
            }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(CLIENT_TIME).max_buf_size(64 << 10);
        let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = closing_time(&mut phase) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke");
        }
    }

    async fn review(&self, request: Request<Incoming>) -> Reply {
        let path = match request.uri().path() {
            "/mutate-virtualmachines" => Path::VirtualMachine,
            // Of pods that are not watched it would be unknown which addresses they have.
            "/mutate-pods" if self.pods => Path::Pod,
            _ => return text(StatusCode::NOT_FOUND, "no such path"),
        };
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "reviews are posted");
        }
        let body = Limited::new(request.into_body(), MAX_REVIEW).collect();
        let body = match tokio::time::timeout(CLIENT_TIME, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                let message = format!("a review has at most {MAX_REVIEW} bytes");
                return closing(text(StatusCode::PAYLOAD_TOO_LARGE, &message));
            }
            Ok(Err(error)) => return closing(text(StatusCode::BAD_REQUEST, &error.to_string())),
            Err(_elapsed) => return closing(text(StatusCode::REQUEST_TIMEOUT, "the body did not come")),
        };
        let began = Instant::now();
        let answer = match path {
            Path::VirtualMachine => admit::virtual_machine(&self.store, &body).await,
            Path::Pod => admit::pod(&self.store, &body).await,
        };
        self.metrics.review(path, &answer, began.elapsed());
        reply(answer)
    }

    fn operation(&self, request: &Request<Incoming>) -> Reply {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/healthz") => text(StatusCode::OK, "ok"),
            (&Method::GET, "/readyz") => match self.store.ready() {
                _ if *self.phase.borrow() > Phase::Serving => {
                    text(StatusCode::SERVICE_UNAVAILABLE, "stopping")
                }
                Ok(()) => text(StatusCode::OK, "ok"),
                Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, &reason),
            },
            (&Method::GET, "/metrics") => {
                let mut page = self.metrics.render();
                self.store.render_metrics(&mut page);
                let mut reply = text(StatusCode::OK, &page);
                let kind = HeaderValue::from_static("text/plain; version=0.0.4");
                reply.headers_mut().insert(CONTENT_TYPE, kind);
                reply
            }
            _ => text(StatusCode::NOT_FOUND, "no such path; there are /metrics, /healthz and /readyz"),
        }
    }
}

/// Returns once connections are to end.
async fn closing_time(phase: &mut watch::Receiver<Phase>) {
    // An error means that nobody can say so any more, which is the same.
    let _closing = phase.wait_for(|phase| *phase == Phase::Closing).await;
}

/// The next connection.
async fn next(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    match listener.accept().await {
        Ok((stream, peer)) => {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
            Some((stream, peer))
        }
        Err(error) => {
            // Out of descriptors, mostly: a moment later some will be free.
            tracing::warn!(%error, "cannot accept");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

fn reply(answer: Answer) -> Reply {
    match answer {
        Answer::Allowed(body) | Answer::Refused(body) => {
            let mut reply = Response::new(Full::new(Bytes::from(body)));
            reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            reply
        }
        Answer::Bad(message) => text(StatusCode::BAD_REQUEST, &message),
        Answer::Unavailable(message) => {
            // On 503 with Retry-After the API server asks again within the webhook's timeout (client-go, rest.Request); the new
            // connection may lead to another replica.
            let mut reply = closing(text(StatusCode::SERVICE_UNAVAILABLE, &message));
            reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            reply
        }
    }
}

fn text(status: StatusCode, message: &str) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(format!("{message}\n"))));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}

fn closing(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}
