//! Dead letters and what is sent home: each kept or sent once, whatever fails beside it.

#![expect(clippy::unwrap_used, reason = "a failure here is the failure of the test")]

mod headers;
mod replays;

use std::collections::BTreeSet;
use std::time::Duration;

use broker::Publication;
use serde_json::{Value, json};
use system_tests::{
    Counts, LIMIT, PublishedMessages, SAVER, STATISTICS, Scenario, at, key, message,
};
use testkit::proxy::Proxy;
use testkit::wait::eventually;

pub(crate) const SAVES: &str = "conversation.save_message";
pub(crate) const DEAD_LETTERS: &str = "conversation.save_message.dlq";
const STATES: &str = "bot.state";
const STORED: &str = "verbatim_dead_letters_stored_total";

/// A batch waits for whatever arrives while another one is handled, and everything is handled slowly:
/// so what was queued meets in one batch.
const LINGER: (&str, &str) = ("VERBATIM_LINGER", "2s");
const SLOW: Duration = Duration::from_millis(100);

/// Returned publishes that no batch here reaches without having been tried again. On a busy machine what
/// was queued may come in several batches; then one message alone is tried, every 2 s.
const SEVERAL_TRIES: f64 = 25.0;

#[tokio::test]
async fn each_conflicting_body_is_stored_as_a_separate_dead_letter() {
    let scenario = Scenario::new().await;
    let (saver, statistics) = tokio::join!(scenario.start(SAVER), scenario.start(STATISTICS));
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let says = |words: &str| message("bodies", "s", "m1", &json!({"content": words}));
    agent.publish(&says("first")).await;
    scenario.until_sql("SELECT count(*) FROM messages", "1").await;
    // The last one comes twice: one dead letter, two copies.
    agent.publish_all(&[says("second"), says("third"), says("third")]).await;
    let dead_letters =
        "SELECT string_agg(concat_ws(' ', convert_from(body, 'UTF8')::json->>'content',
                       copies, reason, message_id), ', ' ORDER BY stored_at, copies)
                   FROM dead_letters";
    let kept = "SELECT sum(copies) FROM dead_letters";
    scenario.until_sql(kept, "3").await;
    scenario.finish([saver, statistics]).await;
    let seen = scenario.sql(dead_letters).await;
    let seen: BTreeSet<&str> = seen.split(", ").collect();
    assert_eq!(seen, BTreeSet::from(["second 1 conflict m1", "third 2 conflict m1"]));
    let archived = reader.stored(&key(&says("first"))).await;
    let archived: Vec<_> = archived.iter().map(|message| message.content.text()).collect();
    assert_eq!(archived, ["first"]);
}

#[tokio::test]
async fn a_body_without_an_id_that_is_dead_lettered_twice_is_one_dead_letter() {
    let scenario = Scenario::new().await;
    let (saver, statistics) = tokio::join!(scenario.start(SAVER), scenario.start(STATISTICS));
    let rabbit = scenario.rabbit();
    for copies in ["1", "2"] {
        // Each dies at a time of its own, as when a worker dies before it acknowledges.
        rabbit.publish(SAVES, &json!({"message_id": "same"}), "{broken").await;
        scenario.until_sql("SELECT coalesce(sum(copies), 0) FROM dead_letters", copies).await;
    }
    assert_eq!(
        scenario.sql("SELECT count(*), max(reason) FROM dead_letters").await,
        "1|malformed_json"
    );
    scenario.finish([saver, statistics]).await;
}

