//! PostgreSQL is unavailable, slow, or not as the API needs it.

use system_tests::{ApiServer, LIMIT, Scenario};
use testkit::proxy::Proxy;
use testkit::wait::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{archived, with_status};

const FULL: &str = "/api/conversations/c0/full";

#[tokio::test]
async fn while_postgresql_is_unavailable_requests_get_503_and_then_succeed_without_a_restart() {
    let scenario = Scenario::new().await;
    let proxy = Proxy::before(&scenario.database_url).await.unwrap();
    let settings = [("VERBATIM_API_DATABASE_TIMEOUT", "1s")];
    let api = ApiServer::launch(&scenario, proxy.url(), &settings).await;
    api.worker.ready(LIMIT).await.unwrap();
    archived(&scenario, "acme", 1, 1).await;
    let (known, unknown) = (api.key("acme", &["read"]).await, api.key("acme", &["read"]).await);
    with_status(&api.get(&known, FULL).await, 200);
    proxy.cut().await.unwrap();
    for key in [&known, &unknown] {
        let response = api.get(key, FULL).await;
        let problem = with_status(&response, 503);
        assert_eq!(problem["type"], "urn:verbatim:problem:unavailable");
        assert!(response.header("retry-after").is_some(), "{response:?}");
    }
    // The documents need no server.
    with_status(&api.request("GET", "/openapi.json", &[]).await, 200);
    eventually("/readyz to say so", LIMIT, async || {
        let ready = api.worker.get("/readyz").await.unwrap();
        if ready.status == 503 { Ok(()) } else { Err(ready.body) }
    })
    .await;
    proxy.restore().await.unwrap();
    eventually("an answer", LIMIT, async || {
        let response = api.get(&known, FULL).await;
        if response.status == 200 { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
    with_status(&api.get(&unknown, FULL).await, 200);
    // A connection that is open, and silent.
    proxy.freeze();
    with_status(&api.get(&known, FULL).await, 503);
    proxy.restore().await.unwrap();
    eventually("an answer", LIMIT, async || {
        let response = api.get(&known, FULL).await;
        if response.status == 200 { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_role_with_more_rights_than_the_api_needs_keeps_it_from_starting() {
    let scenario = Scenario::new().await;
    let api = ApiServer::start(&scenario, &[]).await;
    drop(api);
    scenario.sql("GRANT SELECT ON audit_log TO PUBLIC").await;
    let process = ApiServer::process(&scenario, &scenario.database_url, &[]).await;
    let status = process.wait(LIMIT).await.unwrap();
    let log = process.log_tail();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("SELECT on audit_log"), "{log}");
}

#[tokio::test]
async fn a_stop_ends_after_the_request_that_is_being_answered() {
    let scenario = Scenario::new().await;
    let api = ApiServer::start(&scenario, &[]).await;
    archived(&scenario, "acme", 1, 1).await;
    let key = api.key("acme", &["read"]).await;
    with_status(&api.get(&key, FULL).await, 200);
    // Neither a connection without a request keeps the process, nor one whose request never becomes complete.
    let idle = TcpStream::connect(api.address).await.unwrap();
    let mut half = TcpStream::connect(api.address).await.unwrap();
    half.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    api.worker.signal(testkit::process::Signal::Terminate).unwrap();
    let status = api.worker.wait(LIMIT).await.unwrap();
    assert!(status.success(), "{status}: {}", api.worker.log_tail());
    drop((idle, half));
}

#[tokio::test]
async fn clients_that_send_or_read_slowly_do_not_keep_others_waiting() {
    let scenario = Scenario::new().await;
    let settings = [
        ("VERBATIM_HEADER_TIMEOUT", "1s"),
        ("VERBATIM_MAX_PAGE_BYTES", "48MiB"),
        ("VERBATIM_MAX_PAGES_BYTES", "48MiB"),
        ("VERBATIM_LOG_LEVEL", "debug"),
    ];
    let api = ApiServer::start(&scenario, &settings).await;
    let key = api.key("acme", &["read", "write"]).await;
    // As many announced bodies as there is memory for, of which one byte comes.
    let mut slow = Vec::new();
    for _ in 0..9 {
        let mut stream = TcpStream::connect(api.address).await.unwrap();
        let head = format!(
            "POST /api/actions?dry_run=1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 8388608\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let action =
        serde_json::json!({"action_type": "conversation.session_opened", "session_id": "s"});
    let asked = tokio::time::Instant::now();
    with_status(&api.post(&key, "/api/actions?dry_run=1", &[], &action).await, 200);
    assert!(asked.elapsed() < std::time::Duration::from_secs(4), "{:?}", asked.elapsed());

    // A page that its reader does not read takes all memory for pages; its connection ends, and another page is read.
    archived(&scenario, "acme", 1, 40).await;
    scenario.sql("UPDATE message_rows SET content = repeat('x', 1 << 20)").await;
    let mut unread = TcpStream::connect(api.address).await.unwrap();
    let head = format!("GET {FULL} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n");
    unread.write_all(head.as_bytes()).await.unwrap();
    eventually("the connection to be closed", LIMIT, async || {
        let log = api.worker.log();
        if log.contains("connection ended with an error") {
            Ok(())
        } else {
            Err("it is open".to_owned())
        }
    })
    .await;
    let page = api.get(&key, &format!("{FULL}?limit=1")).await;
    with_status(&page, 200);
    let mut received = Vec::new();
    unread.read_to_end(&mut received).await.ok();
    assert!(received.len() < 40 << 20, "{} bytes", received.len());
    drop(slow);
}

#[tokio::test]
async fn a_replica_whose_signatures_postgresql_refuses_is_not_ready() {
    let scenario = Scenario::new().await;
    let api = ApiServer::start(&scenario, &[]).await;
    archived(&scenario, "acme", 1, 1).await;
    let key = api.key("acme", &["read"]).await;
    // As `verbatim setup` with another API_SECRET leaves it.
    scenario.sql("DELETE FROM api_tenant_keys").await;
    let problem = with_status(&api.get(&key, FULL).await, 503);
    assert!(problem["detail"].as_str().unwrap().contains("verbatim setup"), "{problem}");
    eventually("/readyz to say so", LIMIT, async || {
        let ready = api.worker.get("/readyz").await.unwrap();
        if ready.status == 503 { Ok(()) } else { Err(ready.body) }
    })
    .await;
}
