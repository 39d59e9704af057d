//! `conversation.sync_messages`: whole lists, without ids, over RabbitMQ.

use std::path::Path;

use fixtures::lists::{body, say, turns};
use serde_json::{Value, json};
use system_tests::{COLLECTOR, Counts, SAVER, Scenario, message};
use testkit::environment::deep;
use uuid::Uuid;

/// The contents of all messages, in the order of their conversation.
const CONTENTS: &str = "SELECT string_agg(content, ' ' ORDER BY created_at, id) FROM messages";

fn list(messages: &[Value]) -> Value {
    body("s", messages, &json!({}))
}

/// Half of them say the same.
fn contents(count: usize) -> Vec<String> {
    let content =
        |n: usize| if n.is_multiple_of(2) { "yes".to_owned() } else { format!("message-{n}") };
    (0..count).map(content).collect()
}

fn messages(contents: &[String]) -> Vec<Value> {
    turns(&contents.iter().map(String::as_str).collect::<Vec<_>>())
}

fn strings(reply: &Value, field: &str) -> Vec<String> {
    let new = reply["data"]["new"].as_array().unwrap_or_else(|| panic!("{reply}"));
    new.iter().map(|new| new[field].to_string()).collect()
}

#[tokio::test]
async fn the_reply_says_what_was_new_and_what_the_next_list_may_go_on_from() {
    let scenario = Scenario::new().await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let mut all = vec![say("system", "Be kind.")];
    all.extend(turns(&["hi", "hello"]));
    let reply = scenario.reply_to(&list(&all)).await;
    assert_eq!(strings(&reply, "position"), ["0", "1", "2"], "{reply}");
    assert_eq!((&reply["data"]["known"], &reply["data"]["aligned"]), (&json!(0), &json!("exact")));
    let tail = reply["data"]["tail"].clone();
    assert_eq!(strings(&reply, "id")[2], tail.to_string());
    let reply = scenario.reply_to(&list(&all)).await;
    assert_eq!((strings(&reply, "id").len(), &reply["data"]["known"]), (0, &json!(2)), "{reply}");

    // Behind `after`, and the whole list again.
    let mut behind = list(&turns(&["yes"]));
    behind["after"] = tail.clone();
    let reply = scenario.reply_to(&behind).await;
    assert_eq!(strings(&reply, "position"), ["0"], "{reply}");
    all.push(say("user", "yes"));
    let reply = scenario.reply_to(&list(&all)).await;
    assert_eq!((strings(&reply, "id").len(), &reply["data"]["known"]), (0, &json!(3)), "{reply}");

    // A regenerated answer.
    let regenerated = turns(&["hi", "good day"]);
    let mut refused = list(&regenerated);
    refused["on_conflict"] = "refuse".into();
    let reply = scenario.reply_to(&refused).await;
    assert_eq!(reply["error"]["error_type"], "conflict", "{reply}");
    assert_eq!(reply["error"]["details"]["field"], "messages[1]", "{reply}");
    let reply = scenario.reply_to(&list(&regenerated)).await;
    assert_eq!(reply["data"]["aligned"], "branch", "{reply}");
    assert_eq!(scenario.sql(CONTENTS).await, "Be kind. hi hello yes good day");
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn lists_that_four_workers_receive_in_any_order_and_ten_times_are_stored_once() {
    let scenario = Scenario::new().await;
    let workers = tokio::join!(
        scenario.start(SAVER),
        scenario.start(SAVER),
        scenario.start(SAVER),
        scenario.start(SAVER),
    );
    let conversations = if deep() { 100 } else { 10 };
    let contents = contents(16);
    let all = messages(&contents);
    let mut lists = Vec::new();
    for n in 0..16 * 10 {
        for conversation in 0..conversations {
            let end = (n * 7 + conversation) % 16 + 1;
            lists.push(body(&format!("s{conversation}"), &all[..end], &json!({})));
        }
    }
    scenario.agent().publish_all(&lists).await;
    let stored = "SELECT count(DISTINCT contents) || ' ' || min(contents) || ' ' || sum(count)
                  FROM (SELECT string_agg(content, ' ' ORDER BY created_at, id) AS contents, count(*)
                        FROM messages GROUP BY conversation_id) AS conversations";
    let expected = format!("1 {} {}", contents.join(" "), 16 * conversations);
    let settled = [("queue", "conversation.save_message")];
    let workers = [workers.0, workers.1, workers.2, workers.3];
    testkit::wait::eventually("all lists to be settled", 3 * system_tests::LIMIT, async || {
        let mut deliveries = 0.0;
        for worker in &workers {
            deliveries += Counts::of(worker).await.sum("verbatim_deliveries_total", &settled);
        }
        if deliveries >= lists.len() as f64 {
            Ok(())
        } else {
            Err(format!("{deliveries} deliveries"))
        }
    })
    .await;
    assert_eq!(scenario.sql(stored).await, expected);
    for conversation in 0..conversations {
        let key = fixtures::key(&format!("s{conversation}"));
        assert_eq!(scenario.reader().both(&key).await.len(), 16);
    }
    scenario.finish(workers).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
}

#[tokio::test]
async fn a_list_that_cannot_be_stored_is_a_dead_letter_that_says_what_to_send() {
    let scenario = Scenario::new().await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    // Larger than the limit.
    let large = say("user", &"x".repeat(1 << 20));
    let reply = scenario.reply_to(&list(&[large])).await;
    assert_eq!(reply["error"]["error_type"], "too_large", "{reply}");
    assert!(reply["error"]["message"].as_str().unwrap().contains("as `after`"), "{reply}");
    // Too many messages.
    let many = vec![say("user", "y"); 10_001];
    let reply = scenario.reply_to(&list(&many)).await;
    assert_eq!(reply["error"]["details"]["field"], "messages", "{reply}");
    assert!(reply["error"]["message"].as_str().unwrap().contains("as `after`"), "{reply}");
    // A bad message: nothing of the list is stored.
    let bad = [say("user", "hi"), say("bot", "hello")];
    let reply = scenario.reply_to(&list(&bad)).await;
    assert_eq!(reply["error"]["details"]["field"], "messages[1].role", "{reply}");
    // Nothing in common.
    scenario.agent().publish(&message("acme", "s", "own", &json!({"content": "hi"}))).await;
    scenario.until_sql("SELECT count(*) FROM messages", "1").await;
    let reply = scenario.reply_to(&list(&turns(&["other", "words"]))).await;
    assert_eq!(reply["error"]["error_type"], "conflict", "{reply}");
    scenario
        .until_sql(
            "SELECT string_agg(reason, ' ' ORDER BY reason) FROM dead_letters",
            "conflict schema schema too_large",
        )
        .await;
    // What an operator replays after an edit is stored.
    let id = scenario.sql("SELECT id FROM dead_letters WHERE field = 'messages[1].role'").await;
    scenario.sql("DELETE FROM message_rows").await;
    for arguments in
        [&["dead-letters", "edit", &id, "--apply-suggestion"][..], &["dead-letters", "replay", &id]]
    {
        let ran = scenario.verbatim(arguments).await;
        assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    }
    scenario.until_sql(CONTENTS, "hi hello").await;
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn a_list_that_overtakes_the_message_that_it_goes_on_from_waits_for_it() {
    let scenario = Scenario::new().await;
    let saver = scenario.start(SAVER).await;
    let mut behind = list(&turns(&["hello", "yes"]));
    behind["after"] = "own".into();
    scenario.agent().publish(&behind).await;
    let retried = [("queue", "conversation.save_message"), ("outcome", "retried")];
    Counts::reach(&saver, "verbatim_deliveries_total", &retried, 1.0).await;
    scenario.agent().publish(&message("acme", "s", "own", &json!({"content": "hi"}))).await;
    scenario.until_sql(CONTENTS, "hi hello yes").await;
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn a_file_is_synced_in_parts_and_again() {
    let scenario = Scenario::new().await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let mut contents = contents(300);
    contents[0] = format!("long {}", "x".repeat(10_000));
    for content in contents.iter_mut().skip(1) {
        content.push_str(&"x".repeat(10_000));
    }
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.json", Uuid::new_v4()));
    let write = |messages: &[Value]| {
        std::fs::write(&file, json!({"model": "gpt-4o", "messages": messages}).to_string())
            .unwrap();
    };
    let sync = async |more: &[&str]| {
        let options = ["sync", file.to_str().unwrap(), "--tenant", "acme", "--session", "s"];
        let ran = scenario.verbatim(&[&options[..], more].concat()).await;
        (
            ran.status.code(),
            String::from_utf8(ran.stdout).unwrap(),
            String::from_utf8(ran.stderr).unwrap(),
        )
    };
    let all = messages(&contents);
    write(&all[..299]);
    let (code, out, err) = sync(&[]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("299 of 299 messages saved, 0 known; conversation "), "{out}");
    write(&all);
    let (code, out, err) = sync(&["--json"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&report["new"][0]["position"], &report["known"]),
        (&json!(299), &json!(299)),
        "{report}"
    );
    assert_eq!(report["new"].as_array().unwrap().len(), 1);
    assert_eq!(scenario.sql(CONTENTS).await, contents.join(" "));
    assert_eq!(scenario.sql("SELECT DISTINCT model_name FROM messages").await, "gpt-4o");

    // What follows, and what has nothing in common.
    write(&turns(&["thanks"]));
    let tail = report["tail"].as_str().unwrap();
    let (code, out, _) = sync(&["--after", tail]).await;
    assert_eq!(code, Some(0), "{out}");
    let (code, out, _) = sync(&[]).await;
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("conflict: the list has nothing in common"), "{out}");
    write(&turns(&[&contents[0], "another answer"]));
    let (code, out, _) = sync(&["--on-conflict", "refuse"]).await;
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("conflict: `messages[1]` does not follow the newest message"), "{out}");
    let (code, out, _) = sync(&[]).await;
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("the new messages are a branch: they go on from "), "{out}");
    scenario.finish([saver, collector]).await;
    let (code, out, err) = sync(&["--wait", "200ms"]).await;
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(err.contains("no worker replied within 200ms"), "{err}");
}

#[tokio::test]
async fn a_list_of_10_000_messages_is_stored() {
    let scenario = Scenario::new().await;
    let saver = scenario.start(SAVER).await;
    let contents = contents(10_000);
    let reply = scenario.reply_to(&list(&messages(&contents))).await;
    assert_eq!(strings(&reply, "position").len(), 10_000);
    assert_eq!(scenario.sql(CONTENTS).await, contents.join(" "));
    scenario.finish([saver]).await;
}