#[tokio::test]
async fn rerouted_messages_arrive_once_while_the_queue_of_others_is_missing() {
    let scenario = Scenario::new().await;
    let (agent, rabbit, reader) = (scenario.agent(), scenario.rabbit(), scenario.reader());
    let broker = Proxy::before(&scenario.amqp_url).await.unwrap();
    let settings = [("AMQP_URL", broker.url()), LINGER];
    let statistics = scenario.start_with(STATISTICS, &settings).await;
    broker.cut().await.unwrap();
    rabbit.delete_queue(SAVES).await;
    let mut published = PublishedMessages::default();
    for n in 0..5 {
        // A queue that is there, under a routing key that nobody knows.
        let state = json!({
            "action_type": "state.save", "tenant_id": "home", "session_id": "s",
            "profile": "seller", "key": format!("k{n}"), "value": {},
        });
        rabbit.publish("state.saved", &json!({}), &state.to_string()).await;
        let identified = message("home", "s", &format!("m{n}"), &json!({"timestamp": at(n)}));
        agent.publish(&identified).await;
        published.add_confirmed(&[identified]);
        rabbit.publish(SAVES, &json!({}), &anonymous("home", n)).await;
    }
    queued(&scenario, "domain.unrouted", 15).await;

    broker.restore().await.unwrap();
    broker.slow(SLOW);
    let returned = [("outcome", "unroutable")];
    Counts::reach(&statistics, "verbatim_publishes_total", &returned, SEVERAL_TRIES).await;
    scenario.declare().await;
    let home = [("queue", "domain.unrouted"), ("cause", "unrouted")];
    let rerouted = "verbatim_messages_rerouted_total";
    let counts = Counts::reach(&statistics, rerouted, &home, 15.0).await;
    assert_eq!(counts.sum(rerouted, &home), 15.0, "each was confirmed once");

    let saver = scenario.start(SAVER).await;
    scenario.until_sql("SELECT count(*) FROM messages", "10").await;
    // Whatever they are tried again as, they are what they were found to be at first.
    let states = rabbit.take(STATES).await;
    let id = |state: &Value| state["properties"]["headers"]["x-verbatim-id"].to_string();
    let ids: BTreeSet<_> = states.iter().map(id).filter(|id| id != "null").collect();
    assert_eq!((states.len(), ids.len()), (5, 5));
    scenario.finish([saver, statistics]).await;
    arrived(&scenario, 10, 0).await;
    let conversation = key(&json!({"tenant_id": "home", "session_id": "s"}));
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
    let statistics = scenario.start_with(STATISTICS, &settings).await;
    broker.cut().await.unwrap();
    agent.send(vec![dead_letter(0)]).await;
    let impatient = json!({"expiration": "1", "delivery_mode": 2});
    for n in 0..5 {
        rabbit.publish(SAVES, &impatient, &anonymous("late", n)).await;
        let identified = message("late", "s", &format!("m{n}"), &json!({}));
        rabbit.publish(SAVES, &impatient, &identified.to_string()).await;
    }
    queued(&scenario, DEAD_LETTERS, 11).await;
    agent.send((1..5).map(dead_letter).collect()).await;
    rabbit.delete_queue(SAVES).await;

    database.slow(SLOW);
    broker.restore().await.unwrap();
    let returned = [("outcome", "unroutable")];
    Counts::reach(&statistics, "verbatim_publishes_total", &returned, SEVERAL_TRIES).await;
    // No dead letter waits for its neighbours' queue, or is stored again at each try.
    let kept = "SELECT (count(*) > 0)::text || bool_and(copies = 1) FROM dead_letters";
    assert_eq!(scenario.sql(kept).await, "truetrue");

    scenario.declare().await;
    let saver = scenario.start(SAVER).await;
    scenario.until_sql("SELECT count(*) FROM messages", "10").await;
    let counts = Counts::reach(&statistics, STORED, &[("queue", SAVES)], 5.0).await;
    assert_eq!(counts.sum(STORED, &[("queue", SAVES)]), 5.0);
    scenario.finish([saver, statistics]).await;
    arrived(&scenario, 10, 5).await;
}

#[tokio::test]
async fn dead_letters_that_cannot_be_announced_for_a_while_are_stored_and_announced_once() {
    let scenario = Scenario::new().await;
    let (agent, rabbit) = (scenario.agent(), scenario.rabbit());
    let statistics = scenario.start(STATISTICS).await;
    rabbit.delete_queue("conversation.statistics").await;
    agent.send((0..3).map(dead_letter).collect()).await;
    scenario.until_sql("SELECT count(*) FROM dead_letters", "3").await;
    let returned = [("outcome", "unroutable")];
    Counts::reach(&statistics, "verbatim_publishes_total", &returned, 12.0).await;
    arrived(&scenario, 0, 3).await;
    rabbit.listen("events").await;
    scenario.declare().await;
    let told = rabbit.bodies("events", 3).await;
    let dead_letters: BTreeSet<_> =
        told.iter().map(|it| it["dead_letter_id"].to_string()).collect();
    assert_eq!((told.len(), dead_letters.len()), (3, 3), "{told:?}");
    scenario.finish([statistics]).await;
    assert_eq!(rabbit.take("events").await, Vec::<Value>::new());
    arrived(&scenario, 0, 3).await;
}

/// Something in the dead-letter queue that is no action.
fn dead_letter(n: u8) -> Publication {
    Publication::to_queue(DEAD_LETTERS, format!("what is {n}?").into_bytes())
}

/// The body of a message that nothing identifies.
fn anonymous(tenant: &str, n: i64) -> String {
    let mut action = message(tenant, "s", "", &json!({"content": format!("words {n}")}));
    let fields = action.as_object_mut().unwrap();
    fields.remove("message_id");
    fields.remove("timestamp");
    action.to_string()
}

async fn queued(scenario: &Scenario, queue: &str, messages: u32) {
    eventually(format!("{messages} messages in {queue}"), LIMIT, async || {
        let queued = scenario.queued().await;
        if queued == [(queue, messages)] { Ok(()) } else { Err(format!("{queued:?}")) }
    })
    .await;
}

/// Makes sure that so many messages and dead letters are stored, each once.
async fn arrived(scenario: &Scenario, messages: usize, dead_letters: usize) {
    let stored = "SELECT concat_ws('|', (SELECT count(*) FROM messages),
                      count(*), coalesce(sum(copies), 0)) FROM dead_letters";
    assert_eq!(scenario.sql(stored).await, format!("{messages}|{dead_letters}|{dead_letters}"));
}
