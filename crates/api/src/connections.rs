//! The connections of the API: accepting them, and ending them when the process stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use service::Service;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tower_service::Service as _;

use crate::api::Api;
use crate::pipeline;
use crate::stream::WriteTimeoutStream;

/// The pause after a failed `accept`, for example because there are no file descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the requests that are being answered may take after the shutdown began: longer than `durable_wait`, shorter than
/// the drain deadline.
const LAST_REQUESTS: Duration = Duration::from_secs(15);

/// The most bytes of the headers of a request, its path and query included.
const MOST_HEADER_BYTES: usize = 64 * 1024;

/// Serves until the process stops. Then no connection is accepted, and each open one ends after the request that it is
/// answering.
pub(crate) fn serve(service: &Service, listener: TcpListener, api: Arc<Api>) {
    let listener = Arc::new(Mutex::new(Some(listener)));
    let router = pipeline::router(&api);
    service.supervise("http", move |stopping| {
        let (listener, router, api) = (Arc::clone(&listener), router.clone(), Arc::clone(&api));
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
                let router = router.clone();
                let service = service_fn(move |mut request: Request<Incoming>| {
                    request.extensions_mut().insert(ConnectInfo(peer));
                    router.clone().call(request)
                });
                let stream = WriteTimeoutStream::new(stream, api.settings.header_timeout);
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(api.settings.header_timeout)
                    .max_buf_size(MOST_HEADER_BYTES)
                    .serve_connection(TokioIo::new(stream), service);
                let connection = graceful.watch(connection);
                drop(tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%peer, error = %error, "connection ended with an error");
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
