//! The conversation as text: its attributes, then its messages.

use conversation::{Source, TranscriptView};
use database::{ConversationStats, ConversationView, SessionView};
use domain::message::{Message, Role};
use domain::status::ConversationStatus;

use crate::commands::conversation_list::tone;
use crate::output::{
    TextStyle, Tone, ago, block, count, excerpt, moment, one_line, plural, precise, span,
};

/// Characters of a JSON value that text shows; JSON output has all of it.
const EXCERPT: usize = 300;

pub(super) fn render(
    shown: &TranscriptView<'_>,
    messages: &[Message],
    style: &TextStyle,
) -> String {
    let row = shown.conversation;
    let paint = style.paint;
    let id = paint.text(Tone::Strong, &one_line(&row.id));
    let mut out = format!("conversation {id} of tenant {}\n", one_line(&row.tenant_id));
    let mut line = |name: &str, tone: Tone, what: &str| {
        let name = paint.text(Tone::Dim, &format!("{name:<14}"));
        out.push_str(&format!("  {name}{}\n", paint.text(tone, &one_line(what))));
    };
    line("status", tone(row.status), &status(row, style));
    line("began", Tone::Plain, &moment(row.created_at));
    if !shown.sessions.iter().any(|session| session.session_id == row.session_id) {
        line("session", Tone::Plain, &row.session_id);
    }
    for session in shown.sessions {
        line("session", Tone::Plain, &connection(session));
    }
    for (name, value) in [
        ("agent", row.agent_id.as_deref()),
        ("user", row.user_id.as_deref()),
        ("model", row.model_name.as_deref()),
    ] {
        if let Some(value) = value {
            line(name, Tone::Plain, value);
        }
    }
    if let Some(satisfaction) = row.satisfaction {
        line("satisfaction", Tone::Plain, &format!("{satisfaction} of 5"));
    }
    if let Some(statistics) = shown.statistics {
        line("statistics", Tone::Plain, &in_one_line(statistics));
    }
    let all = plural(row.message_count, "message");
    let messages_shown = match i64::try_from(messages.len()) {
        Ok(n) if n < row.message_count => format!("the newest {} of {all}", count(n)),
        _ => all,
    };
    let (source, tone) = match (&shown.redis_error, shown.degraded, shown.source) {
        (_, true, _) => ("from Redis, may be incomplete: PostgreSQL unreachable", Tone::Bad),
        (Some(_), ..) => ("from PostgreSQL: Redis unreachable", Tone::Warn),
        (None, false, Source::HotCopy) => ("from the hot copy in Redis", Tone::Plain),
        (None, false, Source::Database) => ("from PostgreSQL", Tone::Plain),
    };
    line("read", tone, &format!("{messages_shown}, {source}; times are UTC"));
    if let Some(error) = &shown.redis_error {
        line("Redis error", Tone::Warn, error);
    }
    for message in messages {
        out.push('\n');
        out.push_str(&transcript_entry(message, style));
    }
    out
}

fn connection(session: &SessionView) -> String {
    let state = if session.open { "open since" } else { "closed at" };
    format!("{}, {state} {}", session.session_id, moment(session.last_event_at))
}

/// Status with its times and close reason.
fn status(row: &ConversationView, style: &TextStyle) -> String {
    let reason = row.close_reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    match (row.status, row.finalised_at, row.close_requested_at) {
        (ConversationStatus::Archived, Some(at), _) => {
            format!("archived {}, {}{reason}", ago(at, style.now), moment(at))
        }
        (ConversationStatus::Active, _, Some(at)) => {
            format!("active; close requested {}{reason}", ago(at, style.now))
        }
        (ConversationStatus::Active, Some(at), None) => {
            format!("active again; was archived {}", moment(at))
        }
        (status, ..) => format!("{status}{reason}"),
    }
}

fn in_one_line(statistics: &ConversationStats) -> String {
    let ConversationStats { message_count, user_messages, assistant_messages, .. } = statistics;
    let mut parts = vec![
        format!(
            "{} ({user_messages} user, {assistant_messages} assistant)",
            plural(*message_count, "message")
        ),
        plural(statistics.total_tokens, "token"),
        format!("duration {}", span(statistics.duration_seconds)),
    ];
    if let Some(seconds) = statistics.avg_response_seconds {
        parts.push(format!("average response time {}", span(seconds)));
    }
    parts.join(", ")
}

/// One message: a heading, then its content.
fn transcript_entry(message: &Message, style: &TextStyle) -> String {
    const INDENT: &str = "  ";
    let paint = style.paint;
    let tone = match message.role {
        Role::User => Tone::Human,
        Role::Assistant => Tone::Model,
        Role::System | Role::Tool | Role::Function => Tone::Strong,
    };
    let attributes = [
        message.user_id.as_ref().map(AsRef::as_ref),
        message.agent_id.as_ref().map(AsRef::as_ref),
        message.model_name.as_deref(),
        Some(message.id.as_str()),
    ];
    let attributes: Vec<String> = attributes.into_iter().flatten().map(one_line).collect();
    let mut out = format!(
        "{}  {}  {}\n",
        precise(message.created_at.into()),
        paint.text(tone, message.role.as_str()),
        paint.text(Tone::Dim, &attributes.join(" · "))
    );
    if let Some(call) = &message.tool_call_id {
        let result = format!("result of tool call {}", one_line(call));
        out.push_str(&format!("{INDENT}{}\n", paint.text(Tone::Dim, &result)));
    }
    if !message.content.text().is_empty() {
        out.push_str(&block(message.content.text(), INDENT));
    }
    if let Some(parts) = message.content.parts() {
        let parts = format!("content parts {}", one_line(&excerpt(parts.as_str(), EXCERPT)));
        out.push_str(&format!("{INDENT}{}\n", paint.text(Tone::Dim, &parts)));
    }
    if let Some(calls) = &message.tool_calls {
        let calls = format!("tool calls {}", one_line(&excerpt(calls.as_str(), EXCERPT)));
        out.push_str(&format!("{INDENT}{}\n", paint.text(Tone::Dim, &calls)));
    }
    out
}

