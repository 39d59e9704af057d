//! `verbatim dead-letters show`: one dead letter with all that is known about it.

use archive::DeadLetterRow;
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use service::settings::DatabaseSettings;
use uuid::Uuid;

use crate::commands::lint::BodyLimit;
use crate::commands::suggestion::{Suggestion, suggest};
use crate::exit::{Exit, Failure};
use crate::look::{Look, Screen, Tone, ago, block, moment, one_line, plural};
use crate::servers::Database;
use crate::validator::Validator;

const EXAMPLES: &str = "\
Examples:
  verbatim dead-letters show 4d1e6f3a-0d2b-5c8e-9b1a-7f1e2d3c4b5a
  verbatim dead-letters show ID --json | jq -r .body > action.jsonl

Exit code 1 means that there is no such letter.";

/// Shows a dead letter: body, headers, story, and what would mend it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "verbatim dead-letters show [OPTIONS] <ID>")]
pub(crate) struct DeadLettersShow {
    /// Its id
    #[arg(value_name = "ID")]
    id: Uuid,

    #[command(flatten)]
    limit: BodyLimit,

    #[command(flatten)]
    database: DatabaseSettings,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    letter: &'a DeadLetterRow,
    suggestion: Option<Suggestion>,
}

impl DeadLettersShow {
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        let database = Database::open(&self.database).await?;
        let found = database.archive.dead_letter(self.id).await;
        let letter = found.map_err(|error| database.failure(&error))?.ok_or_else(|| {
            let what = format!("there is no dead letter {}", self.id);
            Failure::problem(
                what,
                "`verbatim dead-letters list --status all` shows which there are",
            )
        })?;
        let validator =
            Validator { now: screen.look.now, max_body_bytes: self.limit.max_body_bytes };
        let shown = Shown { suggestion: suggest(&letter, &validator), letter: &letter };
        screen.show(&shown, |look| text(&shown, look))?;
        Ok(Exit::Fine)
    }
}

fn text(shown: &Shown<'_>, look: &Look) -> String {
    let (letter, paint) = (shown.letter, look.paint);
    let id = paint.text(Tone::Strong, &letter.id.to_string());
    let mut out = format!("dead letter {id}, {}\n", letter.status);
    let mut line = |name: &str, tone: Tone, what: &str| {
        let name = paint.text(Tone::Dim, &format!("{name:<14}"));
        out.push_str(&format!("  {name}{}\n", paint.text(tone, &one_line(what))));
    };
    line("reason", Tone::Bad, &letter.reason);
    line("error", Tone::Plain, &letter.error);
    for (name, value) in [
        ("field", &letter.field),
        ("tenant", &letter.tenant_id),
        ("conversation", &letter.conversation_id),
        ("session", &letter.session_id),
        ("message", &letter.message_id),
        ("action", &letter.action_type),
    ] {
        if let Some(value) = value {
            line(name, Tone::Plain, value);
        }
    }
    let exchange =
        if letter.exchange.is_empty() { "the default exchange" } else { &letter.exchange };
    line("published", Tone::Plain, &format!("to {exchange}, routing key {}", letter.routing_key));
    line("died in", Tone::Plain, &letter.queue);
    line("story", Tone::Plain, &story(letter, look));
    for (name, value) in [("properties", &letter.properties), ("headers", &letter.headers)] {
        if let Some(value) = told(value) {
            let heading = paint.text(Tone::Dim, name);
            out.push_str(&format!("\n{heading}\n{}", block(&value, "  ")));
        }
    }
    let heading = paint.text(Tone::Dim, "body");
    out.push_str(&format!("\n{heading}\n{}", block(&body(&letter.body), "  ")));
    if let Some(suggestion) = &shown.suggestion {
        let heading = paint.text(Tone::Good, "suggestion");
        out.push_str(&format!("\n{heading}\n  {}\n", one_line(&suggestion.text)));
        if let Some(command) = &suggestion.command {
            out.push_str(&format!("  {}\n", paint.text(Tone::Strong, command)));
        }
    }
    out
}

