//! What bounds the memory of a replica. `cargo xtask bench memory` measures it.

use std::time::Duration;

use serde_json::Value;
use system_tests::LIMIT;
use testkit::wait::eventually;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::{archived, ids, started, started_with, with_status};

/// The default of `VERBATIM_MAX_PAGE_BYTES`.
const PAGE: usize = 4 << 20;

#[tokio::test]
async fn a_page_of_control_characters_has_no_more_bytes_than_any_page() {
    let (scenario, api) = started().await;
    archived(&scenario, "acme", 1, 24).await;
    // Each has six bytes as JSON.
    scenario.sql("UPDATE message_rows SET content = repeat(chr(1), 170000)").await;
    let key = api.key("acme", &["read"]).await;
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/conversations/c0/full?limit=500{cursor}");
        let page = api.get(&key, &path).await;
        assert!(page.body.len() < PAGE + 16 * 1024, "{} bytes", page.body.len());
        let page: Value = with_status(&page, 200);
        found.extend(ids(&page["messages"]));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(found, (0..24).map(|n| format!("m{n}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_large_body_for_which_no_memory_is_left_is_read_and_answered_with_busy() {
    let (_scenario, api) = started_with(&[
        ("VERBATIM_MAX_REQUEST_BYTES", "4MiB"),
        ("VERBATIM_MAX_REQUESTS_BYTES", "4MiB"),
    ])
    .await;
    let key = api.key("acme", &["write"]).await;
    let authorization = format!("Bearer {key}");
    let headers = [("authorization", authorization.as_str())];
    let body = " ".repeat(4 << 20);
    let mut slow = TcpStream::connect(api.address).await.unwrap();
    let head = format!(
        "POST /api/actions HTTP/1.1\r\nhost: x\r\nauthorization: {authorization}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.write_all(&body.as_bytes()[..body.len() - 100]).await.unwrap();
    let post = async |body: &str| api.send("POST", "/api/actions", &headers, body).await;
    let busy = async {
        eventually("the slow client to have all memory", LIMIT, async || {
            let answer = post(&body[..4_096]).await;
            if answer.status == 503 { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
        post(&body).await
    };
    // A body of which nothing comes for 10 s is refused.
    let go_on = async {
        for byte in body.as_bytes()[..90].chunks(1) {
            sleep(Duration::from_secs(1)).await;
            slow.write_all(byte).await.unwrap();
        }
    };
    let answer = tokio::select! { answer = busy => answer, () = go_on => panic!("no answer") };
    assert_eq!(with_status(&answer, 503)["type"], "urn:verbatim:problem:busy");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}
