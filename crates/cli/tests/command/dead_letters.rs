//! `verbatim dead-letters`.

use std::time::Duration;

use database::{CollectedDeadLetter, FailedMessage};
use domain::failure::DeadLetterReason;
use fixtures::{body, database};
use serde_json::{Value, json};
use testkit::TestEnv;
use testkit::wait::eventually;
use uuid::Uuid;

use crate::support::prepared;

/// A dead letter with this reason, tenant and body.
fn dead_letter(
    id: u128,
    reason: DeadLetterReason,
    tenant: &str,
    body: &Value,
) -> CollectedDeadLetter {
    let mut collected = fixtures::dead_letter(id);
    collected.dead_letter.reason = reason.to_string();
    collected.dead_letter.tenant_id = Some(tenant.to_owned());
    collected.message = FailedMessage {
        body: body.to_string().into(),
        properties: json!({"content_type": "application/json"}),
        headers: json!({"x-custom": "own"}),
        left_out: Some(json!({"headers": 1, "names": ["x-large"]})),
        delivery: json!({"headers": {"x-verbatim-queue": "conversation.save_message"}}),
    };
    collected
}

#[tokio::test]
async fn dead_letters_are_counted_by_queue_and_reason_and_listed_by_filter() {
    let (env, verbatim) = prepared().await;
    let nothing = verbatim.run(&["dead-letters", "list"]).await;
    assert_eq!((nothing.code, nothing.out.as_str()), (0, "no open dead letters\n"));

    let bad = body("s", "m-1", &json!({"role": "bot"}));
    let dead_letters = [
        dead_letter(1, DeadLetterReason::Schema, "acme", &bad),
        dead_letter(2, DeadLetterReason::Schema, "umbrella", &bad),
        dead_letter(3, DeadLetterReason::Conflict, "acme", &bad),
    ];
    database(&env.database_url).store_dead_letters(&dead_letters, &[]).await.unwrap();
    let discard = format!(
        "UPDATE dead_letters SET status = 'discarded' WHERE id = '{}'",
        dead_letters[2].dead_letter.id
    );
    env.psql(&discard).await.unwrap();

    let count = async |arguments: &[&str]| {
        let arguments = [&["dead-letters", "list"], arguments].concat();
        verbatim.json(&arguments).await["dead_letters"].as_array().unwrap().len()
    };
    assert_eq!(count(&[]).await, 2, "only open ones by default");
    assert_eq!(count(&["--status", "all"]).await, 3);
    assert_eq!(count(&["--status", "discarded"]).await, 1);
    assert_eq!(count(&["--tenant", "acme"]).await, 1);
    assert_eq!(count(&["--status", "all", "--reason", "conflict"]).await, 1);
    assert_eq!(count(&["--queue", "conversation.session"]).await, 0);
    assert_eq!(count(&["--limit", "1"]).await, 1);

    let page = verbatim.json(&["dead-letters", "list", "--limit", "1"]).await;
    assert_eq!((&page["total"], page["open"][0]["dead_letters"].as_u64()), (&json!(2), Some(2)));
    let next = page["next"].as_str().unwrap();
    let rest = verbatim.json(&["dead-letters", "list", "--limit", "1", "--before", next]).await;
    assert_ne!(rest["dead_letters"][0]["id"], page["dead_letters"][0]["id"]);
    assert_eq!(rest["next"], Value::Null, "the last page is exactly full");
    let last = rest["dead_letters"][0]["id"].as_str().unwrap();
    assert_eq!(count(&["--before", last]).await, 0);

    let elsewhere =
        ["dead-letters", "list", "--queue", "conversation.session", "--reason", "expired"];
    let text = verbatim.run(&elsewhere).await.out;
    assert!(text.contains("   2  conversation.save_message  schema\n"), "{text}");
    assert!(text.ends_with("\nno dead letter matches the filters\n"), "{text}");

    let listed = verbatim.json(&["dead-letters", "list", "--tenant", "umbrella"]).await;
    let listed = &listed["dead_letters"];
    assert_eq!(listed[0]["id"], dead_letters[1].dead_letter.id.to_string());
    assert_eq!(listed[0]["body_bytes"], dead_letters[1].message.body.len());
    assert!(listed[0].get("body").is_none(), "bodies may be large: {listed}");
    let text = verbatim.run(&["dead-letters", "list"]).await.out;
    assert!(text.contains("   2  conversation.save_message  schema\n"), "{text}");
    assert!(text.contains(&dead_letters[0].dead_letter.id.to_string()), "{text}");
}

