//! Bodies that the workers refuse, the dead letters with their reasons, and the documented replies.

#![expect(clippy::unwrap_used, reason = "a failure here is the failure of the test")]

use std::collections::{BTreeMap, BTreeSet};

use broker::Publication;
use domain::decode::DEFAULT_MAX_BODY_BYTES;
use domain::failure::DeadLetterReason;
use domain::reply::ErrorType;
use fixtures::examples::malformed;
use serde_json::{Value, json};
use system_tests::{Counts, MIGRATION, SAVER, Scenario, ServerSet, key_of, message};
use testkit::clients::PYTHON;
use testkit::place::workspace;
use testkit::wait::eventually;

const SAVES: &str = "conversation.save_message";

/// A message whose body has exactly this many bytes.
fn of_bytes(id: &str, bytes: usize) -> (serde_json::Value, Vec<u8>) {
    let action = |content: String| message("size", "s", id, &json!({"content": content}));
    let frame = action(String::new()).to_string().len();
    let action = action("x".repeat(bytes - frame));
    let body = action.to_string().into_bytes();
    assert_eq!(body.len(), bytes);
    (action, body)
}

#[tokio::test]
async fn a_body_of_a_mebibyte_is_saved_and_one_byte_more_is_a_dead_letter() {
    assert_eq!(DEFAULT_MAX_BODY_BYTES, 1_048_576);
    let scenario = &ServerSet::shared().await.scenario;
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let (largest, body) = of_bytes("largest", 1_048_576);
    let (_, larger) = of_bytes("larger", 1_048_577);
    let publish = |body| Publication::action("conversation.save_message", body);
    agent.send(vec![publish(body), publish(larger)]).await;
    let dead_letter = "SELECT concat_ws('|', reason, length(body), queue) FROM dead_letters
                  WHERE reason = 'too_large' AND body LIKE '%\"tenant_id\":\"size\"%'::bytea";
    scenario.until_sql(dead_letter, "too_large|1048577|conversation.save_message").await;
    scenario.until_sql("SELECT count(*) FROM messages WHERE tenant_id = 'size'", "1").await;
    let messages = reader.both(&key_of(&largest)).await;
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].content.text(), largest["content"].as_str().unwrap());
}

#[tokio::test]
async fn every_malformed_body_becomes_a_dead_letter_with_its_reason_and_field() {
    let ServerSet { scenario, savers, collector, .. } = ServerSet::shared().await;
    let bad = malformed(DEFAULT_MAX_BODY_BYTES);
    assert!(bad.len() >= 40, "{}", bad.len());
    let name = |n: usize| format!("malformed-{n}");
    let publications = bad.iter().enumerate().map(|(n, bad)| Publication {
        message_id: name(n),
        ..Publication::action("conversation.save_message", bad.body.to_vec())
    });
    scenario.agent().send(publications.collect()).await;

    let ours = "FROM dead_letters WHERE properties->>'message_id' LIKE 'malformed-%'";
    scenario.until_sql(&format!("SELECT count(*) {ours}"), &bad.len().to_string()).await;
    let rows = format!(
        "SELECT json_object_agg(properties->>'message_id',
             json_build_array(reason, field, length(body), copies, attempts, queue, error <> '')) {ours}"
    );
    let rows: serde_json::Value = serde_json::from_str(&scenario.sql(&rows).await).unwrap();
    for (n, bad) in bad.iter().enumerate() {
        // U+0000 is replaced in text columns, which cannot hold it; the stored body keeps it.
        let field = bad.field.map(|field| field.replace('\0', "\u{fffd}"));
        let (reason, bytes) = (bad.reason, bad.body.len());
        let expected = json!([reason, field, bytes, 1, 1, "conversation.save_message", true]);
        assert_eq!(rows[name(n)], expected, "{}", bad.name);
    }
    let bodies = format!(
        "SELECT json_object_agg(properties->>'message_id', encode(body, 'hex')) {ours}
         AND length(body) < 1000"
    );
    let bodies: serde_json::Value = serde_json::from_str(&scenario.sql(&bodies).await).unwrap();
    for (n, bad) in bad.iter().enumerate().filter(|(_, bad)| bad.body.len() < 1000) {
        let hex: String = bad.body.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(bodies[name(n)], hex, "{} is stored byte for byte", bad.name);
    }

    assert_eq!(scenario.sql("SELECT count(*) FROM messages WHERE tenant_id = 't'").await, "0");
    #[expect(clippy::cast_precision_loss, reason = "some hundred dead letters")]
    let all = bad.len() as f64;
    let labels = [("queue", "conversation.save_message")];
    Counts::reach(collector, "verbatim_dead_letters_stored_total", &labels, all).await;
    eventually("the savers to count the dead letters", system_tests::LIMIT, async || {
        let (one, two) = tokio::join!(Counts::of(&savers[0]), Counts::of(&savers[1]));
        let labels = [labels[0], ("outcome", "dead_lettered")];
        let sum =
            [one, two].map(|it| it.sum("verbatim_deliveries_total", &labels)).iter().sum::<f64>();
        if sum >= all { Ok(()) } else { Err(sum.to_string()) }
    })
    .await;
}

