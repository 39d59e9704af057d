//! Actions that are unroutable, expired or not handled.

use std::collections::BTreeSet;

use fixtures::examples::example;
use serde_json::{Value, json};
use system_tests::{COLLECTOR, Counts, SAVER, Scenario, ServerSet, at, key_of, message};

use crate::saved;

#[tokio::test]
async fn an_unroutable_action_is_rerouted_if_it_is_known_and_becomes_a_dead_letter_if_not() {
    let ServerSet { scenario, collector, .. } = ServerSet::shared().await;
    let (agent, rabbit, reader) = (scenario.agent(), scenario.rabbit(), scenario.reader());
    let body = message("reroute", "s", "m", &json!({}));
    // A mistyped routing key, with a body whose `action_type` is correct.
    rabbit.publish("conversation.saved_message", &json!({}), &body.to_string()).await;
    saved(&reader, &key_of(&body), 1).await;

    // A binding that an operator removed.
    rabbit.unbind("domain.actions", "conversation.session", "conversation.feedback").await;
    let feedback = json!({
        "action_type": "conversation.feedback", "tenant_id": "reroute", "session_id": "s", "satisfaction": 4,
    });
    agent.publish(&feedback).await;
    let satisfaction = "SELECT satisfaction::text FROM conversations WHERE tenant_id = 'reroute'";
    scenario.until_sql(satisfaction, "4").await;
    rabbit.bind("domain.actions", "conversation.session", "conversation.feedback").await;
    let labels = [("queue", "domain.unrouted"), ("cause", "unrouted")];
    Counts::reach(collector, "verbatim_messages_rerouted_total", &labels, 2.0).await;

    let unknown =
        json!({"action_type": "conversation.summarise", "tenant_id": "reroute", "session_id": "s"});
    agent.publish(&unknown).await;
    let dead_letter =
        "SELECT concat_ws('|', queue, reason, field, routing_key, exchange, tenant_id, attempts)
                  FROM dead_letters WHERE tenant_id = 'reroute'";
    let expected = "domain.unrouted|unknown_action|action_type|conversation.summarise|domain.actions|reroute|1";
    scenario.until_sql(dead_letter, expected).await;
    rabbit.publish("no.such.key", &json!({}), "what is this?").await;
    let dead_letter =
        "SELECT concat_ws('|', queue, reason, convert_from(body, 'UTF8')) FROM dead_letters
                  WHERE routing_key = 'no.such.key'";
    scenario.until_sql(dead_letter, "domain.unrouted|malformed_json|what is this?").await;
}

#[tokio::test]
async fn an_action_with_the_routing_key_of_another_write_takes_effect_once_as_with_its_own() {
    let ServerSet { scenario, .. } = ServerSet::shared().await;
    let (rabbit, reader) = (scenario.rabbit(), scenario.reader());
    rabbit.queue("misrouted.replies").await;
    let (saves, feedback) = ("conversation.save_message", "conversation.feedback");
    let replying = json!({"reply_to": "misrouted.replies", "delivery_mode": 2});
    let body = message("misrouted", "s", "m", &json!({}));
    let closed = json!({
        "action_type": "conversation.session_closed", "tenant_id": "misrouted", "session_id": "s",
        "action_id": "closed", "reason": "left", "timestamp": at(60),
    });
    for _ in 0..2 {
        rabbit.publish(feedback, &replying, &body.to_string()).await;
        rabbit.publish(saves, &replying, &closed.to_string()).await;
    }
    let replies = rabbit.bodies("misrouted.replies", 4).await;
    assert!(replies.iter().all(|reply| reply["success"] == true), "{replies:?}");
    saved(&reader, &key_of(&body), 1).await;
    let events = "SELECT concat_ws('|', id, action_type, reason) FROM session_events
                  WHERE tenant_id = 'misrouted'";
    scenario.until_sql(events, "closed|conversation.session_closed|left").await;
    let dead_letters = "SELECT count(*) FROM dead_letters WHERE tenant_id = 'misrouted'";
    assert_eq!(scenario.sql(dead_letters).await, "0");
}