#[tokio::test]
async fn a_dead_letter_is_shown_with_its_body_and_a_suggested_fix() {
    let (env, verbatim) = prepared().await;
    let bad = body("s", "m-1", &json!({"role": "bot"}));
    let dead_letter = dead_letter(7, DeadLetterReason::Schema, "acme", &bad);
    database(&env.database_url)
        .store_dead_letters(std::slice::from_ref(&dead_letter), &[])
        .await
        .unwrap();

    let id = dead_letter.dead_letter.id.to_string();
    let shown = verbatim.json(&["dead-letters", "show", &id]).await;
    let body: Value = serde_json::from_str(shown["body"].as_str().unwrap()).unwrap();
    assert_eq!(body, bad);
    assert_eq!(shown["headers"], dead_letter.message.headers);
    assert_eq!(shown["left_out"]["names"], json!(["x-large"]));
    assert!(shown["suggestion"]["text"].as_str().unwrap().contains("role to \"assistant\""));
    let text = verbatim.run(&["dead-letters", "show", &id]).await.out;
    assert!(text.contains("\n    \"role\": \"bot\""), "{text}");
    assert!(
        text.contains(&format!("verbatim dead-letters edit {id} --apply-suggestion")),
        "{text}"
    );
}

#[tokio::test]
async fn an_unknown_dead_letter_exits_with_1() {
    let (_env, verbatim) = prepared().await;
    let ran = verbatim.run(&["dead-letters", "show", &Uuid::nil().to_string()]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("there is no dead letter 00000000"), "{ran:?}");
    let ran = verbatim.run(&["dead-letters", "show", "seven"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
}

/// Dead letters with these ids and otherwise the same, in the table.
async fn stored(env: &TestEnv, ids: &[u128], body: &Value) {
    let dead_letters: Vec<_> =
        ids.iter().map(|id| dead_letter(*id, DeadLetterReason::Schema, "acme", body)).collect();
    database(&env.database_url).store_dead_letters(&dead_letters, &[]).await.unwrap();
}

fn id(n: u128) -> String {
    Uuid::from_u128(n).to_string()
}

/// The audit log, one line per entry.
async fn audited(env: &TestEnv) -> String {
    let log = "SELECT string_agg(concat_ws(' ', action, actor, tenant_id,
                   CASE WHEN action LIKE 'dead_letter.%' THEN right(subject, 2) END,
                   (SELECT string_agg(key || '=' || value, ' ' ORDER BY key) FROM json_each_text(detail)
                    WHERE key NOT IN ('run', 'selection'))), E'\\n' ORDER BY id) FROM audit_log";
    env.psql(log).await.unwrap()
}

