//! Requests that are signed with a key, in place of sending the key.

use access::{ApiKey, SCHEME, authorization};
use serde_json::{Value, json};
use system_tests::{ApiServer, SAVER};
use testkit::http::Response;
use uuid::Uuid;

use crate::{archived, started, started_with, with_status};

fn now() -> i64 {
    service::clock::system().now().micros() / 1_000_000
}

fn header(key: &ApiKey, request: (&str, &str), body: &str) -> String {
    authorization(key, request, body.as_bytes(), now(), &Uuid::new_v4().simple().to_string())
}

async fn send(api: &ApiServer, (method, path): (&str, &str), header: &str, body: &str) -> Response {
    api.send(method, path, &[("authorization", header)], body).await
}

#[tokio::test]
async fn a_signed_request_does_what_one_with_the_key_does_and_once_only() {
    let (scenario, api) = started().await;
    let _saver = scenario.launch(SAVER, &[]);
    archived(&scenario, "acme", 1, 2).await;
    let key = ApiKey::parse(&api.key("acme", &["read", "write"]).await).unwrap();
    let read = ("GET", "/api/conversations/c0/full?order=desc");
    let signed = header(&key, read, "");
    with_status(&send(&api, read, &signed, "").await, 200);
    let replayed = with_status(&send(&api, read, &signed, "").await, 401);
    assert!(replayed["detail"].as_str().unwrap().contains("nonce"), "{replayed}");

    let publish = ("POST", "/api/actions?wait=durable");
    let action = |content: &str| {
        json!({ "action_type": "conversation.save_message", "session_id": "s", "message_id": "m", "role": "user",
                "content": content })
        .to_string()
    };
    let signed = header(&key, publish, &action("as it was signed"));
    let changed =
        with_status(&send(&api, publish, &signed, &action("as it was changed")).await, 401);
    assert!(changed["detail"].as_str().unwrap().contains("digest"), "{changed}");
    // The nonce is used up: whoever changes a request on its way keeps it from arriving, and no more.
    let signed = header(&key, publish, &action("as it was signed"));
    with_status(&send(&api, publish, &signed, &action("as it was signed")).await, 200);
    assert_eq!(
        scenario.sql("SELECT content FROM messages WHERE id = 'm'").await,
        "as it was signed"
    );
    // What no signature covers must not decide which action counts as a repetition.
    let signed = header(&key, publish, &action("again"));
    let headers = [("authorization", signed.as_str()), ("idempotency-key", "added-on-its-way")];
    let added = api.send(publish.0, publish.1, &headers, &action("again")).await;
    let added = with_status(&added, 422);
    assert!(added["detail"].as_str().unwrap().contains("action_id"), "{added}");
    let log = api.worker.log_tail();
    assert!(!log.contains(key.expose()) && !log.contains(&key.expose()[13..45]), "{log}");
}

#[tokio::test]
async fn what_is_no_signature_of_now_is_refused_and_counted() {
    let (_scenario, api) = started().await;
    let key = ApiKey::parse(&api.key("acme", &["read"]).await).unwrap();
    let read = ("GET", "/api/conversations/list/acme");
    let valid = header(&key, read, "");
    let at =
        |seconds: i64| authorization(&key, read, b"", now() + seconds, "a-nonce-of-16-or-more");
    for (header, said) in [
        (valid.replace("timestamp=", "timestamp=x"), "whole number"),
        (valid.replace("nonce=", "nonce=\u{20ac}"), "must be `Bearer"),
        (format!("{SCHEME} x"), "unknown"),
        (format!("{SCHEME} key=x"), "missing"),
        (at(-400), "check the clock"),
        (at(400), "check the clock"),
        (header_of_other(read), "not that of this request"),
        (header(&key, ("GET", "/api/conversations/list/globex"), ""), "not that of this request"),
    ] {
        let problem: Value = with_status(&send(&api, read, &header, "").await, 401);
        assert!(problem["detail"].as_str().unwrap().contains(said), "{header}: {problem}");
    }
    let metrics = api.worker.get("/metrics").await.unwrap().body;
    for (reason, count) in [("malformed", 4), ("stale", 2), ("signature", 2)] {
        let line = format!("verbatim_refused_credentials_total{{reason=\"{reason}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn a_signature_beyond_the_rate_of_its_key_costs_no_commit_and_wrong_ones_take_nothing_of_it()
{
    let settings = [("VERBATIM_KEY_RATE", "1"), ("VERBATIM_KEY_BURST", "3")];
    let (scenario, api) = started_with(&settings).await;
    let key = ApiKey::parse(&api.key("acme", &["read"]).await).unwrap();
    let read = ("GET", "/api/conversations/list/acme");
    // Whoever knows the id of the key takes nothing of its rate.
    let forged = ApiKey::with_secret(key.id()).unwrap();
    for _ in 0..10 {
        with_status(&send(&api, read, &header(&forged, read, ""), "").await, 401);
    }
    let mut statuses = Vec::new();
    for _ in 0..60 {
        let response = send(&api, read, &header(&key, read, ""), "").await;
        assert_eq!(response.header("retry-after").is_some(), response.status == 429);
        assert!(response.header("ratelimit").is_some(), "{response:?}");
        statuses.push(response.status);
    }
    assert_eq!(statuses[..3], [200; 3]);
    let accepted = statuses.iter().filter(|status| **status == 200).count();
    assert!(accepted < 20, "{statuses:?}");
    // One that is refused for each time that the key may make a request again.
    let nonces: usize = scenario.sql("SELECT count(*) FROM api_nonces").await.parse().unwrap();
    assert!(nonces <= 2 * accepted, "{nonces} nonces of {accepted} accepted requests");
}

/// Signed with a key that nobody created.
fn header_of_other(request: (&str, &str)) -> String {
    header(&ApiKey::generate().unwrap(), request, "")
}
