//! The HTTP server of each process: `/livez`, `/readyz`, `/metrics`, and the routes that the process adds.
//!
//! It is bound first and serves until the process ends, so that a probe can distinguish a process that
//! starts or stops from one that does not run. The built-in paths are matched first, so added routes cannot
//! replace them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::PoisonError;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics::Metrics;
use serde::Serialize;
use tokio::net::TcpListener;
use tower_service::Service as _;

use crate::process::VERSION;
use crate::readiness;
use crate::service::Service;
use crate::settings::ListenSettings;
use crate::tasks::{Stage, TaskState};

/// Binds the address, and writes it to the listen file if that is set.
pub(crate) async fn bind(settings: &ListenSettings) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(settings.listen).await.map_err(|error| {
        let in_use = error.kind() == io::ErrorKind::AddrInUse;
        let hint = if in_use {
            "; set VERBATIM_LISTEN to another port: each process on a host needs its own (port 0 takes a free one)"
        } else {
            ""
        };
        anyhow::anyhow!("cannot listen on {}: {error}{hint}", settings.listen)
    })?;
    let address = listener.local_addr()?;
    if let Some(path) = &settings.listen_file {
        write_whole(path, address)
            .with_context(|| format!("cannot write VERBATIM_LISTEN_FILE {}", path.display()))?;
    }
    tracing::info!(%address, "serving /livez, /readyz and /metrics on {address}");
    Ok(listener)
}

/// Serves until the runtime ends.
pub(crate) async fn serve(listener: TcpListener, service: Service) -> io::Result<()> {
    let routes = Router::new()
        .route("/", get(index))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .fallback(added_routes)
        .with_state(service);
    axum::serve(listener, routes).await
}

#[derive(Serialize)]
struct Livez {
    live: bool,
    tasks: Vec<NamedTask>,
}

#[derive(Serialize)]
struct NamedTask {
    name: &'static str,
    #[serde(flatten)]
    state: TaskState,
}

#[derive(Serialize)]
struct Readyz {
    ready: bool,
    checks: BTreeMap<&'static str, readiness::State>,
}

async fn index(State(service): State<Service>) -> String {
    format!(
        "{} {VERSION}\n\n\
         /livez    200, or 503 if a task fails again and again: restart the process\n\
         /readyz   200 if every check is ready, or 503 with the reasons\n\
         /metrics  metrics for Prometheus\n",
        service.process.name()
    )
}

async fn livez(State(service): State<Service>) -> Response {
    let live = service.tasks.live();
    let states = service.tasks.states().into_iter();
    let tasks = states.map(|(name, state)| NamedTask { name, state }).collect();
    json(live, &Livez { live, tasks })
}

async fn readyz(State(service): State<Service>) -> Response {
    let checks = service.readiness.states();
    let ready = !checks.is_empty() && checks.values().all(|state| state.ready);
    json(ready, &Readyz { ready, checks })
}

async fn metrics_text(State(service): State<Service>) -> Response {
    ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], service.metrics.render()).into_response()
}

