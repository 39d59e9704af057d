//! Publishing actions.

use serde_json::{Value, json};
use system_tests::{COLLECTOR, LIMIT, MIGRATION, SAVER, at};
use testkit::wait::eventually;

use crate::{ids, started, started_with, with_status};

const ACTIONS: &str = "/api/actions";
const DURABLE: &str = "/api/actions?wait=durable";

fn save(content: &str) -> Value {
    json!({"action_type": "conversation.save_message", "session_id": "s", "role": "user", "content": content})
}

#[tokio::test]
async fn a_durable_action_is_committed_when_its_answer_comes_and_its_repetition_takes_no_effect() {
    let (scenario, api) = started().await;
    let _saver = scenario.start(SAVER).await;
    let key = api.key("acme", &["read", "write"]).await;
    let idempotent = [("idempotency-key", "order-1")];
    let first = with_status(&api.post(&key, DURABLE, &idempotent, &save("hello")).await, 200);
    let action = &first["actions"][0];
    assert_eq!((&action["status"], &action["id"]), (&json!("durable"), &json!("order-1")));
    assert_eq!(action["data"]["duplicate"], false);
    let path = format!("/api/conversations/{}/full", action["conversation_id"].as_str().unwrap());
    let page = api.json(&key, &path).await;
    assert_eq!(page["messages"][0]["content"], "hello");

    let again = with_status(&api.post(&key, DURABLE, &idempotent, &save("hello")).await, 200);
    assert_eq!(again["actions"][0]["data"]["duplicate"], true);
    let other = with_status(&api.post(&key, DURABLE, &idempotent, &save("other")).await, 409);
    assert_eq!(other["type"], "urn:verbatim:problem:conflict");
    assert_eq!(ids(&api.json(&key, &path).await["messages"]), ["order-1"]);

    // An array: key and position.
    let two = json!([save("a"), save("b")]);
    let headers = [("idempotency-key", "batch-1")];
    let first = with_status(&api.post(&key, DURABLE, &headers, &two).await, 200);
    let again = with_status(&api.post(&key, DURABLE, &headers, &two).await, 200);
    for position in 0..2 {
        let (first, again) = (&first["actions"][position], &again["actions"][position]);
        assert_eq!((&first["id"], &again["data"]["duplicate"]), (&again["id"], &json!(true)));
    }
    assert_eq!(ids(&api.json(&key, &path).await["messages"]).len(), 3);

    // Of several messages one is refused: the others are stored.
    let mixed = json!({"action_type": "conversation.save_messages", "session_id": "s",
                       "messages": [{"role": "user", "content": "new", "message_id": "new"},
                                    {"role": "user", "content": "not hello", "message_id": "order-1"}]});
    let problem = with_status(&api.post(&key, DURABLE, &[], &mixed).await, 409);
    assert_eq!(problem["errors"][0]["pointer"], "#/messages/1", "{problem}");
    assert_eq!(ids(&api.json(&key, &path).await["messages"]).len(), 4);

    // A list that needs a reply gets it.
    let list = json!({"action_type": "conversation.sync_messages", "session_id": "list", "on_conflict": "refuse",
                      "messages": [{"role": "user", "content": "first of the list"}]});
    let synced = with_status(&api.post(&key, DURABLE, &[], &list).await, 200);
    assert_eq!(synced["actions"][0]["data"]["aligned"], "exact", "{synced}");
    with_status(&api.post(&key, ACTIONS, &[], &list).await, 422);

    // Without any id: the text and its time identify it.
    let mut timed = save("timed");
    timed["timestamp"] = json!(at(0));
    for _ in 0..2 {
        with_status(&api.post(&key, DURABLE, &[], &timed).await, 200);
    }
    assert_eq!(ids(&api.json(&key, &path).await["messages"]).len(), 5);
}

