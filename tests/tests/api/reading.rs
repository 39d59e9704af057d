//! Lists, transcripts and statistics.

use serde_json::{Value, json};
use system_tests::{MIGRATION, SAVER, STATISTICS, at, closed, message, opened};
use testkit::wait::eventually;

use crate::{archived, ids, started, with_status};

#[tokio::test]
async fn a_conversation_of_the_fleet_is_read_word_for_word_and_counted() {
    let (scenario, api) = started().await;
    let workers = [SAVER, MIGRATION, STATISTICS].map(|worker| scenario.launch(worker, &[]));
    let agent = scenario.agent();
    let parts = json!([{"type": "text", "text": "hé\u{2028}llo"}, {"type": "image_url", "image_url": {"url": "u"}}]);
    let calls = json!([{"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]);
    let own = json!({"timestamp": at(0), "agent_id": "ada", "user_id": "u", "model_name": "m", "content": parts,
                     "metadata": {"kept": [1, 2.50]}, "tokens_estimate": 7});
    let answer = json!({"timestamp": at(2_000_000), "role": "assistant", "agent_id": "ada", "model_name": "m",
                        "tool_calls": calls, "usage": {"input_tokens": 11, "output_tokens": 5}, "finish_reason": "stop"});
    agent.publish(&opened("acme", "s", &json!({}))).await;
    agent.publish_all(&[message("acme", "s", "1", &own), message("acme", "s", "2", &answer)]).await;
    let key = api.key("acme", &["read"]).await;
    let list = "/api/conversations/list/acme";
    let listed = eventually("a conversation in the list", system_tests::LIMIT, async || {
        let answer = api.json(&key, list).await;
        let first = answer["conversations"][0].clone();
        if first["agent_id"] == "ada" { Ok(first) } else { Err(answer.to_string()) }
    })
    .await;
    assert_eq!((&listed["status"], &listed["agent_id"]), (&json!("active"), &json!("ada")));
    assert_eq!(listed["message_count"], Value::Null);
    let path = format!("/api/conversations/{}/full", listed["id"].as_str().unwrap());
    let page = eventually("both messages", system_tests::LIMIT, async || {
        let page = api.json(&key, &path).await;
        if page["messages"].as_array().unwrap().len() == 2 {
            Ok(page)
        } else {
            Err(page.to_string())
        }
    })
    .await;
    let (first, second) = (&page["messages"][0], &page["messages"][1]);
    assert_eq!((&first["content"], &first["metadata"]), (&parts, &json!({"kept": [1, 2.50]})));
    assert_eq!((&first["id"], &first["tokens_estimate"]), (&json!("1"), &json!(7)));
    assert_eq!((&second["tool_calls"], &second["finish_reason"]), (&calls, &json!("stop")));
    assert_eq!(page["next"], Value::Null);

    agent.publish(&closed("acme", "s", &json!({"reason": "done", "satisfaction": 4}))).await;
    let statistics = eventually("the statistics", system_tests::LIMIT, async || {
        let answer =
            api.json(&key, "/api/conversations/stats/acme?from=2026-11-01&to=2026-11-30").await;
        if answer["totals"]["conversations"] == 1 { Ok(answer) } else { Err(answer.to_string()) }
    })
    .await;
    assert_eq!(statistics["totals"]["messages"], 2);
    assert_eq!(statistics["totals"]["avg_response_seconds"], 2.0);
    assert_eq!(statistics["totals"]["avg_satisfaction"], 4.0);
    assert_eq!(statistics["totals"]["input_tokens"], 11);
    assert_eq!(statistics["days"][0]["day"], "2026-11-20");
    assert_eq!(
        (&statistics["agents"][0]["agent_id"], &statistics["models"][0]["model_name"]),
        (&json!("ada"), &json!("m"))
    );
    assert_eq!((&statistics["active_now"], &statistics["agent_count"]), (&json!(0), &json!(1)));
    let agent = api.json(&key, "/api/agents/ada/stats?from=2026-11-01&to=2026-11-30").await;
    assert_eq!((&agent["totals"], &agent["days"]), (&statistics["totals"], &statistics["days"]));
    let page = api.json(&key, &path).await;
    assert_eq!(page["conversation"]["status"], "archived");
    assert_eq!(page["conversation"]["message_count"], 2);
    assert_eq!(page["statistics"]["avg_response_seconds"], 2.0);
    assert!(page["messages"][0]["tokens"].as_i64().is_some_and(|tokens| tokens > 0), "{page}");
    drop(workers);
}

#[tokio::test]
async fn pages_have_each_item_once_whatever_their_size() {
    let (scenario, api) = started().await;
    archived(&scenario, "acme", 25, 1).await;
    scenario.sql("UPDATE conversations SET id = 'ä/b c%' WHERE id = 'c7'").await;
    scenario
        .sql("INSERT INTO message_rows (conversation, created_at, received_at, id, role, content, body_hash)
              SELECT number, c.created_at + (m / 2) * interval '1 second', now(), 'x' || m, 'user', 'c', ''
              FROM conversations c, generate_series(0, 40) AS m WHERE c.id = 'ä/b c%'")
        .await;
    let key = api.key("acme", &["read"]).await;
    let long = "/api/conversations/%C3%A4%2Fb%20c%25/full";
    for (path, items, total) in [
        ("/api/conversations/list/acme?user_id=u1", "conversations", 8),
        ("/api/conversations/list/acme?agent_id=ada&status=archived", "conversations", 25),
        (
            "/api/conversations/list/acme?from=2026-01-01T00:10:00Z&to=2026-01-01T00:20:00Z",
            "conversations",
            10,
        ),
        ("/api/conversations/list/acme?status=active", "conversations", 0),
        (&format!("{long}?order=asc"), "messages", 42),
        (&format!("{long}?order=desc"), "messages", 42),
    ] {
        let whole = api.json(&key, &format!("{path}&limit=200")).await;
        assert_eq!(whole[items].as_array().unwrap().len(), total, "{path}");
        assert_eq!(whole["next"], Value::Null, "{path}");
        for limit in [1, 7, 42] {
            let (mut found, mut cursor) = (vec![], String::new());
            loop {
                let page = api.json(&key, &format!("{path}&limit={limit}{cursor}")).await;
                found.extend(ids(&page[items]));
                match page["next"].as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => break,
                }
            }
            assert_eq!(found, ids(&whole[items]), "{path} by {limit}");
        }
    }
    let (up, down) = (
        api.json(&key, &format!("{long}?order=asc")).await,
        api.json(&key, &format!("{long}?order=desc")).await,
    );
    let mut reversed = ids(&down["messages"]);
    reversed.reverse();
    assert_eq!(ids(&up["messages"]), reversed);
}

#[tokio::test]
async fn an_answer_that_the_client_has_is_not_sent_again_until_it_changes() {
    let (scenario, api) = started().await;
    archived(&scenario, "acme", 1, 3).await;
    let key = api.key("acme", &["read"]).await;
    let path = "/api/conversations/c0/full";
    let first = api.get(&key, path).await;
    let tag = first.header("etag").unwrap().to_owned();
    assert_eq!(first.header("cache-control"), Some("private, no-cache"));
    let known = async || api.get_with(&key, path, &[("if-none-match", &tag)]).await;
    let again = known().await;
    assert_eq!(
        (again.status, again.body.as_str(), again.header("etag")),
        (304, "", Some(tag.as_str()))
    );
    scenario.sql("UPDATE conversations SET satisfaction = 3").await;
    let changed = known().await;
    assert_eq!(with_status(&changed, 200)["conversation"]["satisfaction"], 3);
    assert_ne!(changed.header("etag"), Some(tag.as_str()));
}

#[tokio::test]
async fn the_documents_need_no_key_and_list_every_endpoint() {
    let (_scenario, api) = started().await;
    let openapi = with_status(&api.request("GET", "/openapi.json", &[]).await, 200);
    assert_eq!(openapi["openapi"], "3.1.0");
    let (index, llms) =
        (api.request("GET", "/", &[]).await, api.request("GET", "/llms.txt", &[]).await);
    let page = api.request("GET", "/docs", &[]).await;
    for path in openapi["paths"].as_object().unwrap().keys() {
        for text in [&index.body, &llms.body, &page.body] {
            assert!(text.contains(path.as_str()), "{path}");
        }
    }
    assert!(index.body.contains("/docs") && llms.body.contains("(/docs)"), "{index:?} {llms:?}");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    // Its example of publishing is accepted as it is.
    let (_, body) = page.body.split_once("-d '").unwrap();
    let body: Value =
        serde_json::from_str(&body.split_once('\'').unwrap().0.replace("&quot;", "\"")).unwrap();
    let key = api.key("acme", &["write"]).await;
    with_status(&api.post(&key, "/api/actions?dry_run=1", &[], &body).await, 200);
}
