//! Dead letters and unroutable messages: each is stored or rerouted once, although other messages fail.

#![expect(clippy::unwrap_used, reason = "a failure here is the failure of the test")]

mod forged;
mod headers;
mod refused;
mod replays;
mod stopped;

use std::collections::BTreeSet;
use std::time::Duration;

use broker::Publication;
use serde_json::{Value, json};
use system_tests::{
    COLLECTOR, Counts, LIMIT, PublishedActions, SAVER, Scenario, anonymous, at, key_of, message,
};
use testkit::proxy::Proxy;
use testkit::wait::eventually;

pub(crate) const SAVES: &str = "conversation.save_message";
pub(crate) const DEAD_LETTERS: &str = "conversation.save_message.dlq";
const STORED: &str = "verbatim_dead_letters_stored_total";

/// A long linger time. With [`SLOW`] handling, all queued messages arrive in one batch.
const LINGER: (&str, &str) = ("VERBATIM_LINGER", "2s");
const SLOW: Duration = Duration::from_millis(100);

/// A count of returned publishes that only retries of a batch can reach. On a busy machine the queued
/// messages may come in several batches; then one message at a time is retried, every 2 s.
const SEVERAL_TRIES: f64 = 25.0;

#[tokio::test]
async fn each_conflicting_body_is_stored_as_a_separate_dead_letter() {
    let scenario = Scenario::new().await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let with = |content: &str| message("bodies", "s", "m1", &json!({"content": content}));
    agent.publish(&with("first")).await;
    scenario.until_sql("SELECT count(*) FROM messages", "1").await;
    // The third content is published twice: one dead letter, two copies.
    agent.publish_all(&[with("second"), with("third"), with("third")]).await;
    let dead_letters =
        "SELECT string_agg(concat_ws(' ', convert_from(body, 'UTF8')::json->>'content',
                       copies, reason, message_id), ', ' ORDER BY stored_at, copies)
                   FROM dead_letters";
    let copies = "SELECT sum(copies) FROM dead_letters";
    scenario.until_sql(copies, "3").await;
    scenario.finish([saver, collector]).await;
    let seen = scenario.sql(dead_letters).await;
    let seen: BTreeSet<&str> = seen.split(", ").collect();
    assert_eq!(seen, BTreeSet::from(["second 1 conflict m1", "third 2 conflict m1"]));
    let stored = reader.stored(&key_of(&with("first"))).await;
    let stored: Vec<_> = stored.iter().map(|message| message.content.text()).collect();
    assert_eq!(stored, ["first"]);
}

