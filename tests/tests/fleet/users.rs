//! `amqp_users`: an action is carried out only if the setting lists its tenant for the user that RabbitMQ validated.

#![expect(clippy::unwrap_used, reason = "a failure here is the failure of the test")]

use std::path::Path;
use std::sync::Arc;

use broker::fleet_headers::FleetHeaders;
use broker::{Endpoints, Publication, Publisher};
use metrics::Metrics;
use serde_json::{Value, json};
use system_tests::{COLLECTOR, Counts, MIGRATION, SAVER, Scenario, at, closed, key_of, message};
use testkit::fleet::Worker;
use uuid::Uuid;

use crate::saved;

const SAVES: &str = "conversation.save_message";
const USERS: (&str, &str) = ("VERBATIM_AMQP_USERS", "crm-bot=acme,initech;gateway=*");

/// Every dead letter of these tests, by the id of its message.
const DEAD_LETTERS: &str =
    "SELECT string_agg(concat_ws('|', message_id, reason, field, tenant_id), ' '
                                              ORDER BY message_id) FROM dead_letters";

struct World {
    scenario: Scenario,
    workers: Vec<Worker>,
}

impl World {
    /// Workers with the setting, and the two users, which may publish actions and nothing else.
    async fn new() -> Self {
        let scenario = Scenario::new().await;
        for user in ["crm-bot", "gateway"] {
            scenario.rabbit().agent_user(user).await;
        }
        let start = |program| scenario.start_with(program, &[USERS]);
        let workers = tokio::join!(start(SAVER), start(MIGRATION), start(COLLECTOR));
        let workers = vec![workers.0, workers.1, workers.2];
        Self { scenario, workers }
    }

    /// Publishes as a user that says that it is `user_id`; whether RabbitMQ confirms it.
    async fn try_publish(&self, user: &str, publication: Publication) -> Result<(), String> {
        let endpoints = Endpoints::parse(&self.scenario.amqp_url_of(user), "agent").unwrap();
        let publisher = Publisher::new(endpoints, Metrics::new());
        let mut results = publisher.publish_all([Arc::new(publication)]).await;
        results.remove(0).map_err(|error| error.to_string())
    }

    async fn publish(&self, user: &str, user_id: Option<&str>, action: &Value) {
        let action_type = action["action_type"].as_str().unwrap();
        self.publish_to(action_type, user, user_id, action).await;
    }

    async fn publish_to(&self, key: &str, user: &str, user_id: Option<&str>, action: &Value) {
        let user_id = user_id.map(str::to_owned);
        let publication = Publication::action(key, action.to_string().into_bytes());
        self.try_publish(user, Publication { user_id, ..publication }).await.unwrap();
    }

    async fn finish(self) {
        self.scenario.finish(self.workers).await;
    }
}

#[tokio::test]
async fn an_action_is_carried_out_only_if_its_user_is_listed_for_its_tenant() {
    let world = World::new().await;
    let (scenario, reader) = (&world.scenario, world.scenario.reader());
    scenario.rabbit().queue("replies").await;
    let reply = json!({"callback_queue_name": "replies"});
    let of = |tenant: &str, id: &str| message(tenant, "s", id, &reply);
    world.publish("crm-bot", Some("crm-bot"), &of("acme", "listed")).await;
    world.publish("gateway", Some("gateway"), &of("globex", "every")).await;
    world.publish("crm-bot", Some("crm-bot"), &of("globex", "foreign")).await;
    world.publish("crm-bot", None, &of("acme", "nobody")).await;
    let close = closed("globex", "s", &json!({"action_id": "close"}));
    world.publish("crm-bot", Some("crm-bot"), &close).await;
    let clear = json!({
        "action_type": "state.clear", "tenant_id": "globex", "session_id": "s", "action_id": "state",
        "profile": "buyer", "key": "k",
    });
    world.publish("crm-bot", Some("crm-bot"), &clear).await;
    saved(&reader, &key_of(&of("acme", "listed")), 1).await;
    saved(&reader, &key_of(&of("globex", "every")), 1).await;
    let expected = "close|forbidden|user_id|globex foreign|forbidden|user_id|globex \
                    nobody|forbidden|user_id|acme state|forbidden|user_id|globex";
    scenario.until_sql(DEAD_LETTERS, expected).await;

    let error = scenario.sql("SELECT error FROM dead_letters WHERE message_id = 'foreign'").await;
    for part in ["\"crm-bot\"", "\"globex\"", "`amqp_users`"] {
        assert!(error.contains(part), "{error}");
    }
    let replies = scenario.rabbit().bodies("replies", 4).await;
    let refused: Vec<_> = replies.iter().filter(|reply| reply["success"] == false).collect();
    assert_eq!(refused.len(), 2, "{replies:?}");
    for reply in refused {
        assert_eq!(reply["error"]["error_type"], "forbidden", "{reply}");
        assert_eq!(reply["error"]["details"]["field"], "user_id", "{reply}");
    }
    assert_eq!(scenario.sql("SELECT count(*) FROM messages").await, "2");
    assert_eq!(scenario.sql("SELECT count(*) FROM session_events").await, "0");
    world.finish().await;
}