/// Answers by the added routes; 404 if none matches. The drain waits for requests that are being answered.
async fn added_routes(State(service): State<Service>, request: Request) -> Response {
    let _answering = service.tasks.busy(Stage::Work);
    let mut routes = service.routes.read().unwrap_or_else(PoisonError::into_inner).clone();
    match routes.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Status 200 if `ok`, else 503, with a JSON body in both cases.
fn json(ok: bool, body: &impl Serialize) -> Response {
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_string(body) {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Writes a temporary file and renames it: a reader never sees a partial address.
fn write_whole(path: &Path, address: SocketAddr) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    std::fs::write(&part, address.to_string())?;
    std::fs::rename(&part, path)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::tasks::Stage;

    fn settings(address: &str) -> ListenSettings {
        ListenSettings { listen: address.parse().expect("an address"), listen_file: None }
    }

    async fn started() -> (SocketAddr, Service) {
        let service = Service::new(domain::fleet::MESSAGE_SAVE_WORKER, Metrics::new());
        let listener = bind(&settings("127.0.0.1:0")).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        drop(tokio::spawn(serve(listener, service.clone())));
        (address, service)
    }

    /// The status line's code, and everything after the headers.
    async fn fetch(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("UTF-8 until the end");
        let (head, body) = answer.split_once("\r\n\r\n").expect("headers and a body");
        (head[9..12].parse().expect("a status"), body.to_owned())
    }

    #[tokio::test]
    async fn readyz_is_200_only_when_every_check_is_ready_and_else_lists_the_reasons() {
        let (address, service) = started().await;
        assert_eq!(fetch(address, "/readyz").await, (503, r#"{"ready":false,"checks":{}}"#.into()));
        let broker = service.readiness.check("broker");
        let redis = service.readiness.check("redis");
        broker.ready();
        redis.not_ready("connection refused");
        let (status, body) = fetch(address, "/readyz").await;
        assert_eq!(status, 503);
        assert_eq!(
            body,
            r#"{"ready":false,"checks":{"broker":{"ready":true},"redis":{"ready":false,"reason":"connection refused"}}}"#
        );
        redis.ready();
        assert_eq!(fetch(address, "/readyz").await.0, 200);
    }

    #[tokio::test]
    async fn livez_lists_the_tasks() {
        let (address, service) = started().await;
        service.tasks.spawn(Stage::Work, "consumer", |stopping| async move {
            stopping.cancelled().await;
            Ok(())
        });
        let expected = r#"{"live":true,"tasks":[{"name":"consumer","state":"running"}]}"#;
        assert_eq!(fetch(address, "/livez").await, (200, expected.to_owned()));
    }

    #[tokio::test]
    async fn metrics_and_the_index_are_served_and_anything_else_is_404() {
        let (address, _service) = started().await;
        let (status, text) = fetch(address, "/metrics").await;
        assert_eq!(status, 200);
        assert!(text.contains("\nverbatim_messages_saved_total 0\n"), "{text}");
        let (status, text) = fetch(address, "/").await;
        assert_eq!(status, 200);
        assert!(text.starts_with("message-save-worker ") && text.contains("/readyz"), "{text}");
        assert_eq!(fetch(address, "/healthz").await.0, 404);
    }

    #[tokio::test]
    async fn added_routes_are_served_and_an_unknown_path_is_404() {
        let (address, service) = started().await;
        service.serve(Router::new().route("/own", get(|| async { "own" })));
        service.serve(Router::new().route("/another", get(|| async { "another" })));
        assert_eq!(fetch(address, "/own").await, (200, "own".to_owned()));
        assert_eq!(fetch(address, "/another").await, (200, "another".to_owned()));
        assert_eq!(fetch(address, "/own/unknown").await.0, 404);
    }

    #[tokio::test]
    async fn added_routes_cannot_replace_the_built_in_ones() {
        let (address, service) = started().await;
        for path in ["/", "/livez", "/readyz", "/metrics"] {
            service.serve(Router::new().route(path, get(|| async { "replaced" })));
            let (_, text) = fetch(address, path).await;
            assert!(!text.is_empty() && text != "replaced", "{path}: {text}");
        }
    }

    #[tokio::test]
    async fn the_drain_waits_for_a_request_that_is_being_answered() {
        let (address, service) = started().await;
        let (began, begun) = tokio::sync::oneshot::channel();
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let parts = Arc::new(std::sync::Mutex::new(Some((began, finished))));
        let slow = move || async move {
            let (began, finished) = parts.lock().expect("no panic").take().expect("one request");
            began.send(()).expect("the test listens");
            finished.await.expect("the test finishes it");
            "done"
        };
        service.serve(Router::new().route("/slow", get(slow)));
        let answer = tokio::spawn(fetch(address, "/slow"));
        begun.await.expect("it began");
        let mut drain = std::pin::pin!(service.tasks.drain());
        tokio::select! {
            biased;
            _ = &mut drain => panic!("drained before the answer"),
            () = std::future::ready(()) => {}
        }
        finish.send(()).expect("it waits");
        assert!(drain.await);
        assert_eq!(answer.await.expect("no panic"), (200, "done".to_owned()));
    }

    #[tokio::test]
    async fn a_taken_address_is_an_error_that_names_it_and_the_setting() {
        let (address, _service) = started().await;
        let error = bind(&settings(&address.to_string())).await.expect_err("taken").to_string();
        assert!(error.contains(&format!("cannot listen on {address}")), "{error}");
        assert!(error.contains("VERBATIM_LISTEN"), "{error}");
    }

    #[tokio::test]
    async fn the_listen_file_holds_the_bound_address() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("address");
        let settings =
            ListenSettings { listen_file: Some(path.clone()), ..settings("127.0.0.1:0") };
        let listener = bind(&settings).await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        assert_eq!(std::fs::read_to_string(path).expect("written"), address);
    }
}
