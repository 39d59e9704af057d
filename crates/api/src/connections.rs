//! The connections of the API: accepting them, and ending them when the process stops.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::StatusCode;
use axum::http::header::CONNECTION;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use service::Service;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tower_service::Service as _;

use crate::api::Api;
use crate::pipeline;
use crate::stream::WriteTimeoutStream;
use crate::tls::Tls;

/// The pause after a failed `accept`, for example because there are no file descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the requests that are being answered may take after the shutdown began: longer than `durable_wait`, shorter than
/// the drain deadline.
const LAST_REQUESTS: Duration = Duration::from_secs(15);

/// The most bytes of the headers of a request, its path and query included.
const MOST_HEADER_BYTES: usize = 64 * 1024;

/// The answer to HTTP without TLS on a port with TLS.
const HTTPS_ONLY: &str = "This port speaks TLS: use https://. A key that was sent to it without TLS could be read on its way: \
                          replace it (verbatim keys rotate).\n";

/// Serves until the process stops. Then no connection is accepted, and each open one ends after the request that it is
/// answering.
pub(crate) fn serve(
    service: &Service,
    listener: TcpListener,
    api: Arc<Api>,
    tls: Option<Arc<Tls>>,
) {
    let listener = Arc::new(Mutex::new(Some(listener)));
    let router = pipeline::router(&api);
    service.supervise("http", move |stopping| {
        let (listener, router, api) = (Arc::clone(&listener), router.clone(), Arc::clone(&api));
        let tls = tls.clone();
        async move {
            let mut slot = listener.lock().await;
            // None: the process is stopping, and accepts no more.
            let Some(listener) = slot.as_ref() else { return Ok(()) };
            if let Some(path) = &api.settings.api_listen_file {
                std::fs::write(path, listener.local_addr()?.to_string())
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
            let permits = Arc::new(Semaphore::new(api.settings.max_http_connections as usize));
            let graceful = GracefulShutdown::new();
            let mut idle = tokio::time::interval(Duration::from_secs(60));
            loop {
                let accepted = tokio::select! {
                    () = stopping.cancelled() => break,
                    _ = idle.tick() => { api.rates.forget_idle(); continue }
                    accepted = accept(listener, &permits) => accepted,
                };
                let Some((stream, peer, permit)) = accepted else { continue };
                let connection = Connection {
                    peer,
                    limit: api.settings.header_timeout,
                    watcher: graceful.watcher(),
                };
                let (router, tls, stopping) = (router.clone(), tls.clone(), stopping.clone());
                // A handshake is a part of the task, so that nobody waits for it.
                drop(tokio::spawn(async move {
                    let handshake = stopping.run_until_cancelled(connection.handshake(stream, tls));
                    let ended = match handshake.await {
                        Some(Ok(Stream::Tls(stream))) => connection.serve(*stream, router).await,
                        Some(Ok(Stream::Http(stream))) => connection.serve(stream, router).await,
                        Some(Ok(Stream::NotTls(stream))) => {
                            connection.serve(stream, https_only()).await
                        }
                        Some(Err(error)) => Err(error.into()),
                        None => Ok(()),
                    };
                    if let Err(error) = ended {
                        let error = format!("{error:#}");
                        tracing::debug!(%peer, error, "connection ended with an error");
                    }
                    drop(permit);
                }));
            }
            // Who connects now is refused, and may try another replica.
            drop(slot.take());
            if timeout(LAST_REQUESTS, graceful.shutdown()).await.is_err() {
                tracing::info!(
                    "connections that did not end within {} s are closed",
                    LAST_REQUESTS.as_secs()
                );
            }
            Ok(())
        }
    });
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            // Small answers leave at once.
            stream.set_nodelay(true).ok();
            Some((stream, peer, permit))
        }
        Err(error) => {
            tracing::warn!(error = %error, "a connection could not be accepted");
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}

/// What a client speaks.
enum Stream {
    Tls(Box<TlsStream<WriteTimeoutStream>>),
    /// HTTP, on a port without TLS.
    Http(WriteTimeoutStream),
    /// HTTP without TLS, on a port with TLS.
    NotTls(WriteTimeoutStream),
}

/// A connection that was accepted.
struct Connection {
    peer: SocketAddr,
    /// The time limit of the handshake, of the headers, and of a write without progress.
    limit: Duration,
    watcher: Watcher,
}

impl Connection {
    async fn handshake(&self, stream: TcpStream, tls: Option<Arc<Tls>>) -> io::Result<Stream> {
        let Some(tls) = tls else {
            return Ok(Stream::Http(WriteTimeoutStream::new(stream, self.limit)));
        };
        let handshake = async {
            let mut first = [0];
            stream.peek(&mut first).await?;
            let is_http = first[0].is_ascii_uppercase();
            let stream = WriteTimeoutStream::new(stream, self.limit);
            if is_http {
                return Ok(Stream::NotTls(stream));
            }
            Ok(Stream::Tls(Box::new(tls.acceptor().accept(stream).await?)))
        };
        match timeout(self.limit, handshake).await {
            Ok(done) => done,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time")),
        }
    }

    async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        router: Router,
    ) -> anyhow::Result<()> {
        let peer = self.peer;
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            router.clone().call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limit)
            .max_buf_size(MOST_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        Ok(self.watcher.watch(connection).await?)
    }
}

/// Answers every request with 400.
fn https_only() -> Router {
    Router::new().fallback(async || (StatusCode::BAD_REQUEST, [(CONNECTION, "close")], HTTPS_ONLY))
}
