//! `verbatim dead-letters show`: one dead letter with its history and a suggested fix. Read-only.

use clap::Args;
use database::{AuditEntry, DeadLetter, DeadLetterDetail, DeadLetterStatus, DeadLetterSummary};
use dead_letters::{DeadLetterValidator, DeadLetterWithHistory, Step, Suggestion};
use domain::json;
use domain::time::Timestamp;
use serde::Serialize;
use serde_json::Value;
use service::settings::DatabaseSettings;
use stores::DatabaseServer;
use uuid::Uuid;

use super::dead_letters_selection::dead_letters;
use crate::commands::lint::BodyLimit;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Text, Tone, ago, moment, one_line, plural, shortened};

/// The most bytes of a body, or of a table of headers, as it is printed, without --full: some 300 lines.
pub(super) const SHOWN_BYTES: usize = 16 << 10;

/// Shows a dead letter: body, headers, history and a suggested fix
#[derive(Debug, Args)]
#[command(override_usage = "verbatim dead-letters show [OPTIONS] <ID>")]
#[command(after_help = "\
Examples:
  verbatim dead-letters show 4d1e6f3a-0d2b-5c8e-9b1a-7f1e2d3c4b5a
  verbatim dead-letters show ID --full | less
  verbatim dead-letters show ID --json | jq -r .body > action.json

Exit code 1: there is no such dead letter.")]
pub(crate) struct DeadLettersShow {
    /// Id of the dead letter
    #[arg(value_name = "ID")]
    id: Uuid,

    /// Print the whole body and all headers, however large. JSON always has all of it
    #[arg(long)]
    full: bool,

    #[command(flatten)]
    limit: BodyLimit,

    #[command(flatten)]
    database: DatabaseSettings,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    detail: &'a DeadLetterDetail,
    /// The dead letters as which its replays failed again.
    failed_again_as: Vec<Uuid>,
    audit: &'a [AuditEntry],
    suggestion: Option<Advice>,
    /// The next commands for this dead letter.
    next: Vec<String>,
}

/// A suggested fix, with the command that applies it, if there is one.
#[derive(Debug, Serialize)]
struct Advice {
    text: String,
    command: Option<String>,
}

impl DeadLettersShow {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let server = DatabaseServer::open(&self.database).await?;
        let found = dead_letters(&server).with_history(self.id).await;
        let found = found.map_err(|error| server.failure(&error))?;
        let details = found.ok_or_else(|| no_such_dead_letter(self.id))?;
        let shown = shown(&details, self.limit.dead_letters());
        let body_bytes = if self.full { usize::MAX } else { SHOWN_BYTES };
        output.show(&shown, |out| text(&details, &shown, body_bytes, out))?;
        Ok(Exit::Success)
    }
}

pub(super) fn no_such_dead_letter(id: Uuid) -> Failure {
    let what = format!("there is no dead letter {id}");
    Failure::problem(what, "`verbatim dead-letters list --status all` lists all dead letters")
}

fn shown(details: &DeadLetterWithHistory, validator: DeadLetterValidator) -> Shown<'_> {
    let detail = &details.detail;
    let id = detail.dead_letter.id;
    Shown {
        failed_again_as: details.after.iter().map(|it| it.dead_letter.id).collect(),
        audit: &details.audit,
        suggestion: validator.suggest(detail).map(|it| advice(id, it)),
        next: next(id, detail.state.status),
        detail,
    }
}

fn advice(id: Uuid, suggestion: Suggestion) -> Advice {
    let command = match suggestion.step {
        Step::Set { .. } | Step::Correct(_) => {
            Some(format!("verbatim dead-letters edit {id} --apply-suggestion"))
        }
        Step::Replay => Some(format!("verbatim dead-letters replay {id}")),
        Step::Manual => None,
    };
    Advice { text: suggestion.text, command }
}

/// The commands for a dead letter in its status.
fn next(id: Uuid, status: DeadLetterStatus) -> Vec<String> {
    let command = |verb: &str| format!("verbatim dead-letters {verb} {id}");
    match status {
        DeadLetterStatus::Open => {
            vec![command("edit"), command("replay"), command("discard") + " --why TEXT"]
        }
        DeadLetterStatus::Replayed | DeadLetterStatus::Discarded => vec![command("restore")],
    }
}