#[tokio::test]
async fn no_agent_can_pretend_to_be_another_user() {
    let world = World::new().await;
    let scenario = &world.scenario;
    let action = |id: &str| {
        let body = message("globex", "s", id, &json!({})).to_string();
        Publication::action(SAVES, body.into_bytes())
    };
    // RabbitMQ refuses the property.
    let gateway = Some("gateway".to_owned());
    let pretended = Publication { user_id: gateway.clone(), ..action("property") };
    world.try_publish("crm-bot", pretended).await.unwrap_err();
    // The workers trust the fleet's header only on copies by the fleet.
    let fleet_headers =
        FleetHeaders { validated_user: gateway, attempt: 2, ..FleetHeaders::default() };
    for (id, user_id) in [("header", None), ("both", Some("crm-bot".to_owned()))] {
        let fleet_headers = fleet_headers.clone();
        let forged = Publication { user_id, fleet_headers, ..action(id) };
        world.try_publish("crm-bot", forged).await.unwrap();
    }
    // It may not publish to a queue of the fleet past the exchange, nor to a retry queue.
    for (exchange, key) in [("", SAVES), ("domain.retry.1000", SAVES)] {
        let fleet_headers = fleet_headers.clone();
        let past = Publication { fleet_headers, exchange: exchange.to_owned(), ..action("past") };
        let past = Publication { routing_key: key.to_owned(), ..past };
        world.try_publish("crm-bot", past).await.unwrap_err();
    }
    let expected = "both|forbidden|user_id|globex header|forbidden|user_id|globex";
    scenario.until_sql(DEAD_LETTERS, expected).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM messages").await, "0");
    world.finish().await;
}

#[tokio::test]
async fn retried_rerouted_and_replayed_copies_have_the_user_of_the_original() {
    let world = World::new().await;
    let (scenario, bot) = (&world.scenario, Some("crm-bot"));
    // Retried: the copy waits in a retry queue.
    scenario.poison("P0001", "retried").await;
    world.publish("crm-bot", bot, &message("acme", "s", "retried", &json!({}))).await;
    let retries = [("queue", SAVES)];
    Counts::reach(&world.workers[0], "verbatim_retries_total", &retries, 1.0).await;
    scenario.sql("DROP TABLE poisoned CASCADE; DROP FUNCTION refuse() CASCADE").await;
    // Rerouted: by the worker of another queue, and from the queue of unroutable actions.
    let wrong_key = message("acme", "s", "wrong-key", &json!({}));
    world.publish_to("conversation.feedback", "crm-bot", bot, &wrong_key).await;
    let no_key = message("acme", "s", "no-key", &json!({}));
    world.publish_to("no.such.key", "crm-bot", bot, &no_key).await;
    // An element that is refused, corrected and replayed by an operator.
    let several = json!({
        "action_type": "conversation.save_messages", "tenant_id": "initech", "session_id": "s",
        "messages": [
            {"role": "user", "content": "a", "message_id": "good", "timestamp": at(1)},
            {"role": "bot", "content": "b", "message_id": "element", "timestamp": at(2)},
        ],
    });
    world.publish("crm-bot", bot, &several).await;
    let refused = "SELECT concat_ws('|', reason, field, message_id) FROM dead_letters";
    scenario.until_sql(refused, "schema|role|element").await;
    let id = scenario.sql("SELECT id FROM dead_letters").await;
    for arguments in
        [&["dead-letters", "edit", &id, "--apply-suggestion"][..], &["dead-letters", "replay", &id]]
    {
        let ran = scenario.verbatim(arguments).await;
        assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    }
    let messages = "SELECT string_agg(id, ' ' ORDER BY id) FROM messages";
    scenario.until_sql(messages, "element good no-key retried wrong-key").await;
    let mut several = several;
    several["tenant_id"] = "globex".into();
    several["action_id"] = "several".into();
    world.publish("crm-bot", bot, &several).await;
    let forbidden =
        "SELECT string_agg(concat_ws('|', reason, field, message_id), ' ') FROM dead_letters
                     WHERE tenant_id = 'globex'";
    scenario.until_sql(forbidden, "forbidden|user_id|several").await;
    world.finish().await;
}