#[tokio::test]
async fn what_nobody_carries_out_in_time_is_accepted_and_carried_out_later() {
    let (scenario, api) = started_with(&[("VERBATIM_DURABLE_WAIT", "200ms")]).await;
    let key = api.key("acme", &["read", "write"]).await;
    let headers = [("idempotency-key", "k")];
    let accepted = with_status(&api.post(&key, DURABLE, &headers, &save("later")).await, 202);
    assert_eq!(accepted["actions"][0]["status"], "accepted");
    let _saver = scenario.start(SAVER).await;
    let id = accepted["actions"][0]["conversation_id"].as_str().unwrap();
    let path = format!("/api/conversations/{id}/full");
    eventually("the message", LIMIT, async || {
        let response = api.get(&key, &path).await;
        if response.status == 200 { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_publishes_nothing_and_a_refused_action_keeps_its_neighbours_from_being_published()
 {
    let (scenario, api) = started().await;
    let key = api.key("acme", &["write"]).await;
    let dry = with_status(&api.post(&key, "/api/actions?dry_run=1", &[], &save("x")).await, 200);
    assert_eq!(dry["actions"][0]["status"], "valid");
    let mut bad = save("x");
    bad["role"] = json!("bot");
    let several = json!({"action_type": "conversation.save_messages", "session_id": "s",
                         "messages": [{"role": "user", "content": "a"}, {"role": "user"}]});
    for (body, pointers) in [
        (bad.clone(), vec!["#/role"]),
        (json!([save("a"), bad, {"session_id": "s"}]), vec!["#/1/role", "#/2/action_type"]),
        (json!({"action_type": "conversation.save_message", "session_id": "s"}), vec!["#/role"]),
        (several, vec!["#/messages/1/content"]),
        (
            json!({"action_type": "conversation.get_history", "session_id": "s"}),
            vec!["#/action_type"],
        ),
        (json!([]), vec!["#"]),
        (json!([1]), vec!["#/0"]),
        (json!("x"), vec!["#"]),
    ] {
        let problem = with_status(&api.post(&key, ACTIONS, &[], &body).await, 422);
        let found: Vec<_> =
            problem["errors"].as_array().unwrap().iter().map(|it| it["pointer"].clone()).collect();
        assert_eq!(found, pointers, "{body}: {problem}");
    }
    let (bearer, headers) = (format!("Bearer {key}"), "authorization");
    for text in ["", "{", "{\"a\":1,}", "\u{feff}{}", "[{}"] {
        with_status(&api.send("POST", ACTIONS, &[(headers, &bearer)], text).await, 422);
    }
    for odd in ["a b", "\"\"", "é"] {
        with_status(&api.post(&key, ACTIONS, &[("idempotency-key", odd)], &save("x")).await, 422);
    }
    let mut reply = save("x");
    reply["callback_queue_name"] = json!("conversation.session");
    let problem = with_status(&api.post(&key, ACTIONS, &[], &reply).await, 422);
    assert_eq!(problem["errors"][0]["pointer"], "#/callback_queue_name");
    let mut own = save("x");
    own["action_id"] = json!("mine");
    let problem =
        with_status(&api.post(&key, ACTIONS, &[("idempotency-key", "other")], &own).await, 422);
    assert_eq!(problem["errors"][0]["pointer"], "#/action_id");
    // Another tenant in the body, at either place.
    for foreign in [json!({"tenant_id": "globex"}), json!({"data": {"tenant_id": "globex"}})] {
        let mut body = save("x");
        body.as_object_mut().unwrap().extend(foreign.as_object().unwrap().clone());
        with_status(&api.post(&key, ACTIONS, &[], &body).await, 404);
    }
    let mut named_below_data = save("x");
    named_below_data["data"] = json!({"tenant_id": "acme", "action_id": "a"});
    let dry_run = &format!("{ACTIONS}?dry_run=1");
    let checked = with_status(&api.post(&key, dry_run, &[], &named_below_data).await, 200);
    assert_eq!(checked["actions"][0]["id"], "a");
    let other = &[("idempotency-key", "b")];
    let problem = with_status(&api.post(&key, dry_run, other, &named_below_data).await, 422);
    let fault = &problem["errors"][0]["detail"];
    assert!(fault.as_str().unwrap().contains("Idempotency-Key"), "{problem}");
    let erase = json!({"action_type": "conversation.erase", "session_id": "s"});
    with_status(&api.post(&key, ACTIONS, &[], &erase).await, 403);
    let large = save(&"x".repeat(9 << 20));
    let response = api.post(&key, ACTIONS, &[], &large).await;
    assert_eq!(with_status(&response, 413)["type"], "urn:verbatim:problem:too-large");
    let queues = scenario.rabbit();
    for queue in ["conversation.save_message", "conversation.session"] {
        assert_eq!(queues.take(queue).await, [] as [Value; 0], "{queue}");
    }
}

#[tokio::test]
async fn every_action_that_changes_something_is_published_with_the_trace_of_the_request() {
    let (scenario, api) = started().await;
    let workers = [SAVER, MIGRATION, COLLECTOR].map(|worker| scenario.launch(worker, &[]));
    let key = api.key("acme", &["read", "write"]).await;
    let session = |kind: &str, more: Value| {
        let mut action = json!({"action_type": kind, "session_id": "s"});
        action.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        action
    };
    let mut message = save("m");
    message["message_id"] = json!("m");
    let actions = json!([
        session("conversation.session_opened", json!({})),
        message,
        session("conversation.feedback", json!({"satisfaction": 4})),
        session("conversation.delete_message", json!({"message_id": "m"})),
        session("conversation.session_closed", json!({"reason": "done"})),
    ]);
    let trace = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")];
    let done = with_status(&api.post(&key, DURABLE, &trace, &actions).await, 200);
    let id = done["actions"][0]["conversation_id"].as_str().unwrap().to_owned();
    let path = format!("/api/conversations/{id}/full");
    eventually("the archived conversation", LIMIT, async || {
        let page = api.json(&key, &path).await;
        let conversation = &page["conversation"];
        let is_done = conversation["status"] == "archived" && conversation["satisfaction"] == 4;
        if is_done { Ok(()) } else { Err(page.to_string()) }
    })
    .await;
    drop(workers);
}

#[tokio::test]
async fn without_rabbitmq_publishing_is_unavailable_and_reading_works() {
    let scenario = system_tests::Scenario::new().await;
    let proxy = testkit::proxy::Proxy::before(&scenario.amqp_url).await.unwrap();
    let api = system_tests::ApiServer::start(&scenario, &[("AMQP_URL", proxy.url())]).await;
    let key = api.key("acme", &["read", "write"]).await;
    proxy.cut().await.unwrap();
    let response = api.post(&key, ACTIONS, &[], &save("x")).await;
    let problem = with_status(&response, 503);
    assert_eq!(problem["type"], "urn:verbatim:problem:not-published");
    assert!(response.header("retry-after").is_some(), "{response:?}");
    with_status(&api.get(&key, "/api/conversations/list/acme").await, 200);
    proxy.restore().await.unwrap();
    eventually("the action to be accepted", LIMIT, async || {
        let response = api.post(&key, ACTIONS, &[], &save("x")).await;
        if response.status == 202 { Ok(()) } else { Err(format!("{response:?}")) }
    })
    .await;
}

#[tokio::test]
async fn where_users_are_checked_the_api_sends_its_own_and_refuses_a_tenant_that_is_not_listed_for_it()
 {
    let scenario = system_tests::Scenario::new().await;
    let (user, _) = scenario.amqp_url.trim_start_matches("amqp://").split_once(':').unwrap();
    let users = format!("{user}=acme");
    let settings = [("VERBATIM_AMQP_USERS", users.as_str())];
    let _saver = scenario.start_with(SAVER, &settings).await;
    let api = system_tests::ApiServer::start(&scenario, &settings).await;
    let (acme, globex) = (api.key("acme", &["write"]).await, api.key("globex", &["write"]).await);
    with_status(&api.post(&acme, DURABLE, &[], &save("x")).await, 200);
    let problem = with_status(&api.post(&globex, DURABLE, &[], &save("x")).await, 403);
    assert!(problem["detail"].as_str().unwrap().contains("globex"), "{problem}");
}

#[tokio::test]
async fn a_trace_context_is_passed_on_and_what_is_none_or_too_long_is_left_out() {
    let (scenario, api) = started().await;
    let key = api.key("acme", &["write"]).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let long = "k=v,".repeat(5_000);
    for (traceparent, tracestate, passed_on) in [
        (parent, "k=v", (json!(parent), json!("k=v"))),
        (parent, &long, (json!(parent), Value::Null)),
        (&long, "k=v", (Value::Null, Value::Null)),
    ] {
        let headers = [("traceparent", traceparent), ("tracestate", tracestate)];
        with_status(&api.post(&key, ACTIONS, &headers, &save("x")).await, 202);
        let messages = scenario.rabbit().take("conversation.save_message").await;
        let [message] = &messages[..] else { panic!("{messages:?}") };
        let headers = &message["properties"]["headers"];
        assert_eq!((headers["traceparent"].clone(), headers["tracestate"].clone()), passed_on);
    }
}