/// Prints everything about a dead letter, of its bodies `body_bytes` at most.
fn text(details: &DeadLetterWithHistory, shown: &Shown<'_>, body_bytes: usize, out: &mut Text) {
    let limited = |text: &str| shortened(text, body_bytes, "--full").into_owned();
    let limited_body = |bytes: &[u8]| limited(&body(bytes));
    let DeadLetterDetail { dead_letter, message, state, edit } = &details.detail;
    let id = out.paint(Tone::Strong, &dead_letter.id.to_string());
    out.push(format!("dead letter {id}, {}\n", state.status));
    out.field("reason", Tone::Bad, &dead_letter.reason);
    out.field("error", Tone::Plain, &dead_letter.error);
    for (name, value) in [
        ("field", &dead_letter.field),
        ("tenant", &dead_letter.tenant_id),
        ("conversation", &dead_letter.conversation_id),
        ("session", &dead_letter.session_id),
        ("message", &dead_letter.message_id),
        ("action", &dead_letter.action_type),
    ] {
        if let Some(value) = value {
            out.field(name, Tone::Plain, value);
        }
    }
    let exchange = match dead_letter.exchange.as_str() {
        "" => "the default exchange",
        exchange => exchange,
    };
    let published = format!("to {exchange}, routing key {}", dead_letter.routing_key);
    out.field("published", Tone::Plain, published);
    out.field("failed in", Tone::Plain, &dead_letter.queue);
    out.field("history", Tone::Plain, history(dead_letter, state.copies, out.now));
    if let Some(not_stored) = &state.not_stored {
        out.field("not stored", Tone::Bad, refused(not_stored));
    }
    if let Some(changed) = state.status_changed_at {
        let why = state.status_reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        out.field(state.status.as_str(), Tone::Plain, format!("{}{why}", moment(changed)));
    }
    if let Some(before) = &dead_letter.replay_of {
        let reason = details.before.as_ref().map(|it| format!(" ({})", it.reason));
        out.field("replay of", Tone::Warn, format!("{before}{}", reason.unwrap_or_default()));
    }
    for after in &details.after {
        out.field("failed again", Tone::Warn, failed_again(after));
    }
    if let (Some(fault), Some(tried)) = (&state.replay_fault, state.replay_tried_at) {
        out.field("replay failed", Tone::Bad, format!("{}: {fault}", moment(tried)));
    }
    let section = |heading, value, out: &mut Text| {
        if let Some(fields) = fields(value) {
            out.section(Tone::Dim, heading, &limited(&fields));
        }
    };
    section("properties that its sender set", &message.properties, out);
    section("headers that its sender set", &message.headers, out);
    if let Some(left_out) = &message.left_out {
        out.section(
            Tone::Warn,
            "headers that its sender set and that are missing",
            &limited(&missing(left_out)),
        );
    }
    section("headers of RabbitMQ and the fleet", &message.delivery["headers"], out);
    out.section(Tone::Dim, "body", &limited_body(&message.body));
    if let Some(edited) = &edit.edited_body {
        let when = edit.edited_at.map(|at| format!(", {}", moment(at))).unwrap_or_default();
        let who = edit.edited_by.as_deref().map(|who| format!(" by {who}")).unwrap_or_default();
        let heading = format!("edited copy, which a replay publishes{when}{}", one_line(&who));
        out.section(Tone::Warn, &heading, &limited_body(edited));
    }
    if !details.audit.is_empty() {
        let lines: Vec<_> =
            details.audit.iter().map(|entry| one_line(&audit_line(entry))).collect();
        out.section(Tone::Dim, "audit log", &lines.join("\n"));
    }
    if let Some(advice) = &shown.suggestion {
        out.section(Tone::Good, "suggestion", &one_line(&advice.text));
        if let Some(command) = &advice.command {
            out.push("  ");
            out.line(Tone::Strong, command);
        }
    }
    out.section(Tone::Dim, "next", &shown.next.join("\n"));
}

/// The columns that PostgreSQL refused to store, and why.
fn refused(not_stored: &Value) -> String {
    let columns = not_stored["columns"].as_array().into_iter().flatten();
    let columns: Vec<_> = columns.filter_map(Value::as_str).collect();
    let error = not_stored["error"].as_str().unwrap_or_default();
    format!("{}, because PostgreSQL refused it: {error}", columns.join(", "))
}

