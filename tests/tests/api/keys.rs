//! Keys that stop, on every replica.

use std::time::Duration;

use system_tests::{ApiServer, LIMIT};
use testkit::wait::eventually;

use crate::{started, with_status};

const PATH: &str = "/api/conversations/list/acme";

#[tokio::test]
async fn a_revoked_key_stops_on_two_replicas_within_five_seconds() {
    let (scenario, first) = started().await;
    let second = ApiServer::start(&scenario, &[]).await;
    let key = first.key("acme", &["read"]).await;
    for replica in [&first, &second] {
        with_status(&replica.get(&key, PATH).await, 200);
    }
    first.revoke(&key).await;
    let started = tokio::time::Instant::now();
    for replica in [&first, &second] {
        eventually("the key to be refused", LIMIT, async || {
            let response = replica.get(&key, PATH).await;
            if response.status == 401 { Ok(()) } else { Err(format!("{response:?}")) }
        })
        .await;
    }
    // Twice the promise: the machine of a test may be busy.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test]
async fn no_key_and_no_secret_is_in_the_log() {
    let (_scenario, api) = crate::started_with(&[("VERBATIM_LOG_LEVEL", "trace")]).await;
    let key = api.key("acme", &["read"]).await;
    with_status(&api.get(&key, PATH).await, 200);
    api.revoke(&key).await;
    eventually("the key to be refused", LIMIT, async || {
        let response = api.get(&key, PATH).await;
        if response.status == 401 { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
    let log = api.worker.log();
    assert!(log.contains("request answered"), "{log}");
    let secret = key.split('_').nth(2).unwrap();
    for secret in [secret, "a-secret-of-the-tests-of-the-api", "s3cret"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}