#[tokio::test]
async fn dead_letters_are_grouped_by_error_without_values_and_filtered() {
    let (env, verbatim) = prepared().await;
    let bad = body("s", "m-1", &json!({"role": "bot"}));
    let with_error = |id, error: &str| {
        let mut collected = dead_letter(id, DeadLetterReason::Schema, "acme", &bad);
        error.clone_into(&mut collected.dead_letter.error);
        collected
    };
    let mut failed_again = with_error(5, "`role` must be a role, but is the number 5");
    failed_again.dead_letter.replay_count = 1;
    failed_again.dead_letter.tenant_id = None;
    let dead_letters = [
        with_error(1, "`role` must be a role, but is the string \"bot\""),
        with_error(2, "`role` must be a role, but is the string \"a \\\" quote\""),
        with_error(3, "`role` must be a role, but is the number 17"),
        with_error(4, "`role` must be a role, but is the number 4"),
        failed_again,
    ];
    database(&env.database_url).store_dead_letters(&dead_letters, &[]).await.unwrap();
    let found = verbatim.json(&["dead-letters", "list", "--group"]).await;
    assert_eq!(found["total"], 5);
    let groups = found["groups"].as_array().unwrap().iter();
    let groups: Vec<_> = groups
        .map(|it| {
            (
                it["dead_letters"].as_i64(),
                it["failed_again"].as_i64(),
                it["error"].as_str().unwrap(),
            )
        })
        .collect();
    let expected = [
        (Some(3), Some(1), "`role` must be a role, but is the number #"),
        (Some(2), Some(0), "`role` must be a role, but is the string \"…\""),
    ];
    assert_eq!(groups, expected);

    let total = async |arguments: &[&str]| {
        let arguments = [&["dead-letters", "list"], arguments].concat();
        verbatim.json(&arguments).await["total"].as_u64().unwrap()
    };
    assert_eq!(total(&["--error", "THE STRING"]).await, 2);
    assert_eq!(total(&["--error", "100%"]).await, 0, "a text, not a pattern");
    assert_eq!(total(&["--field", "role"]).await, 5);
    assert_eq!(total(&["--replayed-before", "yes"]).await, 1);
    assert_eq!(total(&["--replayed-before", "no", "--tenant", "acme"]).await, 4);
    assert_eq!(total(&["--until", "2026-11-20T10:00:00Z"]).await, 0);
    assert_eq!(total(&["--since", "2026-11-20T10:00:00Z"]).await, 5);
    assert_eq!(total(&["--action", "conversation.save_message", "--message", "m-1"]).await, 0);
}

#[tokio::test]
async fn a_grouped_error_keeps_names_with_numbers_and_replaces_numbers_and_ids() {
    let (env, verbatim) = prepared().await;
    let uuid = Uuid::from_u128(0x4d1e_6f3a_0d2b_5c8e_9b1a_7f1e_2d3c_4b5a);
    let errors = [
        ("the body is not UTF-8 at byte 4", "the body is not UTF-8 at byte #"),
        ("UTF-16 and SHA-256 of format v1.2, x86_64", "UTF-16 and SHA-256 of format v1.2, x86_64"),
        ("`tool_calls[0].id` is -1.5, not 7e3 or 1-5", "`tool_calls[#].id` is -#, not # or #-#"),
        (&*format!("{uuid} (os error 111)"), "# (os error #)"),
        ("10.0.0.5:5432 since 2026-11-20T10:00:00Z", "#:# since #-#-#:#:#"),
        ("the string \"UTF-8 17\"", "the string \"…\""),
    ];
    let bad = body("s", "m-1", &json!({"role": "bot"}));
    let dead_letters: Vec<_> = (1..)
        .zip(errors)
        .map(|(id, (error, _))| {
            let mut collected = dead_letter(id, DeadLetterReason::Schema, "acme", &bad);
            error.clone_into(&mut collected.dead_letter.error);
            collected
        })
        .collect();
    database(&env.database_url).store_dead_letters(&dead_letters, &[]).await.unwrap();
    let found = verbatim.json(&["dead-letters", "list", "--group"]).await;
    let groups = found["groups"].as_array().unwrap().iter();
    let mut groups: Vec<_> = groups.map(|it| it["error"].as_str().unwrap()).collect();
    groups.sort_unstable();
    let mut expected = errors.map(|(_, pattern)| pattern);
    expected.sort_unstable();
    assert_eq!(groups, expected);
}