fn failed_again(after: &DeadLetterSummary) -> String {
    let DeadLetterSummary { dead_letter, state, .. } = after;
    format!("as {} ({}, {})", dead_letter.id, dead_letter.reason, state.status)
}

fn audit_line(entry: &AuditEntry) -> String {
    let what = entry.action.strip_prefix("dead_letter.").unwrap_or(&entry.action);
    let detail = entry.detail.as_ref();
    let value_of = |name: &str| match detail?.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) if list.is_empty() => None,
        Value::Array(list) => {
            Some(list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "))
        }
        _ => None,
    };
    let mut line = format!("{}  {what} by {}", moment(entry.at), entry.actor);
    for (name, label) in [("to", "to"), ("fields", "fields:"), ("why", "why:"), ("fault", "error:")]
    {
        if let Some(value) = value_of(name) {
            line.push_str(&format!(", {label} {value}"));
        }
    }
    line
}

/// When and how often it failed, was replayed and was received.
fn history(dead_letter: &DeadLetter, copies: i64, now: Timestamp) -> String {
    let DeadLetter { first_failed_at: first, last_failed_at: last, .. } = dead_letter;
    let mut parts = vec![if dead_letter.attempts > 1 {
        let attempts = plural(dead_letter.attempts, "attempt");
        format!("{attempts}; first failed {}, last {}", moment(*first), moment(*last))
    } else {
        format!("failed {}, {}", ago(*last, now), moment(*last))
    }];
    if dead_letter.replay_count > 0 {
        parts.push(format!("replayed {}", plural(dead_letter.replay_count, "time")));
    }
    if copies > 1 {
        parts.push(format!("received {}", plural(copies, "time")));
    }
    parts.join("; ")
}

/// The names of headers that were left out, over lines, and how many more there are.
fn missing(left_out: &Value) -> String {
    let names = left_out["names"].as_array().into_iter().flatten();
    // A name that JSON cannot hold is shown as it is stored.
    let name = |name: &Value| name.as_str().map_or_else(|| name.to_string(), str::to_owned);
    let mut lines: Vec<String> = names.map(name).collect();
    let more = left_out["headers"].as_u64().unwrap_or(0).saturating_sub(lines.len() as u64);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines.join("\n")
}

/// A JSON value over lines; `None` if it has no fields.
fn fields(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Object(fields) if fields.is_empty() => None,
        value => serde_json::to_string_pretty(value).ok(),
    }
}

