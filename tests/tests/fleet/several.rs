//! `conversation.save_messages`: several messages of a conversation as one action.

use std::path::Path;

use serde_json::{Value, json};
use system_tests::{COLLECTOR, Counts, LIMIT, SAVER, Scenario, at};
use testkit::environment::deep;
use uuid::Uuid;

use crate::large::{PROMISED, assert_promise};

const SEVERAL: &str = "conversation.save_messages";

/// The contents of all messages, in the order of their conversation.
const CONTENTS: &str = "SELECT string_agg(content, ' ' ORDER BY created_at, id) FROM messages";

fn action(id: &str, messages: &[Value]) -> Value {
    json!({
        "action_type": SEVERAL, "tenant_id": "several", "session_id": "s", "action_id": id,
        "messages": messages,
    })
}

fn say(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn contents(numbers: impl Iterator<Item = usize>) -> String {
    numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn the_messages_of_an_action_keep_their_order_and_a_bad_one_takes_its_place_when_replayed() {
    let scenario = Scenario::new().await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let mut messages: Vec<Value> = (0..100).map(|n| say(&n.to_string())).collect();
    messages[40]["role"] = "bot".into();
    let turn = action("turn-1", &messages);
    for again in [false, true] {
        let reply = scenario.reply_to(&turn).await;
        assert_eq!((&reply["success"], &reply["action_id"]), (&json!(true), &json!("turn-1")));
        let elements = reply["data"]["messages"].as_array().unwrap();
        assert_eq!(elements.len(), 100);
        for (position, element) in elements.iter().enumerate() {
            assert_eq!(element["position"], position);
            if position == 40 {
                assert_eq!(element["error"]["error_type"], "schema", "{element}");
                assert_eq!(element["error"]["details"]["field"], "messages[40].role", "{element}");
            } else {
                assert_eq!(element["duplicate"], again, "{element}");
            }
        }
        let without = contents((0..100).filter(|n| *n != 40));
        assert_eq!(scenario.sql(CONTENTS).await, without);
    }
    let dead_letters =
        "SELECT string_agg(concat_ws('|', reason, field, copies), ',') FROM dead_letters";
    scenario.until_sql(dead_letters, "schema|role|2").await;
    let id = scenario.sql("SELECT id FROM dead_letters").await;
    for arguments in
        [&["dead-letters", "edit", &id, "--apply-suggestion"][..], &["dead-letters", "replay", &id]]
    {
        let ran = scenario.verbatim(arguments).await;
        assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    }
    scenario.until_sql(CONTENTS, &contents(0..100)).await;
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn actions_at_once_do_not_interleave() {
    let number_of_actions = if deep() { 1_000 } else { 100 };
    let scenario = Scenario::new().await;
    let saver = scenario.start(SAVER).await;
    let actions: Vec<Value> = (0..number_of_actions)
        .map(|number| {
            let messages: Vec<Value> = (0..10).map(|n| say(&format!("{number}.{n}"))).collect();
            action(&format!("turn-{number}"), &messages)
        })
        .collect();
    scenario.agent().publish_all(&actions).await;
    let messages = (10 * number_of_actions).to_string();
    scenario.until_sql("SELECT count(*) FROM messages", &messages).await;
    let stored = scenario.sql(CONTENTS).await;
    let stored: Vec<&str> = stored.split(' ').collect();
    for of_one in stored.chunks(10) {
        let (number, _) = of_one[0].split_once('.').unwrap();
        let expected: Vec<String> = (0..10).map(|n| format!("{number}.{n}")).collect();
        assert_eq!(of_one, expected);
    }
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn of_an_atomic_action_with_a_conflict_nothing_is_saved() {
    let scenario = Scenario::new().await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let named =
        |id: &str, content: &str| json!({"role": "user", "content": content, "message_id": id});
    let first = scenario.reply_to(&action("a", &[named("m1", "one"), named("m2", "two")])).await;
    assert_eq!(first["success"], true, "{first}");
    let mut atomic = action("b", &[named("m3", "three"), named("m2", "other"), named("m1", "one")]);
    atomic["atomic"] = true.into();
    let refused = scenario.reply_to(&atomic).await;
    assert_eq!(refused["error"]["error_type"], "conflict", "{refused}");
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("atomic") && message.contains("positions cannot be saved: 1."),
        "{message}"
    );
    assert_eq!(scenario.sql(CONTENTS).await, "one two");
    let dead_letters =
        "SELECT string_agg(concat_ws('|', reason, action_type), ',') FROM dead_letters";
    scenario.until_sql(dead_letters, &format!("conflict|{SEVERAL}")).await;

    // A bad message is seen before anything is saved; a good action is saved as a whole.
    atomic["messages"][1] = json!({"role": "bot", "content": "two", "message_id": "m2"});
    let refused = scenario.reply_to(&atomic).await;
    assert_eq!(refused["error"]["error_type"], "schema", "{refused}");
    let by_schema = "SELECT count(*) FROM dead_letters WHERE reason = 'schema'";
    scenario.until_sql(by_schema, "1").await;
    let id = scenario.sql("SELECT id FROM dead_letters WHERE reason = 'schema'").await;
    let shown = scenario.verbatim(&["dead-letters", "show", &id]).await;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("set messages[1].role to \"assistant\""), "{shown}");
    atomic["messages"][1] = named("m4", "four");
    let saved = scenario.reply_to(&atomic).await;
    let duplicates: Vec<_> =
        saved["data"]["messages"].as_array().unwrap().iter().map(|it| &it["duplicate"]).collect();
    assert_eq!(duplicates, [false, false, true], "{saved}");
    assert_eq!(scenario.sql("SELECT count(*) FROM messages").await, "4");
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn a_message_that_postgresql_refuses_or_that_conflicts_keeps_no_other_of_its_action_away() {
    let scenario = Scenario::new().await;
    scenario
        .sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'refused by the test' USING ERRCODE = '22023'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON message_rows
                 FOR EACH ROW WHEN (NEW.content = 'poison') EXECUTE FUNCTION refuse()",
        )
        .await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let named =
        |id: &str, content: &str| json!({"role": "user", "content": content, "message_id": id});
    scenario.reply_to(&action("a", &[named("m1", "one")])).await;
    let mut messages: Vec<Value> = (0..20).map(|n| say(&n.to_string())).collect();
    messages[7]["content"] = "poison".into();
    messages[13] = named("m1", "other");
    let reply = scenario.reply_to(&action("b", &messages)).await;
    let failed: Vec<_> = reply["data"]["messages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|element| element["error"].is_object())
        .map(|element| (element["position"].clone(), element["error"]["error_type"].clone()))
        .collect();
    assert_eq!(failed, [(json!(7), json!("schema")), (json!(13), json!("conflict"))]);
    let saved = contents((0..20).filter(|n| ![7, 13].contains(n)));
    assert_eq!(scenario.sql(CONTENTS).await, format!("one {saved}"));
    let dead_letters =
        "SELECT string_agg(concat_ws('|', reason, action_type, message_id = 'm1'), ','
                                          ORDER BY reason) FROM dead_letters";
    let one = "conversation.save_message";
    scenario.until_sql(dead_letters, &format!("conflict|{one}|t,schema|{one}|f")).await;
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn elements_with_times_of_their_own_are_the_same_messages_in_actions_of_other_sizes() {
    let scenario = Scenario::new().await;
    let saver = scenario.start(SAVER).await;
    let element = |n: usize| {
        let time = at(i64::try_from(n).unwrap());
        // Some say the same.
        json!({"role": "user", "content": (n / 4).to_string(), "timestamp": time})
    };
    let mut sent = 0;
    for size in [10, 7, 1, 40] {
        let all: Vec<Value> = (0..40).map(element).collect();
        let action = |(n, some): (usize, &[Value])| action(&format!("{size}-{n}"), some);
        let actions: Vec<Value> = all.chunks(size).enumerate().rev().map(action).collect();
        sent += actions.len();
        scenario.agent().publish_all(&actions).await;
    }
    let saved = [("queue", "conversation.save_message")];
    Counts::reach(&saver, "verbatim_deliveries_total", &saved, sent as f64).await;
    assert_eq!(scenario.sql(CONTENTS).await, contents((0..40).map(|n| n / 4)));
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn messages_of_an_action_and_single_ones_of_the_same_ids_are_stored_once() {
    let scenario = Scenario::new().await;
    let savers = tokio::join!(scenario.start(SAVER), scenario.start(SAVER));
    let element = |n: usize| {
        let time = at(i64::try_from(n).unwrap());
        json!({"role": "user", "content": n.to_string(), "message_id": format!("m{n}"), "timestamp": time})
    };
    let mut actions: Vec<Value> = Vec::new();
    for n in 0..40 {
        let several: Vec<Value> = (n..n + 20).map(element).collect();
        actions.push(action(&format!("a{n}"), &several));
        let mut one = element(n * 3 / 2);
        one["action_type"] = "conversation.save_message".into();
        (one["tenant_id"], one["session_id"]) = ("several".into(), "s".into());
        actions.push(one);
    }
    scenario.agent().publish_all(&actions).await;
    let done = "SELECT count(*) FROM messages";
    scenario.until_sql(done, "59").await;
    let savers = [savers.0, savers.1];
    scenario.finish(savers).await;
    assert_eq!(scenario.sql(CONTENTS).await, contents(0..59));
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
}

#[tokio::test]
async fn an_atomic_action_after_a_part_of_it_was_saved_saves_the_rest() {
    let scenario = Scenario::new().await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let named =
        |id: &str, content: &str| json!({"role": "user", "content": content, "message_id": id});
    scenario.reply_to(&action("a", &[named("m1", "one")])).await;
    let messages =
        [named("m2", "two"), named("m1", "other"), json!({"role": "bot"}), named("m3", "three")];
    scenario.reply_to(&action("b", &messages)).await;
    assert_eq!(scenario.sql(CONTENTS).await, "one two three");
    let mut atomic = action(
        "b",
        &[named("m2", "two"), named("m1", "one"), named("m4", "four"), named("m3", "three")],
    );
    atomic["atomic"] = true.into();
    let reply = scenario.reply_to(&atomic).await;
    let duplicates: Vec<_> = reply["data"]["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["duplicate"].clone())
        .collect();
    assert_eq!(duplicates, [true, true, false, true], "{reply}");
    assert_eq!(
        scenario.sql("SELECT string_agg(id, ' ' ORDER BY id) FROM messages").await,
        "m1 m2 m3 m4"
    );
    scenario.until_sql("SELECT count(*) FROM dead_letters", "2").await;
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn an_action_of_100_messages_and_1_mib_is_saved_and_one_of_101_is_a_dead_letter() {
    let scenario = Scenario::new().await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let of = |count: usize, bytes: usize| {
        let messages: Vec<Value> =
            (0..count).map(|n| say(&format!("{n:03}{}", "x".repeat(bytes)))).collect();
        action(&format!("{count}-{bytes}"), &messages)
    };
    let most = 1 << 20;
    let empty = of(100, 0).to_string().len();
    let full = of(100, (most - empty) / 100 - 1);
    assert!((most - 400..=most).contains(&full.to_string().len()));
    let reply = scenario.reply_to(&full).await;
    assert_eq!(reply["success"], true, "{reply}");
    assert_eq!(scenario.sql("SELECT count(*) FROM messages").await, "100");
    let refused = scenario.reply_to(&of(101, 1)).await;
    assert_eq!(refused["error"]["details"]["field"], "messages", "{refused}");
    let refused = scenario.reply_to(&of(100, most / 100)).await;
    assert_eq!(refused["error"]["error_type"], "too_large", "{refused}");
    scenario
        .until_sql(
            "SELECT string_agg(reason, ' ' ORDER BY reason) FROM dead_letters",
            "schema too_large",
        )
        .await;
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn many_actions_of_100_messages_stay_within_the_memory_that_was_promised() {
    let scenario = Scenario::new().await;
    let number_of_actions = if deep() { 500 } else { 50 };
    // Small bodies: each of their messages has the metadata of its action.
    let of_action = |number: usize| {
        let messages: Vec<Value> = (0..100).map(|n| say(&format!("{number}.{n}"))).collect();
        let mut action = action(&format!("a{number}"), &messages);
        action["session_id"] = format!("s{}", number % 20).into();
        action["metadata"] = json!({"notes": "n".repeat(9_000)});
        action
    };
    let actions: Vec<Value> = (0..number_of_actions).map(of_action).collect();
    scenario.agent().publish_all(&actions).await;
    // Each becomes a dead letter for each of its messages.
    let refused = |number: usize| {
        let mut action = of_action(number);
        action["messages"] = vec![json!({"role": "bot"}); 100].into();
        action
    };
    let refused_actions = number_of_actions / 10;
    let actions: Vec<Value> = (0..refused_actions).map(|n| refused(1_000 + n)).collect();
    scenario.agent().publish_all(&actions).await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    for number in (1..=number_of_actions).filter(|number| number % 10 == 0) {
        let stored = format!("SELECT count(*) >= {} FROM messages", number * 100);
        scenario.until_sql(&stored, "true").await;
    }
    let dead_letters = (refused_actions * 100).to_string();
    scenario.until_sql_within(3 * LIMIT, "SELECT count(*) FROM dead_letters", &dead_letters).await;
    assert_promise(&saver, PROMISED);
    assert_promise(&collector, PROMISED);
    let timeouts =
        Counts::of(&saver).await.sum("verbatim_deliveries_total", &[("outcome", "slow")]);
    assert!(timeouts < 1.0, "{timeouts} deliveries moved to the slow queue");
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn a_file_that_is_published_together_and_line_by_line_is_stored_once() {
    let scenario = Scenario::new().await;
    let saver = scenario.start(SAVER).await;
    let message = |n: usize| {
        let mut line = say(&n.to_string());
        line["action_type"] = "conversation.save_message".into();
        (line["tenant_id"], line["session_id"]) = ("several".into(), "s".into());
        // Their ids are derived from their bytes, or are those of their actions.
        line["timestamp"] = at(i64::try_from(n).unwrap()).into();
        if n.is_multiple_of(3) {
            line["action_id"] = format!("a{n}").into();
        }
        line.to_string()
    };
    let lines: Vec<String> = (0..50).map(message).collect();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.jsonl", Uuid::new_v4()));
    std::fs::write(&file, lines.join("\n")).unwrap();
    let file = file.to_str().unwrap();
    let saved = [("queue", "conversation.save_message")];
    for (arguments, deliveries) in [
        (&["publish", file][..], 1.0),
        (&["publish", file, "--no-grouping"], 51.0),
        (&["publish", file], 52.0),
    ] {
        let ran = scenario.verbatim(arguments).await;
        assert_eq!(ran.status.code(), Some(0), "{ran:?}");
        Counts::reach(&saver, "verbatim_deliveries_total", &saved, deliveries).await;
        assert_eq!(scenario.sql(CONTENTS).await, contents(0..50));
    }
    scenario.finish([saver]).await;
}
