//! `verbatim lint` and `verbatim publish`.

use std::io::Write as _;
use std::time::Duration;

use broker::topology::WorkQueue;
use fixtures::body;
use serde_json::{Value, json};
use testkit::proxy::Proxy;
use testkit::wait::eventually;

use crate::support::{Verbatim, lines, prepared};

/// Ready messages of a queue, according to `verbatim queues`.
async fn ready(verbatim: &Verbatim, queue: &str) -> Value {
    let queues = verbatim.json(&["queues"]).await;
    let row = queues.as_array().unwrap().iter().find(|row| row["queue"] == queue).unwrap();
    row["ready"].clone()
}

#[tokio::test]
async fn published_actions_are_confirmed_and_ready_in_their_queues() {
    let (_env, verbatim) = prepared().await;
    let mut actions: Vec<Value> =
        (0..1_500).map(|n| body("s", &format!("m-{n}"), &json!({}))).collect();
    actions.push(json!({
        "action_type": "conversation.session_closed", "tenant_id": "acme", "session_id": "s",
    }));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("actions.jsonl");
    std::fs::write(&file, lines(&actions)).unwrap();
    let file = file.to_str().unwrap();
    let report = verbatim.json(&["publish", file]).await;
    // Chunks of 512 lines, in actions of up to 100 messages.
    let expected = json!({
        "lines": 1_501, "confirmed": 1_501, "publications": 6 + 6 + 5 + 1, "unroutable": 0, "failed": 0, "invalid": 0,
        "without_identity": 0, "without_timestamp": 0,
        "unrouted": 0, "rabbitmq_unavailable": false, "faults": [], "failures": [],
    });
    assert_eq!(report, expected);
    assert_eq!(ready(&verbatim, WorkQueue::SaveMessage.name()).await, 17);
    assert_eq!(ready(&verbatim, WorkQueue::Session.name()).await, 1);
    let report = verbatim.json(&["publish", file, "--no-grouping"]).await;
    assert_eq!((&report["confirmed"], &report["publications"]), (&json!(1_501), &json!(1_501)));
    assert_eq!(ready(&verbatim, WorkQueue::SaveMessage.name()).await, 1_517);
    let text = verbatim.run(&["publish", file]).await.out;
    assert!(text.contains("1 501 of 1 501 actions confirmed in 18 publications"), "{text}");
}

#[tokio::test]
async fn lint_and_publish_count_messages_without_identity_and_without_timestamp() {
    let (_env, verbatim) = prepared().await;
    let mut timeless = body("s", "m-1", &json!({}));
    timeless.as_object_mut().unwrap().remove("timestamp");
    let mut anonymous = timeless.clone();
    anonymous.as_object_mut().unwrap().remove("message_id");
    // A session event needs neither.
    let closed = json!({
        "action_type": "conversation.session_closed", "tenant_id": "acme", "session_id": "s",
    });
    let actions = lines(&[body("s", "m-2", &json!({})), timeless, anonymous, closed]);
    for arguments in [&["lint", "-"][..], &["publish", "-"], &["publish", "-", "--no-lint"]] {
        let text = verbatim.run_on(arguments, &actions).await;
        assert_eq!(text.code, 0, "{text:?}");
        assert!(text.out.contains("1 message without message_id, action_id"), "{text:?}");
        assert!(text.out.contains("2 messages without timestamp"), "{text:?}");
        let report = verbatim.run_on(&[arguments, &["--json"]].concat(), &actions).await.json();
        let counted = (&report["without_identity"], &report["without_timestamp"]);
        assert_eq!(counted, (&json!(1), &json!(2)), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_file_with_one_bad_line_is_refused_as_a_whole_and_names_it() {
    let (_env, verbatim) = prepared().await;
    let actions = lines(&[body("s", "m-1", &json!({})), body("s", "m-2", &json!({"role": "bot"}))]);
    let ran = verbatim.run_on(&["publish", "-", "--json"], &actions).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let report = ran.json();
    assert_eq!((&report["confirmed"], &report["invalid"]), (&json!(0), &json!(1)));
    assert_eq!(report["faults"][0]["line"], 2);
    assert_eq!(report["faults"][0]["field"], "role");
    let text = verbatim.run_on(&["publish", "-"], &actions).await.out;
    assert!(text.contains("nothing published: 1 of 2 actions"), "{text}");
    assert_eq!(ready(&verbatim, WorkQueue::SaveMessage.name()).await, 0);
}

#[tokio::test]
async fn without_lint_bad_lines_are_routed_by_action_type_or_routing_key() {
    let (_env, verbatim) = prepared().await;
    let bad = lines(&[body("s", "m-1", &json!({"role": "bot"})), json!("hello")]);
    let ran = verbatim.run_on(&["publish", "-", "--no-lint", "--json"], &bad).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let report = ran.json();
    assert_eq!((&report["confirmed"], &report["failed"]), (&json!(1), &json!(1)));
    assert_eq!(report["failures"][0]["line"], 2);
    assert_eq!(report["failures"][0]["outcome"], "no_routing_key");

    let key = WorkQueue::SaveMessage.name();
    let arguments = ["publish", "-", "--no-lint", "--routing-key", key, "--json"];
    let ran = verbatim.run_on(&arguments, b"hello\n").await;
    assert_eq!((ran.code, &ran.json()["confirmed"]), (0, &json!(1)), "{ran:?}");
    assert_eq!(ready(&verbatim, key).await, 2);
}

#[tokio::test]
async fn a_routing_key_without_a_binding_is_reported() {
    let (_env, verbatim) = prepared().await;
    let arguments = ["publish", "-", "--no-lint", "--routing-key", "no.binding"];
    let ran = verbatim.run_on(&arguments, b"hello\n").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("1 action went to domain.unrouted"), "{ran:?}");
    assert_eq!(ready(&verbatim, WorkQueue::Unrouted.name()).await, 1);
}

#[tokio::test]
async fn an_unroutable_action_is_reported_with_its_line() {
    let (env, verbatim) = prepared().await;
    for queue in ["conversation.session", "domain.unrouted"] {
        let path = format!("/api/queues/{}/{queue}", env.name);
        env.management().request("DELETE", &path, "").await.unwrap();
    }
    let closed = json!({
        "action_type": "conversation.session_closed", "tenant_id": "acme", "session_id": "s",
    });
    let actions = lines(&[body("s", "m-1", &json!({})), closed, body("s", "m-2", &json!({}))]);
    let ran = verbatim.run_on(&["publish", "-", "--json"], &actions).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let report = ran.json();
    assert_eq!((&report["confirmed"], &report["unroutable"]), (&json!(2), &json!(1)));
    assert_eq!(report["failures"][0]["line"], 2);
    let text = verbatim.run_on(&["publish", "-"], &actions).await.out;
    assert!(text.contains("`verbatim setup` creates them"), "{text}");
}

#[tokio::test]
async fn publishing_before_setup_suggests_setup() {
    let env = testkit::TestEnv::new().await;
    let actions = lines(&[body("s", "m-1", &json!({}))]);
    let ran = Verbatim::of(&env).run_on(&["publish", "-"], &actions).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.out.contains("0 of 1 action confirmed, 1 failed"), "{ran:?}");
    assert!(ran.out.contains("`verbatim setup` creates them"), "{ran:?}");
}

#[tokio::test]
async fn publishing_to_an_unreachable_broker_fails_at_once_and_names_it() {
    let verbatim = Verbatim::default().with("AMQP_URL", "amqp://user:hunter2@127.0.0.1:9/v");
    let actions = lines(&[body("s", "m-1", &json!({}))]);
    let ran = verbatim.run_on(&["publish", "-"], &actions).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("RabbitMQ at amqp://***@127.0.0.1:9/v: "), "{ran:?}");
    assert!(!ran.err.contains("hunter2"), "{ran:?}");
}