/// A body, over lines where it is JSON.
pub(super) fn body(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "(empty)".to_owned();
    }
    match std::str::from_utf8(bytes) {
        // Parsing it into a tree would sort keys and round numbers, so only whitespace is changed.
        Ok(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => {
            json::indented(text)
        }
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use database::{DeadLetterEdit, DeadLetterState, FailedMessage};
    use serde_json::json;

    use super::*;
    use crate::commands::conversation_list::tests::at;
    use crate::commands::dead_letters_list::tests::{detail, summary};
    use crate::output::tests::plain;

    const VALIDATOR: DeadLetterValidator = DeadLetterValidator { max_body_bytes: 1_000 };

    fn details_of(detail: DeadLetterDetail) -> DeadLetterWithHistory {
        DeadLetterWithHistory { detail, before: None, after: Vec::new(), audit: Vec::new() }
    }

    fn rendered(details: &DeadLetterWithHistory) -> String {
        plain(|out| text(details, &shown(details, VALIDATOR), SHOWN_BYTES, out))
    }

    #[test]
    fn a_dead_letter_is_shown_with_its_history_and_a_suggested_fix() {
        insta::assert_snapshot!(rendered(&details_of(detail())));
    }

    #[test]
    fn a_replayed_dead_letter_is_shown_with_its_edit_audit_log_and_failures() {
        let mut replayed = detail();
        replayed.dead_letter.replay_count = 1;
        replayed.dead_letter.replay_of = Some(Uuid::from_u128(6));
        replayed.state = DeadLetterState {
            status: DeadLetterStatus::Replayed,
            status_changed_at: Some(at("2026-11-20T11:59:40Z")),
            replay_fault: Some("no queue takes it".to_owned()),
            replay_tried_at: Some(at("2026-11-20T11:59:35Z")),
            not_stored: Some(
                json!({"columns": ["headers", "left_out"], "error": "too many fields"}),
            ),
            ..replayed.state
        };
        let body =
            String::from_utf8(detail().message.body.to_vec()).unwrap().replace("bot", "assistant");
        replayed.edit = DeadLetterEdit {
            edited_body: Some(body.into_bytes()),
            edited_at: Some(at("2026-11-20T11:59:30Z")),
            edited_by: Some("ops@night".to_owned()),
        };
        let entry = |id, action: &str, detail| AuditEntry {
            id,
            at: at("2026-11-20T11:59:30Z"),
            actor: "ops@night".to_owned(),
            action: action.to_owned(),
            tenant_id: Some("acme".to_owned()),
            subject: Some(replayed.dead_letter.id.to_string()),
            detail: Some(detail),
        };
        let audit = vec![
            entry(1, "dead_letter.edit", json!({"fields": ["role"], "bytes": 118})),
            entry(2, "dead_letter.replay", json!({"to": "conversation.save_message"})),
        ];
        let mut after = summary();
        after.dead_letter.id = Uuid::from_u128(8);
        let (before, after) = (Some(detail().dead_letter), vec![after]);
        insta::assert_snapshot!(rendered(&DeadLetterWithHistory {
            before,
            after,
            audit,
            ..details_of(replayed)
        }));
    }

    #[test]
    fn headers_that_are_missing_are_named_and_counted() {
        let left_out = json!({"headers": 5, "names": ["x-large", {"$type": "text", "hex": "00"}]});
        assert_eq!(missing(&left_out), "x-large\n{\"$type\":\"text\",\"hex\":\"00\"}\nand 3 more");
    }

    #[test]
    fn a_binary_body_is_shown_without_its_control_characters() {
        let mut binary = detail();
        binary.dead_letter = DeadLetter {
            reason: "malformed_json".to_owned(),
            error: "the body is not UTF-8 at byte 4".to_owned(),
            field: None,
            tenant_id: None,
            session_id: None,
            message_id: None,
            action_type: None,
            exchange: String::new(),
            attempts: 3,
            replay_count: 1,
            ..binary.dead_letter
        };
        binary.message = FailedMessage {
            body: b"hi \x1b[2J\xff there".as_slice().into(),
            properties: json!({}),
            headers: json!({}),
            left_out: None,
            delivery: json!({}),
        };
        binary.state.copies = 2;
        insta::assert_snapshot!(rendered(&details_of(binary)));
    }

    #[test]
    fn a_large_body_is_cut_unless_all_of_it_is_wanted() {
        let mut large = detail();
        large.message.body = vec![b'x'; SHOWN_BYTES + 1_234].into();
        let details = details_of(large);
        let cut = rendered(&details);
        assert!(cut.len() < SHOWN_BYTES + 4_000, "{}", cut.len());
        assert!(cut.contains("… 1 234 more bytes; --full prints all"), "{cut}");
        let all = plain(|out| text(&details, &shown(&details, VALIDATOR), usize::MAX, out));
        assert!(all.len() > SHOWN_BYTES + 1_234 && !all.contains("--full"));
    }

    #[test]
    fn large_headers_are_cut_too() {
        let mut large = detail();
        let values = json!({ "x-large": vec![json!(null); SHOWN_BYTES] });
        (large.message.properties, large.message.headers) = (values.clone(), values.clone());
        large.message.delivery = json!({ "headers": values });
        large.message.left_out = Some(json!({ "names": vec!["a name"; SHOWN_BYTES] }));
        let cut = rendered(&details_of(large));
        assert!(cut.len() < 6 * SHOWN_BYTES, "{}", cut.len());
        assert_eq!(cut.matches("more bytes; --full prints all").count(), 4);
    }

    #[test]
    fn a_body_is_indented_and_otherwise_unchanged() {
        let sent = r#"{"z":1.50,"a":{ },"text":"a \"quoted\\\" {,}: text","list":[1, [ ], 1e400],"a":"twice"}"#;
        insta::assert_snapshot!(body(sent.as_bytes()));
        assert_eq!(body(b""), "(empty)");
        assert_eq!(body(b"{\"broken\": "), "{\"broken\": ");
    }

    #[test]
    fn its_json_has_the_suggestion_beside_the_dead_letter() {
        let details = details_of(detail());
        let shown = shown(&details, VALIDATOR);
        insta::assert_snapshot!(serde_json::to_string_pretty(&shown).unwrap());
    }
}