#[cfg(test)]
mod tests {
    use domain::ids::{AgentId, MessageId, UserId};
    use domain::message::{Content, Json};
    use domain::time::Timestamp;

    use super::*;
    use crate::commands::conversation_list::tests::{archived, at};
    use crate::output::Paint;

    fn message(id: &str, role: Role, content: &str, at: &str) -> Message {
        Message {
            id: MessageId::new(id).unwrap(),
            role,
            content: Content::Text(content.to_owned()),
            tool_calls: None,
            tool_call_id: None,
            tokens_estimate: None,
            user_id: None,
            agent_id: None,
            model_name: None,
            processing_time_ms: None,
            created_at: Timestamp::parse(at).unwrap(),
            received_at: Timestamp::parse(at).unwrap(),
            metadata: None,
        }
    }

    fn json(text: &str) -> Json {
        Json::parse(text.to_owned()).unwrap()
    }

    fn messages() -> Vec<Message> {
        let user = Message {
            user_id: Some(UserId::new("u-9").unwrap()),
            ..message("m-1", Role::User, "Hi!\n\nIs it\u{1b}[31m free?", "2026-11-20T11:00:00Z")
        };
        let calls = Message {
            agent_id: Some(AgentId::new("agent_xyz").unwrap()),
            model_name: Some("llama3-70b-8192".to_owned()),
            tool_calls: Some(json(r#"[{"id":"call_1","function":{"name":"free"}}]"#)),
            tokens_estimate: Some(12),
            ..message("m-2", Role::Assistant, "", "2026-11-20T11:00:01.25Z")
        };
        let result = Message {
            tool_call_id: Some("call_1".to_owned()),
            ..message("m-3", Role::Tool, "{\"free\":true}", "2026-11-20T11:00:02Z")
        };
        let parts = Message {
            content: Content::Parts {
                json: json(r#"[{"type":"text","text":"Yes."},{"type":"image_url"}]"#),
                text: "Yes.".to_owned(),
            },
            metadata: Some(json(r#"{"tenant_tier":"professional"}"#)),
            ..message("m-4", Role::Assistant, "", "2026-11-20T11:05:00Z")
        };
        vec![user, calls, result, parts]
    }

    fn statistics() -> ConversationStats {
        ConversationStats {
            agent_id: Some("agent_xyz".to_owned()),
            message_count: 4,
            user_messages: 1,
            assistant_messages: 2,
            total_tokens: 12_345,
            duration_seconds: 300.0,
            avg_response_seconds: Some(1.25),
            satisfaction: Some(5),
            computed_from: at("2026-11-20T11:05:41Z"),
            computed_at: at("2026-11-20T11:05:42Z"),
        }
    }

    #[derive(PartialEq)]
    enum Connection {
        Open,
        Closed,
    }

    fn session(id: &str, connection: &Connection) -> SessionView {
        SessionView {
            session_id: id.to_owned(),
            open: *connection == Connection::Open,
            last_event_at: at("2026-11-20T11:05:30Z"),
        }
    }

    fn shown<'a>(
        row: &'a ConversationView,
        statistics: Option<&'a ConversationStats>,
        messages: &'a [Message],
    ) -> TranscriptView<'a> {
        TranscriptView {
            conversation: row,
            source: Source::Database,
            degraded: false,
            redis_error: None,
            sessions: &[],
            statistics,
            messages: messages.iter().map(Into::into).collect(),
        }
    }

    fn style() -> TextStyle {
        let now = Timestamp::parse("2026-11-20T12:00:00Z").unwrap();
        TextStyle { paint: Paint::Plain, now }
    }

    #[test]
    fn a_transcript_shows_each_message_with_its_sender_and_tool_calls() {
        let (row, statistics, messages) = (archived(), statistics(), messages());
        let sessions = [session("web-1", &Connection::Closed), session("phone", &Connection::Open)];
        let shown =
            TranscriptView { sessions: &sessions, ..shown(&row, Some(&statistics), &messages) };
        insta::assert_snapshot!(render(&shown, &messages, &style()));
    }

    #[test]
    fn its_json_keeps_every_value_as_sent() {
        let (row, statistics, messages) = (archived(), statistics(), messages());
        let shown = shown(&row, Some(&statistics), &messages);
        insta::assert_snapshot!(serde_json::to_string_pretty(&shown).unwrap());
    }

    #[test]
    fn omitted_messages_and_an_unreachable_redis_are_named() {
        let row = ConversationView {
            status: ConversationStatus::Active,
            message_count: 10_000,
            finalised_at: None,
            satisfaction: None,
            ..archived()
        };
        let messages = [];
        let without_redis = TranscriptView {
            redis_error: Some("no connection to Redis".to_owned()),
            ..shown(&row, None, &messages)
        };
        insta::assert_snapshot!(render(&without_redis, &messages, &style()));
    }
}