#[tokio::test]
async fn a_broker_that_becomes_unreachable_leaves_no_line_without_an_outcome() {
    let (env, verbatim) = prepared().await;
    let proxy = Proxy::before(&env.amqp_url).await.unwrap();
    let through = verbatim.clone().with("AMQP_URL", proxy.url());
    let mut child = through.command(&["publish", "-", "--no-lint", "--json"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let actions = |from: u32, to: u32| -> Vec<u8> {
        lines(&(from..to).map(|n| body("s", &format!("m-{n}"), &json!({}))).collect::<Vec<_>>())
    };
    let (first, rest) = (actions(0, 1_536), actions(1_536, 4_000));
    let stdin = tokio::task::spawn_blocking(move || {
        stdin.write_all(&first).unwrap();
        stdin
    });
    let mut stdin = stdin.await.unwrap();
    eventually("the first chunks to arrive", Duration::from_secs(20), async || {
        match ready(&verbatim, WorkQueue::SaveMessage.name()).await.as_u64() {
            Some(ready) if ready >= 512 => Ok(()),
            ready => Err(format!("{ready:?}")),
        }
    })
    .await;
    proxy.cut().await.unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        stdin.write_all(&rest).unwrap();
        drop(stdin);
        child.wait_with_output().unwrap()
    });
    let ended = ended.await.unwrap();
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let number = |name: &str| report[name].as_u64().unwrap();
    assert_eq!((number("lines"), number("unroutable")), (4_000, 0));
    assert_eq!(number("confirmed") + number("failed"), 4_000);
    assert!(number("confirmed") >= 512 && report["rabbitmq_unavailable"] == true);
    assert_eq!(report["failures"].as_array().unwrap().len() as u64, number("failed"));
    // Confirmed actions are in the queue; those with an unknown outcome may be.
    let stored = ready(&verbatim, WorkQueue::SaveMessage.name()).await;
    assert!(stored.as_u64().unwrap() >= number("confirmed"), "{stored}");
}

#[tokio::test]
async fn lint_needs_no_server_and_names_line_reason_and_field() {
    let verbatim = Verbatim::default();
    let actions = lines(&[body("s", "m-1", &json!({})), body("s", "", &json!({})), json!([1])]);
    let ran = verbatim.run_on(&["lint", "-", "--json"], &actions).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let findings = ran.json();
    assert_eq!((&findings["valid"], &findings["invalid"]), (&json!(1), &json!(2)));
    assert_eq!(findings["faults"][0]["field"], "message_id");
    assert_eq!(findings["faults"][1]["reason"], "malformed_json");

    let ran = verbatim.run_on(&["lint", "-"], &lines(&[body("s", "m-1", &json!({}))])).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "1 action valid\n"));
    let ran = verbatim.run(&["lint", "/nowhere/actions.jsonl"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("cannot read /nowhere/actions.jsonl"), "{ran:?}");
}
