//! What a fleet does with what agents publish, from the exchange to the archive.
//!
//! The tests share one fleet, as the customers of a real one do: each has a tenant of its own.

use std::collections::{BTreeMap, BTreeSet};

use conversation::Source;
use domain::action::ActionKind;
use domain::fixtures::{ACTIONS, FIRST_AGENTS, example};
use domain::ids::ConversationKey;
use domain::message::Message;
use domain::status::ConversationStatus;
use serde_json::{Value, json};
use system_tests::{
    Counts, Eyes, MIGRATION, Running, SAVER, STATISTICS, Scenario, at, closed, key, message, opened,
};
use testkit::wait::eventually;
use uuid::Uuid;

const ARCHIVED: ConversationStatus = ConversationStatus::Archived;
const ACTIVE: ConversationStatus = ConversationStatus::Active;

fn ids(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.id.as_str()).collect()
}

/// Waits until a conversation holds so many messages, and returns them.
async fn saved(eyes: &Eyes, key: &ConversationKey, count: usize) -> Vec<Message> {
    eventually(format!("{count} messages of {key}"), system_tests::LIMIT, async || {
        let messages = eyes.archived(key).await;
        if messages.len() >= count { Ok(messages) } else { Err(format!("{:?}", ids(&messages))) }
    })
    .await
}

/// Publishes a conversation that closes at once, and waits until it is archived: whatever was
/// published before it and would have closed as well has had its time.
async fn a_whole_close_later(running: &Running, eyes: &Eyes, tenant: &str) {
    let session = Uuid::new_v4().to_string();
    let witness = message(tenant, &session, "witness", &json!({}));
    let agent = running.scenario.agent();
    agent.publish(&witness).await;
    saved(eyes, &key(&witness), 1).await;
    agent.publish(&closed(tenant, &session, &json!({}))).await;
    eyes.reaches(&key(&witness), ARCHIVED).await;
}

/// The events about one conversation, as a listener's queue got them.
fn about<'a>(events: &'a [Value], key: &ConversationKey) -> Vec<&'a str> {
    let same = |event: &&Value| event["conversation_id"] == key.conversation.as_str();
    let events = events.iter().filter(same);
    events.filter_map(|event| event["event_type"].as_str()).collect()
}

#[tokio::test]
async fn the_three_bodies_that_agents_sent_before_the_contract_work_unchanged() {
    let Running { scenario, statistics, .. } = Running::shared().await;
    let (side, eyes) = (scenario.side(), scenario.eyes());
    let [save, ask, close] = FIRST_AGENTS.map(|name| example(name).unwrap());
    let body: Value = serde_json::from_str(save).unwrap();
    let key = key(&body);

    // They set no AMQP properties at all.
    let bare = json!({});
    side.publish("conversation.save_message", &bare, save).await;
    let messages = saved(&eyes, &key, 1).await;
    assert_eq!(messages[0].content.text(), body["content"].as_str().unwrap());
    assert_eq!(messages[0].agent_id.as_ref().unwrap().as_str(), "agent_xyz");
    assert_eq!(messages[0].model_name.as_deref(), Some("llama3-70b-8192"));
    assert_eq!(messages[0].tokens_estimate, Some(150));

    side.publish("conversation.get_context", &bare, ask).await;
    assert!(scenario.queued().await.contains(&("conversation.context", 1)), "the question waits");

    side.publish("conversation.session_closed", &bare, close).await;
    eyes.reaches(&key, ARCHIVED).await;
    let row =
        "SELECT tenant_tier, session_id, message_count, total_tokens > 0, close_reason IS NULL
               FROM conversations WHERE tenant_id = 'tenant123'";
    assert_eq!(scenario.sql(row).await, "professional|session_abc|1|t|t");
    scenario.until_sql("SELECT count(*) FROM daily_stats WHERE tenant_id = 'tenant123'", "1").await;
    assert_eq!(
        scenario.sql("SELECT count(*) FROM dead_letters WHERE tenant_id = 'tenant123'").await,
        "0"
    );
    let counts = Counts::of(statistics).await;
    assert_eq!(counts.sum("verbatim_store_up", &[]), 3.0, "all three stores");
}

#[tokio::test]
async fn every_example_of_a_message_is_saved_as_it_was_sent() {
    let scenario = &Running::shared().await.scenario;
    let (agent, eyes) = (scenario.agent(), scenario.eyes());
    let examples =
        ACTIONS.iter().filter(|example| example.name.starts_with(ActionKind::SaveMessage.as_str()));
    let actions: Vec<Value> = examples
        .map(|example| {
            let mut action: Value = serde_json::from_str(example.body).unwrap();
            // A tenant and a session each, wherever they stand.
            let nested = action["data"].get("session_id").is_some();
            let ids = if nested { &mut action["data"] } else { &mut action };
            ids["session_id"] = format!("session of {}", example.name).into();
            let at_top = action.get("tenant_id").is_some();
            let ids = if at_top { &mut action } else { &mut action["data"] };
            ids["tenant_id"] = "examples".into();
            action
        })
        .collect();
    agent.publish_all(&actions).await;
    let sessions =
        "SELECT count(DISTINCT session_id) FROM conversations WHERE tenant_id = 'examples'";
    scenario.until_sql(sessions, &actions.len().to_string()).await;
    let keys = "SELECT string_agg(id, ',') FROM conversations WHERE tenant_id = 'examples'";
    for conversation in scenario.sql(keys).await.split(',') {
        let key = ConversationKey::parse("examples", conversation).unwrap();
        assert_eq!(eyes.both(&key).await.len(), 1, "{key}");
    }
}