#[tokio::test]
async fn a_forbidden_action_is_saved_by_a_replay_once_its_user_is_listed() {
    let world = World::new().await;
    for (id, user_id) in [("foreign", Some("crm-bot")), ("nobody", None)] {
        world.publish("crm-bot", user_id, &message("globex", "s", id, &json!({}))).await;
    }
    let expected = "foreign|forbidden|user_id|globex nobody|forbidden|user_id|globex";
    world.scenario.until_sql(DEAD_LETTERS, expected).await;
    let World { scenario, workers } = world;
    scenario.finish(workers).await;
    let wider = [("VERBATIM_AMQP_USERS", "crm-bot=acme,globex;gateway=*")];
    let start = |program| scenario.start_with(program, &wider);
    let (saver, collector) = tokio::join!(start(SAVER), start(COLLECTOR));
    let replay = scenario.verbatim(&["dead-letters", "replay", "--all", "--watch", "0s"]).await;
    assert_eq!(replay.status.code(), Some(0), "{replay:?}");
    scenario.until_sql("SELECT string_agg(id, ' ') FROM messages", "foreign").await;
    let open = "SELECT string_agg(concat_ws('|', message_id, reason), ' ') FROM dead_letters
                WHERE status = 'open'";
    scenario.until_sql(open, "nobody|forbidden").await;
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn a_request_of_a_user_that_is_not_listed_is_answered_forbidden() {
    let world = World::new().await;
    let rabbit = world.scenario.rabbit();
    rabbit.queue("answers").await;
    // The server's own user is not listed. The request expires at once, and the worker of expired ones replies.
    let properties = json!({"expiration": "1", "delivery_mode": 2, "reply_to": "answers"});
    let request = json!({
        "action_type": "conversation.get_context", "tenant_id": "acme", "session_id": "s",
    });
    rabbit.publish("conversation.get_context", &properties, &request.to_string()).await;
    let answers = rabbit.bodies("answers", 1).await;
    assert_eq!(answers[0]["error"]["error_type"], "forbidden", "{answers:?}");
    world.finish().await;
}

#[tokio::test]
async fn an_operator_publishes_as_the_user_of_the_url_and_only_for_its_tenants() {
    let world = World::new().await;
    let scenario = &world.scenario;
    let path = |name: &str| {
        let file = format!("{}-{}", Uuid::new_v4(), name);
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(file).to_str().unwrap().to_owned()
    };
    let (actions, list) = (path("actions.jsonl"), path("list.json"));
    std::fs::write(&list, r#"[{"role": "user", "content": "listed"}]"#).unwrap();
    let url = scenario.amqp_url_of("crm-bot");
    let environment = [("AMQP_URL", url.as_str()), USERS];
    for (tenant, code) in [("acme", 0), ("globex", 1)] {
        std::fs::write(&actions, message(tenant, "s", "m", &json!({})).to_string()).unwrap();
        let published = scenario.verbatim_with(&["publish", &actions], &environment).await;
        assert_eq!(published.status.code(), Some(code), "{published:?}");
        let sync = ["sync", &list, "--tenant", tenant, "--session", "list"];
        let synced = scenario.verbatim_with(&sync, &environment).await;
        assert_eq!(synced.status.code(), Some(code), "{synced:?}");
        if code == 1 {
            let said = format!("{published:?} {synced:?}");
            assert_eq!(said.matches("amqp_users").count(), 2, "{said}");
        }
    }
    let saved =
        "SELECT string_agg(concat_ws('|', tenant_id, content), ' ' ORDER BY content) FROM messages";
    scenario.until_sql(saved, "acme|content of m acme|listed").await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    world.finish().await;
}

#[tokio::test]
async fn a_forged_death_of_a_large_body_gives_its_sender_no_other_user() {
    let world = World::new().await;
    let scenario = &world.scenario;
    let large = message("globex", "s", "large", &json!({"content": "x".repeat(2 << 20)}));
    // RabbitMQ 3 counts its own death of the message in this entry, and keeps the exchange.
    let death = json!({
        "queue": SAVES, "reason": "rejected", "exchange": "", "count": 1, "routing-keys": [SAVES],
    });
    let headers = json!({"x-death": [death], "x-verbatim-user": "gateway"});
    let properties = json!({"delivery_mode": 2, "headers": headers});
    scenario.rabbit().publish(SAVES, &properties, &large.to_string()).await;
    let reasons = "SELECT string_agg(reason, ' ' ORDER BY stored_at) FROM dead_letters";
    scenario.until_sql(reasons, "too_large").await;
    let World { scenario, workers } = world;
    scenario.finish(workers).await;
    // An operator raises the limit, and replays it.
    let wider = [USERS, ("VERBATIM_MAX_BODY_BYTES", "4MiB")];
    let start = |program| scenario.start_with(program, &wider);
    let (saver, collector) = tokio::join!(start(SAVER), start(COLLECTOR));
    let replay = ["dead-letters", "replay", "--all", "--watch", "0s"];
    let ran = scenario.verbatim_with(&replay, &wider).await;
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    scenario.until_sql(reasons, "too_large forbidden").await;
    assert_eq!(scenario.sql("SELECT count(*) FROM messages").await, "0");
    scenario.finish([saver, collector]).await;
}