#[tokio::test]
async fn a_body_without_an_id_that_is_dead_lettered_twice_is_one_dead_letter() {
    let scenario = Scenario::new().await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let rabbit = scenario.rabbit();
    for copies in ["1", "2"] {
        // Published at different times, as when a worker ends before it acknowledges.
        rabbit.publish(SAVES, &json!({"message_id": "same"}), "{broken").await;
        scenario.until_sql("SELECT coalesce(sum(copies), 0) FROM dead_letters", copies).await;
    }
    assert_eq!(
        scenario.sql("SELECT count(*), max(reason) FROM dead_letters").await,
        "1|malformed_json"
    );
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn equal_bodies_without_an_identity_are_dead_letters_of_their_own() {
    let scenario = Scenario::new().await;
    let (saver, collector) = tokio::join!(scenario.start(SAVER), scenario.start(COLLECTOR));
    let rabbit = scenario.rabbit();
    let mut refused = message("equal", "s", "", &json!({"role": "bot"}));
    let fields = refused.as_object_mut().unwrap();
    fields.remove("message_id");
    fields.remove("timestamp");
    for body in ["{broken", &refused.to_string()] {
        for _ in 0..2 {
            rabbit.publish(SAVES, &json!({"delivery_mode": 2}), body).await;
        }
    }
    scenario.until_sql("SELECT sum(copies) FROM dead_letters", "4").await;
    let rows = "SELECT string_agg(reason || copies, ',' ORDER BY reason) FROM dead_letters";
    assert_eq!(scenario.sql(rows).await, "malformed_json1,malformed_json1,schema1,schema1");
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn rerouted_messages_arrive_once_while_the_queue_of_others_is_missing() {
    let scenario = Scenario::new().await;
    let (agent, rabbit, reader) = (scenario.agent(), scenario.rabbit(), scenario.reader());
    let broker = Proxy::before(&scenario.amqp_url).await.unwrap();
    let settings = [("AMQP_URL", broker.url()), LINGER];
    let collector = scenario.start_with(COLLECTOR, &settings).await;
    broker.cut().await.unwrap();
    rabbit.delete_queue(SAVES).await;
    let mut published = PublishedActions::default();
    for n in 0..5 {
        // The action's queue exists, but the routing key is unknown.
        let state = json!({
            "action_type": "state.save", "tenant_id": "reroute", "session_id": "s",
            "profile": "seller", "key": format!("k{n}"), "value": {},
        });
        rabbit.publish("state.saved", &json!({}), &state.to_string()).await;
        let identified = message("reroute", "s", &format!("m{n}"), &json!({"timestamp": at(n)}));
        agent.publish(&identified).await;
        published.add_confirmed(&[identified]);
        rabbit.publish(SAVES, &json!({}), &anonymous("reroute", n)).await;
    }
    until_queued(&scenario, "domain.unrouted", 15).await;

    broker.restore().await.unwrap();
    broker.slow(SLOW);
    let returned = [("outcome", "unroutable")];
    Counts::reach(&collector, "verbatim_publishes_total", &returned, SEVERAL_TRIES).await;
    scenario.declare().await;
    let unrouted = [("queue", "domain.unrouted"), ("cause", "unrouted")];
    let rerouted = "verbatim_messages_rerouted_total";
    let counts = Counts::reach(&collector, rerouted, &unrouted, 15.0).await;
    assert_eq!(counts.sum(rerouted, &unrouted), 15.0, "each was confirmed once");

    let saver = scenario.start(SAVER).await;
    scenario.until_sql("SELECT count(*) FROM messages", "10").await;
    // No worker carries out the states: each is one dead letter, so it was published once.
    scenario.until_sql("SELECT count(*) FROM dead_letters WHERE queue = 'bot.state'", "5").await;
    scenario.finish([saver, collector]).await;
    stored_once(&scenario, 10, 5).await;
    let conversation = key_of(&json!({"tenant_id": "reroute", "session_id": "s"}));
    assert_eq!(reader.both(&conversation).await.len(), 10);
}

#[tokio::test]
async fn dead_letters_are_stored_once_while_an_expired_action_waits_for_its_queue() {
    let scenario = Scenario::new().await;
    let (agent, rabbit) = (scenario.agent(), scenario.rabbit());
    let (broker, database) =
        tokio::join!(async { Proxy::before(&scenario.amqp_url).await.unwrap() }, async {
            Proxy::before(&scenario.database_url).await.unwrap()
        },);
    let settings = [("AMQP_URL", broker.url()), ("DATABASE_URL", database.url()), LINGER];
    let collector = scenario.start_with(COLLECTOR, &settings).await;
    broker.cut().await.unwrap();
    agent.send(vec![dead_letter(0)]).await;
    let expiring = json!({"expiration": "1", "delivery_mode": 2});
    for n in 0..5 {
        rabbit.publish(SAVES, &expiring, &anonymous("late", n)).await;
        let identified = message("late", "s", &format!("m{n}"), &json!({}));
        rabbit.publish(SAVES, &expiring, &identified.to_string()).await;
    }
    until_queued(&scenario, DEAD_LETTERS, 11).await;
    agent.send((1..5).map(dead_letter).collect()).await;
    rabbit.delete_queue(SAVES).await;

    database.slow(SLOW);
    broker.restore().await.unwrap();
    let returned = [("outcome", "unroutable")];
    Counts::reach(&collector, "verbatim_publishes_total", &returned, SEVERAL_TRIES).await;
    // No dead letter waits for the queue of other messages, or is stored again by a retry.
    let copies = "SELECT (count(*) > 0)::text || bool_and(copies = 1) FROM dead_letters";
    assert_eq!(scenario.sql(copies).await, "truetrue");

    scenario.declare().await;
    let saver = scenario.start(SAVER).await;
    scenario.until_sql("SELECT count(*) FROM messages", "10").await;
    let counts = Counts::reach(&collector, STORED, &[("queue", SAVES)], 5.0).await;
    assert_eq!(counts.sum(STORED, &[("queue", SAVES)]), 5.0);
    scenario.finish([saver, collector]).await;
    stored_once(&scenario, 10, 5).await;
}

#[tokio::test]
async fn dead_letters_that_cannot_be_announced_for_a_while_are_stored_and_announced_once() {
    let scenario = Scenario::new().await;
    let (agent, rabbit) = (scenario.agent(), scenario.rabbit());
    let collector = scenario.start(COLLECTOR).await;
    rabbit.delete_queue("conversation.statistics").await;
    agent.send((0..3).map(dead_letter).collect()).await;
    scenario.until_sql("SELECT count(*) FROM dead_letters", "3").await;
    let returned = [("outcome", "unroutable")];
    Counts::reach(&collector, "verbatim_publishes_total", &returned, 12.0).await;
    stored_once(&scenario, 0, 3).await;
    rabbit.listen("events").await;
    scenario.declare().await;
    let events = rabbit.bodies("events", 3).await;
    let dead_letters: BTreeSet<_> =
        events.iter().map(|it| it["dead_letter_id"].to_string()).collect();
    assert_eq!((events.len(), dead_letters.len()), (3, 3), "{events:?}");
    scenario.finish([collector]).await;
    assert_eq!(rabbit.take("events").await, Vec::<Value>::new());
    stored_once(&scenario, 0, 3).await;
}

/// A message in the dead-letter queue that is not an action.
pub(crate) fn dead_letter(n: u8) -> Publication {
    Publication::to_queue(DEAD_LETTERS, format!("what is {n}?").into_bytes())
}

pub(crate) async fn until_queued(scenario: &Scenario, queue: &str, messages: u32) {
    eventually(format!("{messages} messages in {queue}"), LIMIT, async || {
        let queued = scenario.queued().await;
        if queued == [(queue, messages)] { Ok(()) } else { Err(format!("{queued:?}")) }
    })
    .await;
}

/// Checks that so many messages and dead letters are stored, each once.
async fn stored_once(scenario: &Scenario, messages: usize, dead_letters: usize) {
    let stored = "SELECT concat_ws('|', (SELECT count(*) FROM messages),
                      count(*), coalesce(sum(copies), 0)) FROM dead_letters";
    assert_eq!(scenario.sql(stored).await, format!("{messages}|{dead_letters}|{dead_letters}"));
}