#[tokio::test]
async fn a_message_is_hot_and_durable_and_a_closed_conversation_archived_with_its_statistics() {
    let scenario = &Running::shared().await.scenario;
    let (agent, side, eyes) = (scenario.agent(), scenario.side(), scenario.eyes());
    side.listen("events-of-whole").await;
    let of_agent = |role: &str, micros| json!({"role": role, "timestamp": at(micros), "agent_id": "ada", "model_name": "gpt-4o"});
    let messages = [
        message("whole", "s", "1", &of_agent("user", 0)),
        message("whole", "s", "2", &of_agent("assistant", 2_000_000)),
        message("whole", "s", "3", &of_agent("user", 10_000_000)),
        message("whole", "s", "4", &of_agent("assistant", 14_000_000)),
    ];
    let key = key(&messages[0]);
    agent.publish(&opened("whole", "s", &json!({}))).await;
    agent.publish_all(&messages).await;
    saved(&eyes, &key, 4).await;
    assert_eq!(ids(&eyes.both(&key).await), ["1", "2", "3", "4"]);

    agent.publish(&closed("whole", "s", &json!({"reason": "done", "satisfaction": 5}))).await;
    eyes.reaches(&key, ARCHIVED).await;
    let transcript = eyes.transcript(&key).await;
    assert_eq!(
        (ids(&transcript.messages), transcript.status),
        (vec!["1", "2", "3", "4"], Some(ARCHIVED))
    );
    assert_eq!(transcript.source, Source::Archive, "the hot copy is gone");

    scenario
        .until_sql(
            "SELECT concat_ws('|', agent_id, message_count, user_messages, assistant_messages,
                    duration_seconds, avg_response_seconds, satisfaction, day)
             FROM conversation_stats WHERE tenant_id = 'whole'",
            "ada|4|2|2|14|3|5|2026-11-20",
        )
        .await;
    scenario
        .until_sql(
            "SELECT concat_ws('|', agent_id, day, conversations, messages, tokens > 0,
                    avg_duration_seconds, avg_satisfaction, dirty)
             FROM daily_stats WHERE tenant_id = 'whole'",
            "ada|2026-11-20|1|4|t|14|5|f",
        )
        .await;
    let events = side.bodies("events-of-whole", 1).await;
    let migrated: Vec<_> = events.iter().filter(|it| it["tenant_id"] == "whole").collect();
    assert_eq!(migrated.len(), 1, "{migrated:?}");
    assert_eq!(migrated[0]["event_type"], "conversation.migrated");
    assert_eq!(
        (&migrated[0]["message_count"], &migrated[0]["close_reason"]),
        (&json!(4), &json!("done"))
    );
    side.delete_queue("events-of-whole").await;
}

#[tokio::test]
async fn ten_publishes_of_one_message_before_and_after_archiving_store_it_once() {
    let running = Running::shared().await;
    let (agent, eyes) = (running.scenario.agent(), running.scenario.eyes());
    let body = message("ten", "s", "m", &json!({}));
    // What an agent that tries again may well change.
    let again = message(
        "ten",
        "s",
        "m",
        &json!({"timestamp": at(5_000_000), "metadata": {"try": 2}, "tokens_estimate": 9}),
    );
    agent
        .publish_all(&[body.clone(), body.clone(), body.clone(), again.clone(), body.clone()])
        .await;
    let key = key(&body);
    saved(&eyes, &key, 1).await;
    assert_eq!(ids(&eyes.both(&key).await), ["m"]);
    agent.publish(&closed("ten", "s", &json!({}))).await;
    eyes.reaches(&key, ARCHIVED).await;
    agent.publish_all(&[again.clone(), body.clone(), body.clone(), again, body]).await;
    a_whole_close_later(running, &eyes, "ten-witness").await;

    let of_this = "FROM messages WHERE tenant_id = 'ten'";
    assert_eq!(running.scenario.sql(&format!("SELECT count(*) {of_this}")).await, "1");
    assert_eq!(eyes.transcript(&key).await.messages[0].created_at.to_string(), at(0));
    let letters = "SELECT count(*) FROM dead_letters WHERE tenant_id = 'ten'";
    assert_eq!(running.scenario.sql(letters).await, "0");
    let totals = "SELECT string_agg(messages::text, ',') FROM daily_stats WHERE tenant_id = 'ten'";
    running.scenario.until_sql(totals, "1").await;
    eyes.reaches(&key, ARCHIVED).await;
}

