//! Searches for words.

use serde_json::{Value, json};
use system_tests::{ApiServer, MIGRATION, SAVER, STATISTICS, Scenario, closed, message};
use testkit::wait::eventually;

use crate::{archived, ids, started, started_with, with_status};

const LIST: &str = "/api/conversations/list/acme";

/// The sessions that are found.
async fn found(api: &ApiServer, key: &str, query: &str) -> Vec<String> {
    let answer = api.json(key, &format!("{LIST}?{query}")).await;
    assert_eq!(answer["searched"], "archived", "{answer}");
    assert_eq!(answer["next"], Value::Null, "{answer}");
    let listed = answer["conversations"].as_array().unwrap();
    listed.iter().map(|it| it["session_id"].as_str().unwrap().to_owned()).collect()
}

/// Waits until a search finds this.
async fn until_found(api: &ApiServer, key: &str, query: &str, expected: &[&str]) {
    eventually(&format!("{expected:?} for {query}"), system_tests::LIMIT, async || {
        let found = found(api, key, query).await;
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// Stores conversations as [`archived`] does, and writes their words.
async fn with_words(scenario: &Scenario, tenant: &str, conversations: u32) {
    archived(scenario, tenant, conversations, 1).await;
    scenario
        .sql("INSERT INTO words_due SELECT finalised_at, tenant_id, id FROM conversations ON CONFLICT DO NOTHING")
        .await;
    let worker = scenario.start(STATISTICS).await;
    scenario.until_sql("SELECT count(*) FROM words_due", "0").await;
    scenario.finish([worker]).await;
}

#[tokio::test]
async fn a_conversation_of_the_fleet_is_found_by_its_words_some_seconds_after_its_close() {
    let (scenario, api) = started().await;
    let workers = [SAVER, MIGRATION, STATISTICS].map(|worker| scenario.launch(worker, &[]));
    let agent = scenario.agent();
    let say = |session: &str, id: &str, content: &str| {
        message("acme", session, id, &json!({"content": content}))
    };
    let key = api.key("acme", &["read"]).await;
    agent.publish(&say("goes-on", "1", "Where is my parcel?")).await;
    agent.publish(&say("ends", "1", "Where is my Größe 42 parcel?")).await;
    scenario.until_sql("SELECT count(*) FROM messages", "2").await;
    agent.publish(&closed("acme", "ends", &json!({}))).await;
    until_found(&api, &key, "text=parcel+gr%C3%B6%C3%9Fe", &["ends"]).await;
    assert_eq!(found(&api, &key, "text=parcel").await, ["ends"], "the other one is active");
    assert_eq!(found(&api, &key, "text=parcel&user_id=nobody").await, [""; 0]);
    assert_eq!(found(&api, &key, "text=parcel&status=archived").await, ["ends"]);
    let all = api.json(&key, LIST).await;
    assert_eq!(ids(&all["conversations"]).len(), 2);
    assert_eq!(all.get("searched"), None);

    // A late message makes it active, and it is archived again with the words of both.
    agent.publish(&say("ends", "2", "It came back")).await;
    until_found(&api, &key, "text=back+42", &["ends"]).await;
    let globex = api.key("globex", &["read"]).await;
    let theirs = api.json(&globex, "/api/conversations/list/globex?text=parcel").await;
    assert_eq!(theirs["conversations"], json!([]));
    with_status(&api.get(&globex, &format!("{LIST}?text=parcel")).await, 404);
    drop(workers);
}

#[tokio::test]
async fn a_search_that_is_none_is_refused_with_its_parameter() {
    let (_scenario, api) = started().await;
    let key = api.key("acme", &["read"]).await;
    let long = "x".repeat(300);
    let many: String = (0..17).map(|n| format!("w{n}+")).collect();
    for (query, parameter) in [
        ("text=", "text"),
        ("text=%20.%2C%21%27", "text"),
        (&format!("text=a+{long}"), "text"),
        (&format!("text={}", "a+".repeat(600)), "text"),
        (&format!("text={many}"), "text"),
        ("text=a&text=b", "text"),
        ("text=%ff", "text"),
        ("text=a&status=active", "status"),
        ("text=a&status=closing", "status"),
    ] {
        let problem = with_status(&api.get(&key, &format!("{LIST}?{query}")).await, 422);
        assert_eq!(problem["errors"][0]["parameter"], parameter, "{query}: {problem}");
    }
}

#[tokio::test]
async fn no_text_of_a_search_reaches_another_tenant_or_fails() {
    let (scenario, api) = started().await;
    with_words(&scenario, "globex", 3).await;
    archived(&scenario, "acme", 1, 1).await;
    let key = api.key("acme", &["read"]).await;
    for text in [
        "globex",
        "/2026-01/globex",
        "/globex/2026-01",
        "said' OR '1'='1",
        "said'); DROP TABLE conversation_words; --",
        "said | globex",
        "said & !nothing",
        "said:* <-> to",
        "{said,to}",
        "said\\' \\\\ \"to\"",
        "said\u{0}to",
        "sa\u{202e}id % _",
    ] {
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = api.json(&key, &format!("{LIST}?text={encoded}")).await;
        assert_eq!(answer["conversations"], json!([]), "{text}: {answer}");
    }
    let theirs = api.key("globex", &["read"]).await;
    let answer = api.json(&theirs, "/api/conversations/list/globex?text=said+globex").await;
    assert_eq!(ids(&answer["conversations"]), ["c2", "c1", "c0"]);
}

#[tokio::test]
async fn pages_of_a_search_have_each_conversation_once_also_where_its_time_ends_first() {
    let (scenario, api) = started_with(&[("VERBATIM_SEARCH_TIME", "1ms")]).await;
    with_words(&scenario, "acme", 25).await;
    // A year for each, so that each needs a look-up of its own.
    scenario
        .sql(
            "UPDATE conversations SET created_at = created_at - hot_generation * interval '1 year';
              DELETE FROM conversation_words;
              INSERT INTO words_due SELECT finalised_at, tenant_id, id FROM conversations",
        )
        .await;
    let worker = scenario.start(STATISTICS).await;
    scenario.until_sql("SELECT count(*) FROM words_due", "0").await;
    scenario.finish([worker]).await;
    let key = api.key("acme", &["read"]).await;
    for (query, total) in [("text=said", 25), ("text=said&user_id=u1", 8), ("text=never", 0)] {
        let (mut all, mut cursor) = (vec![], String::new());
        loop {
            let page = api.json(&key, &format!("{LIST}?{query}&limit=7{cursor}")).await;
            all.extend(ids(&page["conversations"]));
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        let mut each = all.clone();
        each.sort();
        each.dedup();
        assert_eq!(each.len(), all.len(), "{query}: {all:?}");
        assert_eq!(all.len(), total, "{query}");
        // A cursor belongs to its words.
        let first = api.json(&key, &format!("{LIST}?{query}&limit=1")).await;
        if let Some(next) = first["next"].as_str() {
            for other in ["text=other", "limit=7"] {
                let path = format!("{LIST}?{other}&cursor={next}");
                with_status(&api.get(&key, &path).await, 422);
            }
        }
    }
}