#[tokio::test]
async fn a_write_among_the_requests_is_saved_and_a_request_that_nobody_took_is_answered() {
    let ServerSet { scenario, collector, .. } = ServerSet::shared().await;
    let (rabbit, reader) = (scenario.rabbit(), scenario.reader());
    let expired = Counts::of(collector).await.sum("verbatim_requests_expired_total", &[]);
    // Without it, requests expire after 30 s.
    let expiration = json!({"expiration": "1", "delivery_mode": 2});
    let request = "conversation.get_context";
    let body = message("requests", "s", "m", &json!({}));
    rabbit.publish(request, &expiration, &body.to_string()).await;
    saved(&reader, &key_of(&body), 1).await;

    rabbit.queue("requests.replies").await;
    let mut answered = expiration.clone();
    answered["reply_to"] = "requests.replies".into();
    let refused = json!({"action_type": request, "tenant_id": "requests"}).to_string();
    for body in [example(request).unwrap(), &refused] {
        rabbit.publish(request, &answered, body).await;
    }
    let replies = rabbit.bodies("requests.replies", 2).await;
    let errors = replies.iter().map(|reply| reply["error"]["error_type"].as_str().unwrap());
    assert_eq!(errors.collect::<BTreeSet<_>>(), BTreeSet::from(["schema", "unavailable"]));
    Counts::reach(collector, "verbatim_requests_expired_total", &[], expired + 2.0).await;

    // What cannot be read may be a write.
    rabbit.publish(request, &expiration, "{unreadable").await;
    let dead_letter = "SELECT concat_ws('|', queue, reason, routing_key) FROM dead_letters
                  WHERE convert_from(body, 'UTF8') = '{unreadable'";
    scenario
        .until_sql(dead_letter, "domain.unrouted|malformed_json|conversation.get_context")
        .await;
    let others = "SELECT count(*) FROM dead_letters WHERE tenant_id = 'requests'";
    assert_eq!(scenario.sql(others).await, "0");
}

#[tokio::test]
async fn an_action_that_no_worker_of_this_version_handles_becomes_a_dead_letter() {
    let scenario = &ServerSet::shared().await.scenario;
    for (action, queue) in [
        ("conversation.erase", "conversation.session"),
        ("state.save", "bot.state"),
        ("state.patch", "bot.state"),
        ("state.transition", "bot.state"),
        ("state.clear", "bot.state"),
    ] {
        let mut body: Value = serde_json::from_str(example(action).unwrap()).unwrap();
        body["tenant_id"] = "not-yet".into();
        scenario.agent().publish(&body).await;
        let dead_letter = format!(
            "SELECT concat_ws('|', queue, reason, field, split_part(error, ';', 1)) FROM dead_letters
             WHERE tenant_id = 'not-yet' AND action_type = '{action}'"
        );
        let error = format!("no worker of this version carries out {action}");
        let expected = format!("{queue}|unknown_action|action_type|{error}");
        scenario.until_sql(&dead_letter, &expected).await;
    }
}

#[tokio::test]
async fn a_message_that_expired_by_its_own_expiration_is_rerouted_and_saved() {
    let scenario = Scenario::new().await;
    let body = message("expired", "s", "m", &json!({}));
    let expiring = json!({"expiration": "1", "delivery_mode": 2});
    scenario.rabbit().publish("conversation.save_message", &expiring, &body.to_string()).await;
    let collector = scenario.start(COLLECTOR).await;
    let labels = [("queue", "conversation.save_message"), ("cause", "expired")];
    Counts::reach(&collector, "verbatim_messages_rerouted_total", &labels, 1.0).await;
    let saver = scenario.start(SAVER).await;
    let reader = scenario.reader();
    saved(&reader, &key_of(&body), 1).await;
    assert_eq!(scenario.sql("SELECT count(*) FROM dead_letters").await, "0");
    scenario.finish([saver, collector]).await;
}

#[tokio::test]
async fn a_dead_letter_keeps_the_trace_of_its_action_and_an_agent_cannot_forge_our_headers() {
    let scenario = &ServerSet::shared().await.scenario;
    let (rabbit, reader) = (scenario.rabbit(), scenario.reader());
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0cc902b7-01";
    let headers = json!({
        "traceparent": trace, "x-verbatim-id": "forged", "x-verbatim-conversation": "forged",
        "x-verbatim-timestamp-us": 1, "x-verbatim-received-us": 1, "x-verbatim-attempt": 4,
    });
    let body = message("forged", "s", "m", &json!({}));
    let properties = json!({"headers": headers});
    rabbit.publish("conversation.save_message", &properties, &body.to_string()).await;
    let messages = saved(&reader, &key_of(&body), 1).await;
    assert_eq!((messages[0].id.as_str(), messages[0].created_at.to_string()), ("m", at(0)));
    let bad = message("forged", "s", "m", &json!({"role": "none"}));
    rabbit.publish("conversation.save_message", &properties, &bad.to_string()).await;
    let dead_letter = "SELECT concat_ws('|', headers->>'traceparent', attempts, message_id, field)
                  FROM dead_letters WHERE tenant_id = 'forged'";
    scenario.until_sql(dead_letter, &format!("{trace}|1|m|role")).await;
}