#[tokio::test]
async fn equal_timestamps_and_late_arrivals_read_in_one_order_from_both_stores() {
    let running = Running::shared().await;
    let (agent, eyes) = (running.scenario.agent(), running.scenario.eyes());
    // 17 and 400 have no common factor: every message once, neighbours far apart.
    let place = |n: usize| n * 17 % 400;
    let messages: Vec<Value> = (0..400)
        .map(|n| {
            let id = format!("{}{:03}", ["Z", "a", "é", "\u{1f600}"][n % 4], place(n));
            let timestamp = at(i64::try_from(place(n) / 40).unwrap());
            message("order", "s", &id, &json!({"timestamp": timestamp}))
        })
        .collect();
    for part in messages.chunks(40) {
        agent.publish_all(part).await;
    }
    let key = key(&messages[0]);
    saved(&eyes, &key, 400).await;
    let mut expected: Vec<(&str, &str)> = messages
        .iter()
        .map(|it| (it["timestamp"].as_str().unwrap(), it["message_id"].as_str().unwrap()))
        .collect();
    // Byte order, which is Rust's order of strings.
    expected.sort_unstable();
    let expected: Vec<&str> = expected.into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids(&eyes.both(&key).await), expected);
}

#[tokio::test]
async fn of_conflicting_words_on_two_replicas_one_is_stored_and_one_a_dead_letter() {
    let scenario = &Running::shared().await.scenario;
    let (agent, eyes) = (scenario.agent(), scenario.eyes());
    let words = |n: usize, said: &str| {
        message("conflict", "s", &format!("m{n:02}"), &json!({"content": said}))
    };
    for n in 0..50 {
        // RabbitMQ deals them out in turn: one to each replica.
        agent.publish_all(&[words(n, "one"), words(n, "other")]).await;
    }
    let letters = "SELECT count(*) || ' ' || count(DISTINCT message_id) FROM dead_letters
                   WHERE tenant_id = 'conflict' AND reason = 'conflict' AND status = 'open'";
    scenario.until_sql(letters, "50 50").await;
    let messages = eyes.both(&key(&words(0, ""))).await;
    assert_eq!(messages.len(), 50);
    for message in &messages {
        let refused = format!(
            "SELECT convert_from(body, 'UTF8')::json->>'content' FROM dead_letters
             WHERE tenant_id = 'conflict' AND message_id = '{}'",
            message.id
        );
        let stored = message.content.text();
        let expected = if stored == "one" { "other" } else { "one" };
        assert_eq!(scenario.sql(&refused).await, expected, "the words that were not stored");
    }
}

#[tokio::test]
async fn a_message_without_any_identity_is_told_by_its_time_or_saved_and_counted() {
    let Running { scenario, savers, .. } = Running::shared().await;
    let (side, eyes) = (scenario.side(), scenario.eyes());
    let mut body = message("anonymous", "s", "", &json!({"content": "yes"}));
    body.as_object_mut().unwrap().remove("message_id");
    let key = key(&body);
    let anonymous = || async {
        let (one, two) = tokio::join!(Counts::of(&savers[0]), Counts::of(&savers[1]));
        [one, two]
            .map(|it| it.sum("verbatim_messages_without_identity_total", &[]))
            .iter()
            .sum::<f64>()
    };
    let before = anonymous().await;

    let (persistent, timed) = (json!({"delivery_mode": 2}), body.to_string());
    side.publish("conversation.save_message", &persistent, &timed).await;
    side.publish("conversation.save_message", &persistent, &timed).await;
    body["timestamp"] = at(500_000).into();
    side.publish("conversation.save_message", &persistent, &body.to_string()).await;
    // An AMQP message id is an identity as good as any.
    body.as_object_mut().unwrap().remove("timestamp");
    let named = json!({"message_id": "by-amqp"});
    side.publish("conversation.save_message", &named, &body.to_string()).await;
    side.publish("conversation.save_message", &named, &body.to_string()).await;
    // Nothing at all, not even a time that is its own: two are two.
    for _ in 0..2 {
        side.publish(
            "conversation.save_message",
            &json!({"timestamp": 1_795_168_800}),
            &body.to_string(),
        )
        .await;
    }
    assert_eq!(saved(&eyes, &key, 5).await.len(), 5);
    eventually("two counted as anonymous", system_tests::LIMIT, async || {
        let counted = anonymous().await - before;
        // The other tests of this process may add to it.
        if counted >= 2.0 { Ok(()) } else { Err(counted.to_string()) }
    })
    .await;
    let messages = eyes.both(&key).await;
    assert_eq!(messages.iter().filter(|it| it.id.as_str() == "by-amqp").count(), 1);
    let random = messages
        .iter()
        .filter(|it| Uuid::parse_str(it.id.as_str()).is_ok_and(|id| id.get_version_num() == 4));
    assert_eq!(random.count(), 2);
}