#[test]
fn the_documented_error_types_are_those_of_the_code() {
    let names: Vec<&str> = ErrorType::ALL.map(ErrorType::as_str).into();
    let schema = "docs/contract/schemas/reply.conversation.save_message.json";
    let schema = std::fs::read(workspace().join(schema)).unwrap();
    let schema: Value = serde_json::from_slice(&schema).unwrap();
    let variants = schema["$defs"]["ErrorType"]["oneOf"].as_array().unwrap();
    let on_the_wire: Vec<&str> = variants.iter().map(|it| it["const"].as_str().unwrap()).collect();
    assert_eq!(names, on_the_wire, "ErrorType::ALL has every variant");

    let document = document();
    let documented = paragraph(&document, "`error_type` is one of ");
    assert_eq!(code_words(documented).into_iter().skip(1).collect::<Vec<_>>(), names);
}

#[tokio::test]
async fn whoever_names_a_reply_queue_gets_one_reply() {
    let scenario = Scenario::new().await;
    let rabbit = scenario.rabbit();
    rabbit.queue("replies").await;
    // An erasure after all messages of the user, and a message that PostgreSQL refuses as invalid.
    let prepare = "INSERT INTO tombstones (tenant_id, kind, subject, erased_at)
             VALUES ('replies', 'user', 'erased-user', '2026-11-21T00:00:00Z');
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             RAISE EXCEPTION 'refused by the test' USING ERRCODE = '22023';
         END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON message_rows FOR EACH ROW
             WHEN (NEW.id = 'refused') EXECUTE FUNCTION refuse()";
    scenario.sql(prepare).await;
    let workers = [scenario.start(SAVER).await, scenario.start(MIGRATION).await];
    let send = async |key: &str, correlation: &str, body: &str| {
        let properties = json!({"reply_to": "replies", "correlation_id": correlation});
        rabbit.publish(key, &properties, body).await;
    };
    let publish = async |correlation: &str, body: &str| send(SAVES, correlation, body).await;
    let body = |id: &str, extra: Value| message("replies", "s", id, &extra).to_string();

    publish("saved", &body("m1", json!({}))).await;
    let mut replies = rabbit.bodies("replies", 1).await;
    publish("not JSON", "{").await;
    publish("invalid role", &body("m2", json!({"role": "none"}))).await;
    publish("duplicate", &body("m1", json!({}))).await;
    publish("conflict", &body("m1", json!({"content": "different"}))).await;
    publish("erased", &body("m3", json!({"user_id": "erased-user"}))).await;
    publish("refused", &body("refused", json!({}))).await;
    let session = |action: &str| {
        json!({"action_type": action, "tenant_id": "replies", "session_id": "s"}).to_string()
    };
    let (opened, erase) = ("conversation.session_opened", "conversation.erase");
    send(opened, "opened", &session(opened)).await;
    send(erase, "unhandled", &session(erase)).await;
    replies.extend(rabbit.bodies("replies", 8).await);
    // An erased message is no dead letter; the other refusals are.
    let dead_letters = [("conversation.save_message.dlq", 4), ("conversation.session.dlq", 1)];
    eventually("5 dead letters", system_tests::LIMIT, async || match scenario.queued().await {
        queued if queued == dead_letters => Ok(()),
        queued => Err(format!("{queued:?}")),
    })
    .await;
    scenario.drain(workers).await;
    assert_eq!(scenario.sql("SELECT string_agg(id, ',') FROM messages").await, "m1");

    let outcome = |reply: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let outcome = match reply["success"].as_bool().unwrap() {
            true => reply["data"].get("duplicate").map_or("{}".to_owned(), Value::to_string),
            false => text(&reply["error"]["error_type"]),
        };
        (text(&reply["correlation_id"]), outcome)
    };
    assert_eq!(replies.len(), 9, "{replies:#?}");
    let outcomes: BTreeMap<String, String> = replies.iter().map(outcome).collect();
    let expected = [
        ("saved", "false"),
        ("not JSON", "malformed_json"),
        ("invalid role", "schema"),
        ("duplicate", "true"),
        ("conflict", "conflict"),
        ("erased", "erased"),
        ("refused", "schema"),
        ("opened", "{}"),
        ("unhandled", "unknown_action"),
    ];
    let expected = expected.map(|(name, outcome)| (name.to_owned(), outcome.to_owned()));
    assert_eq!(outcomes, BTreeMap::from(expected));
}