/// When it failed and how often.
fn story(letter: &DeadLetterRow, look: &Look) -> String {
    let DeadLetterRow { first_failed_at: first, last_failed_at: last, .. } = letter;
    let mut story = vec![if letter.attempts > 1 {
        let attempts = plural(letter.attempts, "attempt");
        format!("{attempts}; first failed {}, last {}", moment(*first), moment(*last))
    } else {
        format!("failed {}, {}", ago(*last, look.now), moment(*last))
    }];
    if letter.replay_count > 0 {
        story.push(format!("replayed {}", plural(letter.replay_count, "time")));
    }
    if letter.copies > 1 {
        story.push(format!("came {}", plural(letter.copies, "time")));
    }
    story.join("; ")
}

/// A JSON object with what it says, over lines; nothing if it says nothing.
fn told(value: &Value) -> Option<String> {
    let fields = match value {
        Value::Object(fields) => fields,
        Value::Null => return None,
        other => return serde_json::to_string_pretty(other).ok(),
    };
    let said: serde_json::Map<_, _> =
        fields.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
    if said.is_empty() {
        return None;
    }
    serde_json::to_string_pretty(&said).ok()
}

/// A body, over lines where it is JSON.
fn body(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "(empty)".to_owned();
    }
    match std::str::from_utf8(bytes) {
        // Reading it as a tree would sort keys and round numbers, so it is only laid out.
        Ok(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => laid_out(text),
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// JSON with each value on a line of its own; every name and value stays as it was sent.
fn laid_out(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut characters = json.chars().peekable();
    let new_line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some(c) = characters.next() {
        if in_string {
            out.push(c);
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '"' => {
                in_string = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while characters.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(close) = characters.next_if(|c| matches!(c, '}' | ']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    new_line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use domain::time::Timestamp;

    use super::*;
    use crate::commands::dead_letters_list::tests::{look, row};

    fn shown(letter: &DeadLetterRow) -> String {
        let validator = Validator { now: Timestamp::EARLIEST, max_body_bytes: 1_000 };
        text(&Shown { suggestion: suggest(letter, &validator), letter }, &look())
    }

    #[test]
    fn a_letter_tells_what_it_is_what_befell_it_and_what_would_mend_it() {
        insta::assert_snapshot!(shown(&row()));
    }

    #[test]
    fn a_letter_that_is_no_json_is_shown_without_its_tricks() {
        let letter = DeadLetterRow {
            reason: "malformed_json".to_owned(),
            error: "the body is not UTF-8 at byte 4".to_owned(),
            field: None,
            tenant_id: None,
            session_id: None,
            message_id: None,
            action_type: None,
            exchange: String::new(),
            body: b"hi \x1b[2J\xff there".to_vec(),
            properties: Value::Null,
            headers: serde_json::json!({}),
            attempts: 3,
            replay_count: 1,
            copies: 2,
            ..row()
        };
        insta::assert_snapshot!(shown(&letter));
    }

    #[test]
    fn a_body_is_laid_out_and_otherwise_untouched() {
        let sent = r#"{"z":1.50,"a":{ },"text":"a \"quoted\\\" {,}: text","list":[1, [ ], 1e400],"a":"twice"}"#;
        insta::assert_snapshot!(laid_out(sent));
        assert_eq!(body(b""), "(empty)");
        assert_eq!(body(b"{\"broken\": "), "{\"broken\": ");
    }

    #[test]
    fn its_json_has_the_suggestion_beside_the_letter() {
        let letter = row();
        let validator = Validator { now: Timestamp::EARLIEST, max_body_bytes: 1_000 };
        let shown = Shown { suggestion: suggest(&letter, &validator), letter: &letter };
        insta::assert_snapshot!(serde_json::to_string_pretty(&shown).unwrap());
    }
}
