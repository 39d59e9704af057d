//! Messages are saved once, in order, byte for byte, for their own tenant.

use domain::action::ActionKind;
use domain::ids::{ConversationKey, MAX_ID_BYTES};
use fixtures::examples::{ACTIONS, FIRST_AGENTS, example};
use serde_json::{Value, json};
use system_tests::{Counts, ServerSet, at, closed, key_of, message};
use testkit::wait::eventually;
use uuid::Uuid;

use crate::{ACTIVE, ARCHIVED, ids, saved, wait_for_another_close};

#[tokio::test]
async fn the_three_bodies_that_agents_sent_before_the_contract_work_unchanged() {
    let ServerSet { scenario, statistics, .. } = ServerSet::shared().await;
    let (rabbit, reader) = (scenario.rabbit(), scenario.reader());
    let [save, context, close] = FIRST_AGENTS.map(|name| example(name).unwrap());
    let body: Value = serde_json::from_str(save).unwrap();
    let key = key_of(&body);

    // They set no AMQP properties at all.
    let bare = json!({});
    rabbit.publish("conversation.save_message", &bare, save).await;
    let messages = saved(&reader, &key, 1).await;
    assert_eq!(messages[0].content.text(), body["content"].as_str().unwrap());
    assert_eq!(messages[0].agent_id.as_ref().unwrap().as_str(), "agent_xyz");
    assert_eq!(messages[0].model_name.as_deref(), Some("llama3-70b-8192"));
    assert_eq!(messages[0].tokens_estimate, Some(150));

    rabbit.publish("conversation.get_context", &bare, context).await;
    assert!(
        scenario.queued().await.contains(&("conversation.context", 1)),
        "the request waits in its queue"
    );

    rabbit.publish("conversation.session_closed", &bare, close).await;
    reader.reaches(&key, ARCHIVED).await;
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
    assert_eq!(counts.sum("verbatim_dependency_up", &[]), 3.0, "all three stores");
}

#[tokio::test]
async fn every_example_of_a_message_is_saved_as_it_was_sent() {
    let scenario = &ServerSet::shared().await.scenario;
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let examples = ACTIONS.iter().filter(|example| {
        example.name.starts_with(ActionKind::SaveMessage.as_str())
            && !example.name.starts_with(ActionKind::SaveMessages.as_str())
    });
    let actions: Vec<Value> = examples
        .map(|example| {
            let mut action: Value = serde_json::from_str(example.body).unwrap();
            // One tenant for all and a session for each, at the top or under `data`.
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
        assert_eq!(reader.both(&key).await.len(), 1, "{key}");
    }
}

#[tokio::test]
async fn ten_publishes_of_one_message_before_and_after_archiving_store_it_once() {
    let servers = ServerSet::shared().await;
    let (agent, reader) = (servers.scenario.agent(), servers.scenario.reader());
    let body = message("ten", "s", "m", &json!({}));
    // Fields that may differ in a duplicate.
    let again = message(
        "ten",
        "s",
        "m",
        &json!({"timestamp": at(5_000_000), "metadata": {"try": 2}, "tokens_estimate": 9}),
    );
    let key = key_of(&body);
    agent.publish_all(&[body.clone(), body.clone(), body.clone()]).await;
    saved(&reader, &key, 1).await;
    agent.publish_all(&[again.clone(), body.clone()]).await;
    assert_eq!(ids(&reader.both(&key).await), ["m"]);
    agent.publish(&closed("ten", "s", &json!({}))).await;
    reader.reaches(&key, ARCHIVED).await;
    agent.publish_all(&[again.clone(), body.clone(), body.clone(), again, body]).await;
    wait_for_another_close(servers, &reader, "ten-witness").await;

    let of_this = "FROM messages WHERE tenant_id = 'ten'";
    assert_eq!(servers.scenario.sql(&format!("SELECT count(*) {of_this}")).await, "1");
    assert_eq!(reader.transcript(&key).await.messages[0].created_at.to_string(), at(0));
    let dead_letters = "SELECT count(*) FROM dead_letters WHERE tenant_id = 'ten'";
    assert_eq!(servers.scenario.sql(dead_letters).await, "0");
    let totals = "SELECT string_agg(messages::text, ',') FROM daily_stats WHERE tenant_id = 'ten'";
    servers.scenario.until_sql(totals, "1").await;
    reader.reaches(&key, ARCHIVED).await;
}

#[tokio::test]
async fn equal_timestamps_and_late_arrivals_read_in_one_order_from_both_stores() {
    let servers = ServerSet::shared().await;
    let (agent, reader) = (servers.scenario.agent(), servers.scenario.reader());
    // 17 and 400 have no common factor: every message once, consecutive ones far apart.
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
    let key = key_of(&messages[0]);
    saved(&reader, &key, 400).await;
    let mut expected: Vec<(&str, &str)> = messages
        .iter()
        .map(|it| (it["timestamp"].as_str().unwrap(), it["message_id"].as_str().unwrap()))
        .collect();
    // Byte order, which is Rust's order of strings.
    expected.sort_unstable();
    let expected: Vec<&str> = expected.into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids(&reader.both(&key).await), expected);
}