#[test]
fn the_errors_that_this_version_sends_are_documented() {
    let reasons = DeadLetterReason::ALL.map(|reason| ErrorType::from(reason).as_str());
    let sent: BTreeSet<&str> = reasons.into_iter().chain([ErrorType::Erased.as_str()]).collect();
    let document = document();
    let table = paragraph(&document, "| `error_type` | why |");
    let rows = table.lines().skip(2).filter_map(|row| row.split('|').nth(1));
    assert_eq!(rows.flat_map(code_words).collect::<BTreeSet<_>>(), sent);
}

fn document() -> String {
    std::fs::read_to_string(workspace().join("docs/contract/README.md")).unwrap()
}

/// The first paragraph that begins with these words.
fn paragraph<'a>(text: &'a str, beginning: &str) -> &'a str {
    let found = text.split("\n\n").find(|it| it.starts_with(beginning));
    found.unwrap_or_else(|| panic!("docs/contract/README.md: no paragraph `{beginning}…`"))
}

/// The texts between backticks.
fn code_words(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The program of a language in the contract that publishes actions of several messages, lists and deletions.
fn program(language: &str) -> String {
    let contract = std::fs::read_to_string(workspace().join("docs/contract/README.md")).unwrap();
    let begin = format!("```{language}\n");
    let mut programs = contract.split(&begin).skip(1).filter_map(|rest| rest.split("\n```").next());
    programs.find(|program| program.contains("conversation.sync_messages")).unwrap().to_owned()
}

#[tokio::test]
async fn the_program_in_python_saves_a_turn_and_a_list_and_deletes_a_message() {
    let scenario = Scenario::new().await;
    let workers = tokio::join!(scenario.start(SAVER), scenario.start(MIGRATION));
    let mut python = std::process::Command::new(PYTHON);
    python.args(["-c", &program("python")]).env("AMQP_URL", &scenario.amqp_url);
    let ran = tokio::task::spawn_blocking(move || python.output()).await.unwrap().unwrap();
    let printed = String::from_utf8_lossy(&ran.stdout).into_owned();
    let expected =
        "[('py-1', None), ('py-2', None)]\n3 new, 0 known, exact\n1 new, 3 known, exact\nTrue\n";
    assert_eq!(printed, expected, "{}", String::from_utf8_lossy(&ran.stderr));
    let stored = "SELECT conversation_id || ' ' || string_agg(content, ' ' ORDER BY created_at) FROM messages
                  GROUP BY conversation_id ORDER BY conversation_id";
    assert_eq!(
        scenario.sql(stored).await,
        "conv-py Yes, at 11:00.\nconv-py-list Is Thursday free? Yes, at 11:00. Book it. Done."
    );
    scenario.finish([workers.0, workers.1]).await;
}