#[tokio::test]
async fn two_tenants_with_one_session_id_share_nothing() {
    let running = Running::shared().await;
    let (agent, eyes) = (running.scenario.agent(), running.scenario.eyes());
    let ours = message("ours", "one-id", "m", &json!({"content": "ours"}));
    let theirs = message("theirs", "one-id", "m", &json!({"content": "theirs"}));
    agent.publish_all(&[ours.clone(), theirs.clone()]).await;
    for body in [&ours, &theirs] {
        saved(&eyes, &key(body), 1).await;
        let messages = eyes.both(&key(body)).await;
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].content.text(), body["content"].as_str().unwrap());
    }
    agent.publish(&closed("ours", "one-id", &json!({}))).await;
    eyes.reaches(&key(&ours), ARCHIVED).await;
    a_whole_close_later(running, &eyes, "theirs-witness").await;
    eyes.reaches(&key(&theirs), ACTIVE).await;
}

#[tokio::test]
async fn ids_with_any_legal_characters_go_all_the_way_to_the_archive() {
    let scenario = &Running::shared().await.scenario;
    let (agent, eyes) = (scenario.agent(), scenario.eyes());
    let odd: Vec<String> = [
        ":",
        "/",
        "{}",
        "{a}:{b}",
        " ",
        "%2F",
        "\\",
        "'",
        "\"",
        "*",
        "[x]",
        "$1",
        "..",
        "-inf",
        "NULL",
        "漢字",
        "e\u{301}",
        "\u{1f468}\u{200d}\u{1f469}",
        "\u{feff}",
        "\u{10ffff}",
    ]
    .iter()
    .map(ToString::to_string)
    .chain(["x".repeat(128), "😀".repeat(32)])
    .collect();
    let ids = |id: &str| json!({"conversation_id": id, "agent_id": id, "user_id": id, "model_name": id, "tenant_tier": id});
    let all = |make: &dyn Fn(&str) -> Value| odd.iter().map(|id| make(id)).collect::<Vec<_>>();
    let messages = all(&|id| message(id, id, id, &ids(id)));
    agent.publish_all(&messages).await;
    for (body, id) in messages.iter().zip(&odd) {
        saved(&eyes, &key(body), 1).await;
        let messages = eyes.both(&key(body)).await;
        assert_eq!(messages.len(), 1, "{id:?}");
        assert_eq!(messages[0].id.as_str(), id);
        assert_eq!(messages[0].agent_id.as_ref().unwrap().as_str(), id);
    }
    agent.publish_all(&all(&|id| closed(id, id, &json!({"conversation_id": id})))).await;
    for body in &messages {
        eyes.reaches(&key(body), ARCHIVED).await;
        assert_eq!(eyes.transcript(&key(body)).await.messages.len(), 1);
    }
}

#[tokio::test]
async fn a_conversation_stays_open_until_its_last_session_closes() {
    let running = Running::shared().await;
    let (agent, eyes) = (running.scenario.agent(), running.scenario.eyes());
    let one = json!({"conversation_id": "both"});
    let body = message("two-sessions", "phone", "m", &one);
    agent
        .publish_all(&[opened("two-sessions", "phone", &one), opened("two-sessions", "web", &one)])
        .await;
    agent.publish(&body).await;
    saved(&eyes, &key(&body), 1).await;
    agent.publish(&closed("two-sessions", "phone", &one)).await;
    a_whole_close_later(running, &eyes, "two-sessions-witness").await;
    eyes.reaches(&key(&body), ACTIVE).await;
    agent.publish(&closed("two-sessions", "web", &one)).await;
    eyes.reaches(&key(&body), ARCHIVED).await;
}

#[tokio::test]
async fn a_repeated_close_closes_once() {
    let running = Running::shared().await;
    let (scenario, agent, eyes) =
        (&running.scenario, running.scenario.agent(), running.scenario.eyes());
    scenario.side().listen("events-of-repeated").await;
    let body = message("repeated", "s", "m", &json!({}));
    let close = closed("repeated", "s", &json!({"timestamp": at(60_000_000)}));
    agent.publish(&body).await;
    saved(&eyes, &key(&body), 1).await;
    agent.publish_all(&[close.clone(), close.clone(), close.clone()]).await;
    eyes.reaches(&key(&body), ARCHIVED).await;
    agent.publish_all(&[close.clone(), close]).await;
    a_whole_close_later(running, &eyes, "repeated-witness").await;
    eyes.reaches(&key(&body), ARCHIVED).await;
    let events = scenario.side().take("events-of-repeated").await;
    let events: Vec<Value> = events
        .iter()
        .map(|it| serde_json::from_str(it["payload"].as_str().unwrap()).unwrap())
        .collect();
    assert_eq!(about(&events, &key(&body)), ["conversation.migrated"]);
    scenario.side().delete_queue("events-of-repeated").await;
}