#[tokio::test]
async fn an_edit_keeps_the_original_body_and_must_pass_the_workers_validator() {
    let (env, verbatim) = prepared().await;
    let bad = body("s", "m-1", &json!({"role": "bot", "tokens_estimate": -1}));
    stored(&env, &[7], &bad).await;
    let (id, verbatim) = (id(7), verbatim.with("VERBATIM_ACTOR", "ops"));
    let edit = async |arguments: &[&str]| {
        verbatim.run(&[&["dead-letters", "edit", &id], arguments].concat()).await
    };
    let ran = edit(&["--set", "role=assistant"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("`tokens_estimate`"), "the next fault is reported: {ran:?}");
    let ran = edit(&["--set", "role.x=1"]).await;
    assert!(ran.code == 1 && ran.err.contains("there is no `role.x`"), "{ran:?}");
    let ran = edit(&[]).await;
    assert!(ran.code == 2 && ran.err.contains("no change given"), "{ran:?}");
    let nothing = "SELECT concat_ws('|', edited_body, edited_at, edited_by) FROM dead_letters";
    assert_eq!(env.psql(nothing).await.unwrap(), "");

    let ran = edit(&["--set", "role=assistant", "--set", "tokens_estimate=1"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("\"tokens_estimate\": 1"), "{ran:?}");
    let shown = verbatim.json(&["dead-letters", "show", &id]).await;
    let parsed = |name: &str| serde_json::from_str::<Value>(shown[name].as_str().unwrap()).unwrap();
    assert_eq!((parsed("body"), &shown["edited_by"]), (bad, &json!("ops")));
    assert_eq!(parsed("edited_body")["role"], "assistant");
    let ran = edit(&["--set", "role=assistant"]).await;
    assert!(ran.code == 1 && ran.err.contains("changes nothing"), "{ran:?}");
    let whole = body("s", "m-1", &json!({})).to_string();
    let arguments = ["dead-letters", "edit", &id, "--body", "-"];
    let ran = verbatim.run_on(&arguments, whole.as_bytes()).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(edit(&["--revert"]).await.code, 0);
    assert_eq!(env.psql(nothing).await.unwrap(), "");
    let expected = format!(
        "dead_letter.edit ops acme 07 bytes={} fields=[\"role\",\"tokens_estimate\"]\n\
         dead_letter.edit ops acme 07 bytes={} fields=[]\n\
         dead_letter.revert ops acme 07 fields=[]",
        shown["edited_body"].as_str().unwrap().len(),
        whole.len()
    );
    assert_eq!(audited(&env).await, expected);
}

#[tokio::test]
async fn bodies_with_a_byte_order_mark_and_with_what_cannot_be_stored_are_corrected_in_bulk() {
    let (env, verbatim) = prepared().await;
    let good = body("s", "m-1", &json!({"content": "hi"})).to_string();
    let marked = format!("\u{feff}{good}").into_bytes();
    let utf16 = good.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let nul = good.replace("hi", "h\\u0000i").into_bytes();
    let half = good.replace("hi", "\\ud83d").into_bytes();
    let bodies: [Vec<u8>; 5] = [marked, utf16, nul, half, b"hello".to_vec()];
    let dead_letters: Vec<_> = (1..)
        .zip(&bodies)
        .map(|(id, body)| {
            let mut collected = dead_letter(id, DeadLetterReason::Schema, "acme", &json!({}));
            collected.message.body = body.clone().into();
            collected
        })
        .collect();
    database(&env.database_url).store_dead_letters(&dead_letters, &[]).await.unwrap();
    let verbatim = verbatim.with("VERBATIM_ACTOR", "ops");
    let edit = async |arguments: &[&str]| {
        let arguments = [&["dead-letters", "edit", "--json"], arguments].concat();
        verbatim.run(&arguments).await.json()
    };
    let counts =
        |edits: &Value| [&edits["edited"], &edits["failed"]].map(|it| it.as_u64().unwrap());

    let correcting = ["--all", "--to-utf8", "--replace-unstorable=?"];
    let preview = edit(&[&correcting[..], &["--dry-run"]].concat()).await;
    assert_eq!((counts(&preview), &preview["dry_run"]), ([4, 0], &json!(true)), "{preview}");
    let one = edit(&[&id(1), "--to-utf8", "--dry-run"]).await;
    assert_eq!(one["edited_body"], good, "{one}");
    let touched = "SELECT count(edited_body) + (SELECT count(*) FROM audit_log) FROM dead_letters";
    assert_eq!(env.psql(touched).await.unwrap(), "0");

    let edits = edit(&correcting).await;
    assert_eq!((counts(&edits), &edits["unchanged"]), ([4, 0], &json!(1)), "{edits}");
    let edited = "SELECT string_agg(convert_from(edited_body, 'UTF8'), E'\\n' ORDER BY id) FROM dead_letters";
    let expected = [&good, &good, &good.replace("hi", "h?i"), &good.replace("hi", "?")];
    assert_eq!(env.psql(edited).await.unwrap(), expected.map(String::as_str).join("\n"));
    let kept = "SELECT count(*) FROM dead_letters WHERE body = edited_body";
    assert_eq!(env.psql(kept).await.unwrap(), "0", "the originals stay");

    let ran = verbatim.run(&["dead-letters", "edit", "--all", "--revert"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let suggested = edit(&["--all", "--apply-suggestion"]).await;
    assert_eq!(counts(&suggested), [4, 1], "{suggested}");
    let replaced = env.psql(edited).await.unwrap();
    assert!(replaced.contains("h\u{fffd}i"), "{replaced}");
}

#[tokio::test]
async fn dead_letters_are_discarded_with_a_reason_and_restored() {
    let (env, verbatim) = prepared().await;
    stored(&env, &[1, 2, 3], &body("s", "m-1", &json!({"role": "bot"}))).await;
    let verbatim = verbatim.with("VERBATIM_ACTOR", "ops");
    let ran = verbatim.run(&["dead-letters", "discard", "--all"]).await;
    assert!(ran.code == 2 && ran.err.contains("--why"), "{ran:?}");
    let ran = verbatim.run(&["dead-letters", "discard", "--why", "because"]).await;
    assert!(ran.code == 2 && ran.err.contains("no dead letters selected"), "{ran:?}");
    // One is claimed by a running replay.
    let claim =
        "UPDATE dead_letters SET replay_lease_until = now() + interval '1 min' WHERE id = '";
    env.psql(&format!("{claim}{}'", id(3))).await.unwrap();
    let arguments = ["dead-letters", "discard", &id(1), &id(3), &id(9), "--why", "a test"];
    let ran = verbatim.run(&arguments).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let expected = "1 dead letter discarded, 2 skipped (not open, unknown, or claimed by a running replay)\nundo: `verbatim dead-letters restore`\n";
    assert_eq!(ran.out, expected);
    let states = "SELECT string_agg(concat_ws(' ', status, status_reason), ',' ORDER BY id) FROM dead_letters";
    assert_eq!(env.psql(states).await.unwrap(), "discarded a test,open,open");
    let ran = verbatim.run(&["dead-letters", "edit", &id(1), "--apply-suggestion"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");

    let all = verbatim.json(&["dead-letters", "discard", "--tenant", "acme", "--why", "all"]).await;
    assert_eq!((&all["dead_letters"], &all["skipped"]), (&json!(1), &json!(0)));
    let ran = verbatim.run(&["dead-letters", "restore", "--all"]).await;
    assert!(ran.code == 2 && ran.err.contains("--status discarded"), "{ran:?}");
    let ran = verbatim.run(&["dead-letters", "restore", &id(1)]).await;
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "1 dead letter open again\nnext: `verbatim dead-letters replay`\n")
    );
    assert_eq!(env.psql(states).await.unwrap(), "open,discarded all,open");
    let expected = "dead_letters.discard ops dead_letters=2 why=a test\n\
                    dead_letter.discard ops acme 01 previous_status=open reason=schema why=a test\n\
                    dead_letters.discard ops dead_letters=2 why=all\n\
                    dead_letter.discard ops acme 02 previous_status=open reason=schema why=all\n\
                    dead_letters.restore ops dead_letters=1\n\
                    dead_letter.restore ops acme 01 previous_status=discarded reason=schema";
    assert_eq!(audited(&env).await, expected);
}

#[tokio::test]
async fn an_export_has_every_dead_letter_once_in_a_file_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let (env, verbatim) = prepared().await;
    let ids: Vec<u128> = (1..=100).collect();
    stored(&env, &ids, &body("s", "m-1", &json!({"role": "bot"}))).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dead-letters.jsonl");
    let output = ["--output", file.to_str().unwrap()];
    let arguments = [&["dead-letters", "export", "--all"][..], &output].concat();
    let ran = verbatim.run(&arguments).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{ran:?}");
    let lines = std::fs::read_to_string(&file).unwrap();
    let exported: std::collections::BTreeSet<String> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((lines.lines().count(), exported.len()), (100, 100));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let ran = verbatim.run(&arguments).await;
    assert!(ran.code == 2 && ran.err.contains("cannot create"), "nothing is overwritten: {ran:?}");
    let ran = verbatim.run(&["dead-letters", "export", &id(5)]).await;
    assert_eq!((ran.code, ran.out.lines().count()), (0, 1));
    let log = "SELECT string_agg(action || ' ' || (detail->>'dead_letters'), ', ' ORDER BY id) FROM audit_log";
    assert_eq!(env.psql(log).await.unwrap(), "dead_letters.export 100, dead_letters.export 1");
}

#[tokio::test]
async fn a_dry_run_reports_what_would_be_published_and_publishes_nothing() {
    let (env, verbatim) = prepared().await;
    stored(&env, &[1], &body("s", "m-1", &json!({"role": "bot"}))).await;
    stored(&env, &[2], &body("s", "m-2", &json!({}))).await;
    let state = "SELECT md5(string_agg(d::text, '')) || (SELECT count(*) FROM audit_log) FROM dead_letters d";
    let before = env.psql(state).await.unwrap();
    let plan = verbatim.json(&["dead-letters", "replay", "--all", "--dry-run"]).await;
    assert_eq!((&plan["matched"], &plan["refused"]), (&json!(2), &json!(1)));
    let dead_letters = plan["dead_letters"].as_array().unwrap();
    let of = |n: u128| dead_letters.iter().find(|it| it["id"] == id(n)).unwrap();
    assert_eq!((&of(1)["refused_as"], &of(1)["field"]), (&json!("schema"), &json!("role")));
    assert_eq!(of(2)["refused_as"], Value::Null);
    assert_eq!(of(2)["message_id"], "m-2");
    assert_eq!(of(2)["queue"], "conversation.save_message");
    assert_eq!(env.psql(state).await.unwrap(), before);
    let queues = verbatim.json(&["queues"]).await;
    assert!(queues.as_array().unwrap().iter().all(|queue| queue["ready"] == 0), "{queues}");
}

#[tokio::test]
async fn a_replay_without_rabbitmq_fails_at_once_and_changes_no_dead_letter() {
    let (env, verbatim) = prepared().await;
    stored(&env, &[1], &body("s", "m-1", &json!({}))).await;
    let state = "SELECT md5(string_agg(d::text, '')) || (SELECT count(*) FROM audit_log) FROM dead_letters d";
    let before = env.psql(state).await.unwrap();
    let unreachable = verbatim.with("AMQP_URL", "amqp://user:hunter2@127.0.0.1:9/v");
    let ran = unreachable.run(&["dead-letters", "replay", "--all"]).await;
    assert!(ran.code == 3 && ran.err.contains("RabbitMQ at amqp://***@127.0.0.1:9/v"), "{ran:?}");
    assert_eq!(env.psql(state).await.unwrap(), before);
}

#[tokio::test]
async fn ctrl_c_stops_a_replay_between_dead_letters_with_a_report() {
    let (env, verbatim) = prepared().await;
    let ids: Vec<u128> = (1..=200).collect();
    stored(&env, &ids, &body("s", "m-1", &json!({}))).await;
    let arguments = ["dead-letters", "replay", "--all", "--rate", "20", "--watch", "0s", "--json"];
    let child = verbatim.command(&arguments).spawn().unwrap();
    let replayed = "SELECT count(*) FROM dead_letters WHERE status = 'replayed'";
    eventually(
        "the first dead letters to be replayed",
        Duration::from_secs(20),
        async || match env.psql(replayed).await.unwrap().as_str() {
            "0" => Err("none is replayed".to_owned()),
            _ => Ok(()),
        },
    )
    .await;
    let pid = child.id().to_string();
    let ended = tokio::task::spawn_blocking(move || {
        assert!(
            std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success()
        );
        child.wait_with_output().unwrap()
    });
    let ended = ended.await.unwrap();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!((&report["ended"], &report["matched"]), (&json!("interrupted"), &json!(200)));
    let states = "SELECT concat_ws('|', count(*) FILTER (WHERE status = 'replayed'),
                      count(replay_lease_until)) FROM dead_letters";
    assert_eq!(env.psql(states).await.unwrap(), format!("{}|0", report["replayed"]));
}

#[tokio::test]
async fn a_dead_letter_that_another_replay_has_claimed_is_skipped() {
    let (env, verbatim) = prepared().await;
    stored(&env, &[1], &body("s", "m-1", &json!({}))).await;
    let ran = verbatim.run(&["dead-letters", "replay", &id(9)]).await;
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (1, "nothing was replayed: no open dead letter matches\n")
    );
    let lease = "UPDATE dead_letters SET replay_lease_until = now() + interval '1 min'";
    env.psql(lease).await.unwrap();
    let ran = verbatim.run(&["dead-letters", "replay", &id(1)]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.out.starts_with(
            "0 of 1 dead letter replayed, 1 skipped\n1 skipped because another run holds them"
        ),
        "{ran:?}"
    );
    env.psql("UPDATE dead_letters SET replay_lease_until = now()").await.unwrap();
    let ran = verbatim.run(&["dead-letters", "replay", &id(1), "--watch", "0s"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "1 of 1 dead letter replayed\n"), "{ran:?}");
}

#[tokio::test]
async fn many_dead_letters_with_one_fault_are_edited_together_and_failures_are_listed() {
    let (env, verbatim) = prepared().await;
    let ids: Vec<u128> = (1..=40).collect();
    stored(&env, &ids, &body("s", "m-1", &json!({"role": "bot"}))).await;
    stored(&env, &[50], &body("s", "m-1", &json!({"role": "nobody"}))).await;
    let ran = verbatim.run(&["dead-letters", "edit", "--all"]).await;
    assert!(ran.code == 2 && ran.err.contains("several dead letters need one of"), "{ran:?}");
    let arguments = ["dead-letters", "edit", "--field", "role", "--apply-suggestion", "--json"];
    let ran = verbatim.run(&arguments).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let edits = ran.json();
    assert_eq!((&edits["edited"], &edits["failed"]), (&json!(40), &json!(1)));
    assert_eq!(edits["failures"][0]["id"], id(50));
    let copies = "SELECT concat_ws('|', count(*), bool_and(convert_from(edited_body, 'UTF8')
                      = replace(convert_from(body, 'UTF8'), 'bot', 'assistant')))
                  FROM dead_letters WHERE edited_body IS NOT NULL";
    assert_eq!(env.psql(copies).await.unwrap(), "40|t");
    let again = verbatim.run(&["dead-letters", "edit", &id(1), &id(2), "--apply-suggestion"]).await;
    assert_eq!((again.code, again.out.as_str()), (0, "0 dead letters edited, 2 unchanged\n"));
    let lines = "SELECT concat_ws('|', count(*), count(DISTINCT detail->>'run')) FROM audit_log
                 WHERE action = 'dead_letter.edit'";
    assert_eq!(env.psql(lines).await.unwrap(), "40|1");
}