#[tokio::test]
async fn of_conflicting_contents_on_two_replicas_one_is_stored_and_one_becomes_a_dead_letter() {
    let scenario = &ServerSet::shared().await.scenario;
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let with = |n: usize, content: &str| {
        message("conflict", "s", &format!("m{n:02}"), &json!({"content": content}))
    };
    for n in 0..50 {
        // RabbitMQ delivers in turn: one to each replica.
        agent.publish_all(&[with(n, "one"), with(n, "other")]).await;
    }
    let dead_letters = "SELECT count(*) || ' ' || count(DISTINCT message_id) FROM dead_letters
                   WHERE tenant_id = 'conflict' AND reason = 'conflict' AND status = 'open'";
    scenario.until_sql(dead_letters, "50 50").await;
    let messages = reader.both(&key_of(&with(0, ""))).await;
    assert_eq!(messages.len(), 50);
    for message in &messages {
        let refused = format!(
            "SELECT convert_from(body, 'UTF8')::json->>'content' FROM dead_letters
             WHERE tenant_id = 'conflict' AND message_id = '{}'",
            message.id
        );
        let stored = message.content.text();
        let expected = if stored == "one" { "other" } else { "one" };
        assert_eq!(scenario.sql(&refused).await, expected, "the content that was not stored");
    }
}

#[tokio::test]
async fn a_message_without_an_id_is_identified_by_its_timestamp_or_saved_and_counted() {
    let ServerSet { scenario, savers, .. } = ServerSet::shared().await;
    let (rabbit, reader) = (scenario.rabbit(), scenario.reader());
    let mut body = message("anonymous", "s", "", &json!({"content": "yes"}));
    body.as_object_mut().unwrap().remove("message_id");
    let key = key_of(&body);
    let anonymous = || async {
        let (one, two) = tokio::join!(Counts::of(&savers[0]), Counts::of(&savers[1]));
        [one, two]
            .map(|it| it.sum("verbatim_messages_without_identity_total", &[]))
            .iter()
            .sum::<f64>()
    };
    let before = anonymous().await;

    let (persistent, timed) = (json!({"delivery_mode": 2}), body.to_string());
    rabbit.publish("conversation.save_message", &persistent, &timed).await;
    rabbit.publish("conversation.save_message", &persistent, &timed).await;
    body["timestamp"] = at(500_000).into();
    rabbit.publish("conversation.save_message", &persistent, &body.to_string()).await;
    // The AMQP message id identifies the message.
    body.as_object_mut().unwrap().remove("timestamp");
    let named = json!({"message_id": "by-amqp"});
    rabbit.publish("conversation.save_message", &named, &body.to_string()).await;
    rabbit.publish("conversation.save_message", &named, &body.to_string()).await;
    // No id and no timestamp in the body: each publish is a message.
    for _ in 0..2 {
        rabbit
            .publish(
                "conversation.save_message",
                &json!({"timestamp": 1_795_168_800}),
                &body.to_string(),
            )
            .await;
    }
    assert_eq!(saved(&reader, &key, 5).await.len(), 5);
    eventually("two messages to be counted as without identity", system_tests::LIMIT, async || {
        let counted = anonymous().await - before;
        // Other tests on these workers may add to it.
        if counted >= 2.0 { Ok(()) } else { Err(counted.to_string()) }
    })
    .await;
    let messages = reader.both(&key).await;
    assert_eq!(messages.iter().filter(|it| it.id.as_str() == "by-amqp").count(), 1);
    let random = messages
        .iter()
        .filter(|it| Uuid::parse_str(it.id.as_str()).is_ok_and(|id| id.get_version_num() == 4));
    assert_eq!(random.count(), 2);
}