#[tokio::test]
async fn a_message_after_archiving_reopens_the_conversation_and_it_is_archived_again() {
    let Running { scenario, .. } = Running::shared().await;
    let (agent, side, eyes) = (scenario.agent(), scenario.side(), scenario.eyes());
    side.listen("events-of-late").await;
    let first = message("late", "s", "1", &json!({}));
    let key = key(&first);
    agent.publish(&first).await;
    saved(&eyes, &key, 1).await;
    agent.publish(&closed("late", "s", &json!({}))).await;
    eyes.reaches(&key, ARCHIVED).await;
    agent.publish(&message("late", "s", "2", &json!({"timestamp": at(1)}))).await;
    let rolled_up =
        "SELECT string_agg(messages::text, ',') FROM daily_stats WHERE tenant_id = 'late'";
    scenario.until_sql(rolled_up, "2").await;
    eyes.reaches(&key, ARCHIVED).await;
    assert_eq!(ids(&eyes.transcript(&key).await.messages), ["1", "2"]);
    let mut events = Vec::new();
    let expected = ["conversation.migrated", "conversation.migrated", "conversation.reopened"];
    eventually("three events", system_tests::LIMIT, async || {
        events.extend(side.bodies("events-of-late", 0).await);
        let mut seen = about(&events, &key);
        seen.sort_unstable();
        if seen == expected { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    side.delete_queue("events-of-late").await;
}

#[tokio::test]
async fn a_session_that_nobody_closes_ends_by_idleness() {
    let scenario = &Running::shared().await.scenario;
    let (agent, eyes) = (scenario.agent(), scenario.eyes());
    let body = message("idle", "s", "m", &json!({}));
    agent.publish(&body).await;
    saved(&eyes, &key(&body), 1).await;
    scenario
        .sql("UPDATE conversations SET touched_at = now() - interval '2 hours' WHERE tenant_id = 'idle'")
        .await;
    eyes.reaches(&key(&body), ARCHIVED).await;
    let reason = "SELECT close_reason FROM conversations WHERE tenant_id = 'idle'";
    assert_eq!(scenario.sql(reason).await, "idle");
}

#[tokio::test]
async fn a_message_that_asks_for_a_reply_gets_one_with_its_correlation_id() {
    let scenario = &Running::shared().await.scenario;
    let (side, eyes) = (scenario.side(), scenario.eyes());
    side.queue("replies").await;
    let mut body = message("reply", "s", "m", &json!({"action_id": "a-1"}));
    let properties = json!({"reply_to": "replies", "correlation_id": "c-1"});
    side.publish("conversation.save_message", &properties, &body.to_string()).await;
    let answer = side.bodies("replies", 1).await.remove(0);
    let conversation = key(&body).conversation;
    let expected = |duplicate: bool, correlation: &str| {
        json!({
            "action_id": "a-1", "correlation_id": correlation, "success": true,
            "data": {"conversation_id": conversation.as_str(), "message_id": "m", "duplicate": duplicate},
        })
    };
    assert_eq!(answer, expected(false, "c-1"));
    assert_eq!(eyes.archived(&key(&body)).await.len(), 1, "durable before the answer");

    // The body may name the queue as well.
    body["callback_queue_name"] = "replies".into();
    body["correlation_id"] = "c-2".into();
    side.publish("conversation.save_message", &json!({}), &body.to_string()).await;
    assert_eq!(side.bodies("replies", 1).await, [expected(true, "c-2")]);
    // A queue that is not there takes nothing away from the message.
    let lost = message("reply", "s", "unheard", &json!({"callback_queue_name": "nowhere"}));
    scenario.agent().publish(&lost).await;
    saved(&eyes, &key(&lost), 2).await;
}

#[tokio::test]
async fn what_no_queue_is_bound_for_goes_home_if_it_is_known_and_is_a_dead_letter_if_not() {
    let Running { scenario, statistics, .. } = Running::shared().await;
    let (agent, side, eyes) = (scenario.agent(), scenario.side(), scenario.eyes());
    let body = message("lost", "s", "m", &json!({}));
    // A mistyped routing key over a body that knows what it is.
    side.publish("conversation.saved_message", &json!({}), &body.to_string()).await;
    saved(&eyes, &key(&body), 1).await;

    // A binding that an operator removed.
    side.unbind("domain.actions", "conversation.session", "conversation.feedback").await;
    let feedback = json!({
        "action_type": "conversation.feedback", "tenant_id": "lost", "session_id": "s", "satisfaction": 4,
    });
    agent.publish(&feedback).await;
    let satisfaction = "SELECT satisfaction::text FROM conversations WHERE tenant_id = 'lost'";
    scenario.until_sql(satisfaction, "4").await;
    side.bind("domain.actions", "conversation.session", "conversation.feedback").await;
    let labels = [("queue", "domain.unrouted"), ("cause", "unrouted")];
    Counts::reach(statistics, "verbatim_dead_letters_sent_back_total", &labels, 2.0).await;

    let unknown =
        json!({"action_type": "conversation.summarise", "tenant_id": "lost", "session_id": "s"});
    agent.publish(&unknown).await;
    let letter =
        "SELECT concat_ws('|', queue, reason, field, routing_key, exchange, tenant_id, attempts)
                  FROM dead_letters WHERE tenant_id = 'lost'";
    let expected =
        "domain.unrouted|unknown_action|action_type|conversation.summarise|domain.actions|lost|1";
    scenario.until_sql(letter, expected).await;
    side.publish("no.such.key", &json!({}), "what is this?").await;
    let letter =
        "SELECT concat_ws('|', queue, reason, convert_from(body, 'UTF8')) FROM dead_letters
                  WHERE routing_key = 'no.such.key'";
    scenario.until_sql(letter, "domain.unrouted|malformed_json|what is this?").await;
}

#[tokio::test]
async fn what_nothing_in_this_version_carries_out_is_kept_as_a_dead_letter() {
    let scenario = &Running::shared().await.scenario;
    let erase = example("conversation.erase").unwrap();
    let mut erase: Value = serde_json::from_str(erase).unwrap();
    erase["tenant_id"] = "not-yet".into();
    scenario.agent().publish(&erase).await;
    let letter = "SELECT concat_ws('|', queue, reason, action_type) FROM dead_letters
                  WHERE tenant_id = 'not-yet'";
    scenario.until_sql(letter, "conversation.session|unknown_action|conversation.erase").await;
}

#[tokio::test]
async fn a_reconnection_within_the_grace_period_withdraws_the_close() {
    let scenario = Scenario::new().await;
    let (agent, eyes) = (scenario.agent(), scenario.eyes());
    let (saver, patient) = tokio::join!(
        scenario.start(SAVER),
        scenario.start_with(MIGRATION, &[("VERBATIM_CLOSE_GRACE", "1h")]),
    );
    let [returning, leaving] =
        ["returns", "leaves"].map(|it| message("grace", it, "m", &json!({})));
    agent.publish_all(&[returning.clone(), leaving.clone()]).await;
    scenario.until_sql("SELECT count(*) FROM messages", "2").await;
    let times = [at(1_000_000), at(2_000_000)].map(|it| json!({"timestamp": it}));
    for session in ["returns", "leaves"] {
        agent.publish(&closed("grace", session, &times[0])).await;
    }
    let requested = "SELECT count(close_requested_at) FROM conversations";
    scenario.until_sql(requested, "2").await;
    agent.publish(&opened("grace", "returns", &times[1])).await;
    scenario.until_sql(requested, "1").await;

    // For an impatient worker the grace period of both would be over.
    scenario.drain([patient]).await;
    let impatient = scenario.start_with(MIGRATION, &[("VERBATIM_CLOSE_GRACE", "0s")]).await;
    eyes.reaches(&key(&leaving), ARCHIVED).await;
    eyes.reaches(&key(&returning), ACTIVE).await;
    let late = closed("grace", "returns", &json!({"timestamp": at(3_000_000)}));
    agent.publish(&late).await;
    eyes.reaches(&key(&returning), ARCHIVED).await;
    scenario.drain([saver, impatient]).await;
}

#[tokio::test]
async fn a_message_that_expired_by_its_own_expiration_is_sent_back_and_saved() {
    let scenario = Scenario::new().await;
    let body = message("expired", "s", "m", &json!({}));
    let impatient = json!({"expiration": "1", "delivery_mode": 2});
    scenario.side().publish("conversation.save_message", &impatient, &body.to_string()).await;
    let statistics = scenario.start(STATISTICS).await;
    let labels = [("queue", "conversation.save_message"), ("cause", "expired")];
    Counts::reach(&statistics, "verbatim_dead_letters_sent_back_total", &labels, 1.0).await;
    let saver = scenario.start(SAVER).await;
    let eyes = scenario.eyes();
    saved(&eyes, &key(&body), 1).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    scenario.rest([saver, statistics]).await;
}

#[tokio::test]
async fn two_of_every_worker_close_each_conversation_and_keep_each_letter_once() {
    let running = Running::own().await;
    let Running { scenario, .. } = &running;
    let (other_migration, other_statistics) =
        tokio::join!(scenario.start(MIGRATION), scenario.start(STATISTICS));
    let (agent, side) = (scenario.agent(), scenario.side());
    side.listen("events").await;
    let sessions: Vec<String> = (0..150).map(|n| format!("s{n}")).collect();
    let said = sessions.iter().flat_map(|session| {
        let reply = json!({"role": "assistant", "timestamp": at(1_000_000), "agent_id": session});
        [message("many", session, "1", &json!({})), message("many", session, "2", &reply)]
    });
    agent.publish_all(&said.collect::<Vec<_>>()).await;
    scenario.until_sql("SELECT count(*) FROM messages", "300").await;
    let bad =
        sessions.iter().map(|session| message("many", session, "3", &json!({"role": "none"})));
    agent.publish_all(&bad.collect::<Vec<_>>()).await;
    let ends: Vec<Value> = sessions.iter().map(|it| closed("many", it, &json!({}))).collect();
    agent.publish_all(&ends).await;

    let rolled_up =
        "SELECT concat_ws('|', count(*), sum(conversations), sum(messages)) FROM daily_stats
                     WHERE NOT dirty AND conversations > 0";
    scenario.until_sql(rolled_up, "150|150|300").await;
    let letters = "SELECT concat_ws('|', count(*), sum(copies)) FROM dead_letters";
    scenario.until_sql(letters, "150|150").await;
    let Running { savers: [one, two], migration, statistics, .. } = running;
    let workers = [one, two, migration, other_migration, statistics, other_statistics];
    running.scenario.rest(workers).await;

    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for event in side.bodies("events", 300).await {
        let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        *seen.entry(format!("{} {}", text("event_type"), text("conversation_id"))).or_default() +=
            1;
    }
    let migrated = seen.iter().filter(|(event, _)| event.starts_with("conversation.migrated"));
    assert_eq!(migrated.clone().count(), 150);
    assert!(migrated.clone().all(|(_, times)| *times == 1), "{seen:?}");
}

#[tokio::test]
async fn an_open_save_is_counted_by_the_close_that_meets_it() {
    let running = Running::shared().await;
    let (scenario, agent, eyes) =
        (&running.scenario, running.scenario.agent(), running.scenario.eyes());
    let body = message("open-save", "s", "1", &json!({}));
    agent.publish(&body).await;
    saved(&eyes, &key(&body), 1).await;
    scenario.sql("CREATE TABLE gate (open bool)").await;
    // What a saver does, stopped between its insert and its commit.
    let save = "SET statement_timeout = '60s'; BEGIN;
        SELECT FROM conversations WHERE tenant_id = 'open-save' FOR KEY SHARE;
        INSERT INTO messages SELECT (jsonb_populate_record(m, '{\"id\": \"2\"}')).* FROM messages m
            WHERE tenant_id = 'open-save';
        SELECT pg_advisory_xact_lock(4711);
        DO $$ BEGIN
            WHILE NOT EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.02); END LOOP;
        END $$;
        COMMIT";
    let close = async {
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        scenario.until_sql(waits, "1").await;
        agent.publish(&closed("open-save", "s", &json!({}))).await;
        a_whole_close_later(running, &eyes, "open-save-witness").await;
        let status = "SELECT status FROM conversations WHERE tenant_id = 'open-save'";
        assert_ne!(scenario.sql(status).await, "archived", "a save is under way");
        scenario.sql("INSERT INTO gate VALUES (true)").await;
    };
    tokio::join!(scenario.sql(save), close);
    eyes.reaches(&key(&body), ARCHIVED).await;
    let counted = "SELECT message_count FROM conversations WHERE tenant_id = 'open-save'";
    assert_eq!(scenario.sql(counted).await, "2");
    assert_eq!(ids(&eyes.transcript(&key(&body)).await.messages), ["1", "2"]);
}

#[tokio::test]
async fn a_letter_keeps_the_trace_of_its_action_and_an_agent_cannot_forge_our_headers() {
    let scenario = &Running::shared().await.scenario;
    let (side, eyes) = (scenario.side(), scenario.eyes());
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = json!({
        "traceparent": trace, "x-verbatim-id": "forged", "x-verbatim-conversation": "forged",
        "x-verbatim-timestamp-us": 1, "x-verbatim-received-us": 1, "x-verbatim-attempt": 4,
    });
    let body = message("forged", "s", "m", &json!({}));
    let properties = json!({"headers": headers});
    side.publish("conversation.save_message", &properties, &body.to_string()).await;
    let messages = saved(&eyes, &key(&body), 1).await;
    assert_eq!((messages[0].id.as_str(), messages[0].created_at.to_string()), ("m", at(0)));
    let bad = message("forged", "s", "m", &json!({"role": "none"}));
    side.publish("conversation.save_message", &properties, &bad.to_string()).await;
    let letter = "SELECT concat_ws('|', headers->>'traceparent', attempts, message_id, field)
                  FROM dead_letters WHERE tenant_id = 'forged'";
    scenario.until_sql(letter, &format!("{trace}|1|m|role")).await;
}

#[tokio::test]
async fn every_counter_that_a_day_in_the_fleet_should_move_has_moved() {
    let running = Running::own().await;
    let Running { scenario, savers, migration, statistics } = &running;
    let (agent, side, eyes) = (scenario.agent(), scenario.side(), scenario.eyes());
    let body = |id: &str, words: &str| message("day", "s", id, &json!({"content": words}));
    agent.publish(&opened("day", "s", &json!({}))).await;
    agent.publish_all(&[body("1", "hi"), body("1", "hi"), body("1", "ho"), body("2", "bye")]).await;
    let mut anonymous = body("", "anonymous");
    for field in ["message_id", "timestamp"] {
        anonymous.as_object_mut().unwrap().remove(field);
    }
    side.publish("conversation.save_message", &json!({}), &anonymous.to_string()).await;
    side.publish("conversation.save_message", &json!({}), "{").await;
    side.publish("conversation.lost", &json!({}), &body("3", "lost").to_string()).await;
    let key = key(&body("1", ""));
    saved(&eyes, &key, 4).await;
    scenario.until_sql("SELECT count(*) FROM dead_letters", "2").await;
    agent.publish(&closed("day", "s", &json!({}))).await;
    eyes.reaches(&key, ARCHIVED).await;
    let totals = "SELECT sum(messages)::text FROM daily_stats";
    scenario.until_sql(totals, "4").await;
    agent.publish(&message("day", "s", "4", &json!({}))).await;
    saved(&eyes, &key, 5).await;
    agent.publish(&closed("day", "empty", &json!({}))).await;
    let emptied = "SELECT count(*) FROM conversations WHERE status <> 'archived'";
    scenario.until_sql(totals, "5").await;
    scenario.until_sql(emptied, "0").await;

    let save = ("queue", "conversation.save_message");
    let outcome = |outcome| vec![save, ("outcome", outcome)];
    let of_savers = [
        ("verbatim_messages_saved_total", vec![], 5.0),
        ("verbatim_messages_duplicate_total", vec![], 1.0),
        ("verbatim_messages_conflict_total", vec![], 1.0),
        ("verbatim_messages_without_identity_total", vec![], 1.0),
        ("verbatim_conversations_reopened_total", vec![], 1.0),
        ("verbatim_deliveries_total", outcome("applied"), 5.0),
        ("verbatim_deliveries_total", outcome("duplicate"), 1.0),
        ("verbatim_deliveries_total", outcome("dead_lettered"), 2.0),
        ("verbatim_publishes_total", vec![("outcome", "confirmed")], 2.0),
        ("verbatim_batch_messages_sum", vec![save], 7.0),
    ];
    for (name, labels, expected) in of_savers {
        eventually(format!("{name} {labels:?} = {expected}"), system_tests::LIMIT, async || {
            let (one, two) = tokio::join!(Counts::of(&savers[0]), Counts::of(&savers[1]));
            let sum = one.sum(name, &labels) + two.sum(name, &labels);
            if (sum - expected).abs() < 0.5 { Ok(()) } else { Err(sum.to_string()) }
        })
        .await;
    }
    let by_close = vec![("cause", "session_closed")];
    let of_migration = [
        ("verbatim_session_events_total", vec![("event", "opened")], 1.0),
        ("verbatim_session_events_total", vec![("event", "closed")], 2.0),
        ("verbatim_conversations_closed_total", by_close, 2.0),
        ("verbatim_conversations_dropped_empty_total", vec![], 1.0),
        ("verbatim_close_seconds_count", vec![], 2.0),
        ("verbatim_publish_seconds_count", vec![], 2.0),
    ];
    for (name, labels, least) in of_migration {
        Counts::reach(migration, name, &labels, least).await;
    }
    let conflict = vec![save, ("reason", "conflict")];
    let of_statistics = [
        ("verbatim_statistics_recomputed_total", vec![], 2.0),
        ("verbatim_daily_buckets_recomputed_total", vec![], 2.0),
        ("verbatim_dead_letters_stored_total", conflict.clone(), 1.0),
        ("verbatim_dead_letters_sent_back_total", vec![("cause", "unrouted")], 1.0),
        ("verbatim_dead_letters", conflict, 1.0),
        ("verbatim_dead_letters", vec![save, ("reason", "malformed_json")], 1.0),
        ("verbatim_queue_consumers", vec![save], 2.0),
    ];
    for (name, labels, least) in of_statistics {
        Counts::reach(statistics, name, &labels, least).await;
    }
}

#[tokio::test]
async fn every_worker_tells_that_it_lives_that_it_is_ready_and_what_it_counts() {
    let Running { savers, migration, statistics, .. } = Running::shared().await;
    let servers = ["postgresql", "redis", "rabbitmq", "process"];
    let queues: [(_, &[&str]); 4] = [
        (&savers[0], &["conversation.save_message"]),
        (&savers[1], &["conversation.save_message"]),
        (migration, &["conversation.session"]),
        (
            statistics,
            &[
                "conversation.statistics",
                "domain.unrouted",
                "conversation.save_message.dlq",
                "conversation.session.dlq",
                "conversation.statistics.dlq",
                "bot.state.dlq",
                "domain.unrouted.dlq",
            ],
        ),
    ];
    for (worker, queues) in queues {
        let live = worker.get("/livez").await.unwrap();
        assert_eq!(live.status, 200, "{}", live.body);
        let tasks: Value = serde_json::from_str(&live.body).unwrap();
        assert_eq!(tasks["live"], true, "{tasks}");

        let ready = worker.get("/readyz").await.unwrap();
        let checks: Value = serde_json::from_str(&ready.body).unwrap();
        let names: BTreeSet<&str> =
            checks["checks"].as_object().unwrap().keys().map(String::as_str).collect();
        let expected: BTreeSet<&str> = servers.iter().chain(queues).copied().collect();
        assert_eq!(names, expected, "{}", worker.name());

        let counts = Counts::of(worker).await;
        for definition in metrics::definitions() {
            let closed = definition.labels.iter().all(|label| label.values.is_some());
            if closed && definition.kind == metrics::Kind::Counter {
                assert!(counts.has(definition.name), "{} of {}", definition.name, worker.name());
            }
        }
        assert!(counts.has("verbatim_build_info") && counts.has("process_resident_memory_bytes"));
        assert_eq!(counts.sum("verbatim_panics_total", &[]), 0.0);
    }
}
