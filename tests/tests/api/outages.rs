//! PostgreSQL is unavailable, slow, or not as the API needs it.

use system_tests::{ApiServer, LIMIT, Scenario};
use testkit::proxy::Proxy;
use testkit::wait::eventually;

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
    // A connection without a request does not keep the process.
    let idle = tokio::net::TcpStream::connect(api.address).await.unwrap();
    api.worker.signal(testkit::process::Signal::Terminate).unwrap();
    let status = api.worker.wait(LIMIT).await.unwrap();
    assert!(status.success(), "{status}: {}", api.worker.log_tail());
    drop(idle);
}