#[tokio::test]
async fn two_tenants_with_one_session_id_share_nothing() {
    let servers = ServerSet::shared().await;
    let (agent, reader) = (servers.scenario.agent(), servers.scenario.reader());
    let ours = message("ours", "one-id", "m", &json!({"content": "ours"}));
    let theirs = message("theirs", "one-id", "m", &json!({"content": "theirs"}));
    agent.publish_all(&[ours.clone(), theirs.clone()]).await;
    for body in [&ours, &theirs] {
        saved(&reader, &key_of(body), 1).await;
        let messages = reader.both(&key_of(body)).await;
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].content.text(), body["content"].as_str().unwrap());
    }
    agent.publish(&closed("ours", "one-id", &json!({}))).await;
    reader.reaches(&key_of(&ours), ARCHIVED).await;
    wait_for_another_close(servers, &reader, "theirs-witness").await;
    reader.reaches(&key_of(&theirs), ACTIVE).await;
}

#[tokio::test]
async fn ids_with_any_legal_characters_are_saved_and_archived() {
    let scenario = &ServerSet::shared().await.scenario;
    let (agent, reader) = (scenario.agent(), scenario.reader());
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
    .chain(["x".repeat(MAX_ID_BYTES), "😀".repeat(MAX_ID_BYTES / 4)])
    .collect();
    let ids = |id: &str| json!({"conversation_id": id, "agent_id": id, "user_id": id, "model_name": id, "tenant_tier": id});
    let all = |make: &dyn Fn(&str) -> Value| odd.iter().map(|id| make(id)).collect::<Vec<_>>();
    let messages = all(&|id| message(id, id, id, &ids(id)));
    agent.publish_all(&messages).await;
    for (body, id) in messages.iter().zip(&odd) {
        saved(&reader, &key_of(body), 1).await;
        let messages = reader.both(&key_of(body)).await;
        assert_eq!(messages.len(), 1, "{id:?}");
        assert_eq!(messages[0].id.as_str(), id);
        assert_eq!(messages[0].agent_id.as_ref().unwrap().as_str(), id);
    }
    agent.publish_all(&all(&|id| closed(id, id, &json!({"conversation_id": id})))).await;
    for body in &messages {
        reader.reaches(&key_of(body), ARCHIVED).await;
        assert_eq!(reader.transcript(&key_of(body)).await.messages.len(), 1);
    }
}

#[tokio::test]
async fn a_message_that_asks_for_a_reply_gets_one_with_its_correlation_id() {
    let scenario = &ServerSet::shared().await.scenario;
    let (rabbit, reader) = (scenario.rabbit(), scenario.reader());
    rabbit.queue("replies").await;
    let mut body = message("reply", "s", "m", &json!({"action_id": "a-1"}));
    let properties = json!({"reply_to": "replies", "correlation_id": "c-1"});
    rabbit.publish("conversation.save_message", &properties, &body.to_string()).await;
    let reply = rabbit.bodies("replies", 1).await.remove(0);
    let conversation = key_of(&body).conversation;
    let expected = |duplicate: bool, correlation: &str| {
        json!({
            "action_id": "a-1", "correlation_id": correlation, "success": true,
            "data": {"conversation_id": conversation.as_str(), "message_id": "m", "duplicate": duplicate},
        })
    };
    assert_eq!(reply, expected(false, "c-1"));
    assert_eq!(reader.stored(&key_of(&body)).await.len(), 1, "saved before the reply");

    // The body may name the queue as well.
    body["callback_queue_name"] = "replies".into();
    body["correlation_id"] = "c-2".into();
    rabbit.publish("conversation.save_message", &json!({}), &body.to_string()).await;
    assert_eq!(rabbit.bodies("replies", 1).await, [expected(true, "c-2")]);
    // A message is saved although its reply queue does not exist.
    let unreachable = message("reply", "s", "no-reply", &json!({"callback_queue_name": "nowhere"}));
    scenario.agent().publish(&unreachable).await;
    saved(&reader, &key_of(&unreachable), 2).await;
}
