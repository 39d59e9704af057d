//! The conversation as text: its attributes, then its messages.

use std::borrow::Cow;

use conversation::{Source, TranscriptView};
use database::{ConversationStats, ConversationView, SessionEventView, SessionView};
use domain::message::{Details, Json, Message, Role};
use domain::status::ConversationStatus;
use domain::time::Timestamp;

use crate::commands::conversation_list::tone;
use crate::output::{
    Text, Tone, ago, block, count, excerpt, moment, one_line, plural, precise, shortened, span,
};

/// How much of a conversation text shows; JSON has all of it.
#[derive(Debug)]
pub(super) struct Limits {
    /// Bytes of the content of a message: a screen or two.
    content: usize,
    /// Characters of a JSON value, and of any other text on a line.
    line: usize,
}

impl Limits {
    pub(super) const USUAL: Self = Self { content: 4 << 10, line: 300 };
    pub(super) const NONE: Self = Self { content: usize::MAX, line: usize::MAX };

    fn on_a_line<'a>(&self, text: &'a str) -> Cow<'a, str> {
        excerpt(text, self.line)
    }
}

pub(super) fn write(
    shown: &TranscriptView<'_>,
    messages: &[Message],
    limits: &Limits,
    out: &mut Text,
) {
    let row = shown.conversation;
    let id = out.paint(Tone::Strong, &one_line(&row.id));
    out.push(format!("conversation {id} of tenant {}\n", one_line(&row.tenant_id)));
    out.field("status", tone(row.status), limits.on_a_line(&status(row, out.now)));
    out.field("began", Tone::Plain, moment(row.created_at));
    if !shown.sessions.iter().any(|session| session.session_id == row.session_id) {
        out.field("session", Tone::Plain, &row.session_id);
    }
    for session in shown.sessions {
        out.field("session", Tone::Plain, connection(session));
    }
    for event in shown.session_events {
        if let Some(said) = said(event, limits) {
            out.field("event", Tone::Plain, said);
        }
    }
    let satisfaction = row.satisfaction.map(|satisfaction| format!("{satisfaction} of 5"));
    let statistics = shown.statistics.map(in_one_line);
    for (name, value) in [
        ("agent", &row.agent_id),
        ("user", &row.user_id),
        ("model", &row.model_name),
        ("satisfaction", &satisfaction),
        ("statistics", &statistics),
    ] {
        if let Some(value) = value {
            out.field(name, Tone::Plain, limits.on_a_line(value));
        }
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
    out.field("read", tone, format!("{messages_shown}, {source}; times are UTC"));
    if let Some(error) = &shown.redis_error {
        out.field("Redis error", Tone::Warn, error);
    }
    for message in messages {
        out.push("\n");
        write_message(message, limits, out);
    }
}

fn connection(session: &SessionView) -> String {
    let state = if session.open { "open since" } else { "closed at" };
    format!("{}, {state} {}", session.session_id, moment(session.last_event_at))
}

/// What a session event or feedback said; `None` if that is only that a session opened or closed.
fn said(event: &SessionEventView, limits: &Limits) -> Option<String> {
    let metadata = event.metadata.as_ref();
    let parts = [
        event.reason.as_ref().map(|reason| format!("reason {}", limits.on_a_line(reason))),
        event.satisfaction.map(|satisfaction| format!("satisfaction {satisfaction} of 5")),
        metadata.map(|json| format!("metadata {}", limits.on_a_line(json.as_str()))),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let SessionEventView { action_type, session_id, created_at, .. } = event;
    let event = format!("{action_type} of session {session_id}, {}", moment(*created_at));
    (!parts.is_empty()).then(|| format!("{event}: {}", parts.join(", ")))
}

/// Status with its times and close reason.
fn status(row: &ConversationView, now: Timestamp) -> String {
    let reason = row.close_reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    match (row.status, row.finalised_at, row.close_requested_at) {
        (ConversationStatus::Archived, Some(at), _) => {
            format!("archived {}, {}{reason}", ago(at, now), moment(at))
        }
        (ConversationStatus::Active, _, Some(at)) => {
            format!("active; close requested {}{reason}", ago(at, now))
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
    let reported = [
        ("input", statistics.input_tokens),
        ("output", statistics.output_tokens),
        ("read from cache", statistics.cache_read_tokens),
        ("written to cache", statistics.cache_write_tokens),
        ("reasoning", statistics.reasoning_tokens),
    ];
    let reported = reported.into_iter().filter_map(|(name, tokens)| Some((name, tokens?)));
    let reported: Vec<_> =
        reported.map(|(name, tokens)| format!("{} {name}", count(tokens))).collect();
    if !reported.is_empty() {
        parts.push(format!("tokens reported by providers: {}", reported.join(", ")));
    }
    parts.join(", ")
}

/// One message: a heading, then its content.
fn write_message(message: &Message, limits: &Limits, out: &mut Text) {
    const INDENT: &str = "  ";
    let tone = match message.role {
        Role::User => Tone::Human,
        Role::Assistant => Tone::Model,
        Role::System | Role::Developer | Role::Tool | Role::Function => Tone::Strong,
    };
    let attributes = [
        message.user_id.as_ref().map(AsRef::as_ref),
        message.agent_id.as_ref().map(AsRef::as_ref),
        message.model_name.as_deref(),
        Some(message.id.as_str()),
    ];
    let attributes: Vec<String> =
        attributes.into_iter().flatten().map(|it| one_line(&limits.on_a_line(it))).collect();
    let role = out.paint(tone, message.role.as_str());
    out.push(format!("{}  {role}  ", precise(message.created_at.into())));
    out.line(Tone::Dim, attributes.join(" · "));
    let detail = |out: &mut Text, name: &str, value: &str| {
        out.push(INDENT);
        out.line(Tone::Dim, format!("{name} {}", one_line(&limits.on_a_line(value))));
    };
    let Details { item, usage, finish_reason, response_id, parent_message_id, context_hash } =
        Details::of(&message.details);
    if let Some(parent) = parent_message_id {
        detail(out, "answer to", parent.as_str());
    }
    if let Some(call) = &message.tool_call_id {
        detail(out, "result of tool call", call);
    }
    if !message.content.text().is_empty() {
        out.push(block(&shortened(message.content.text(), limits.content, "--full"), INDENT));
    }
    if let Some(parts) = message.content.parts() {
        detail(out, "content parts", parts.as_str());
    }
    if let Some(calls) = &message.tool_calls {
        detail(out, "tool calls", calls.as_str());
    }
    for (name, value) in [
        ("finish reason", finish_reason.as_deref()),
        ("response", response_id.as_deref()),
        ("usage", usage.as_ref().map(Json::as_str)),
        ("item", item.as_ref().map(Json::as_str)),
        ("context hash", context_hash.as_deref()),
    ] {
        if let Some(value) = value {
            detail(out, name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::ids::{AgentId, MessageId, UserId};
    use domain::message::Content;

    use super::*;
    use crate::commands::conversation_list::tests::{archived, at};
    use crate::output::tests::plain;

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
            details: None,
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
            model_name: Some("gpt-4o".to_owned()),
            message_count: 4,
            user_messages: 1,
            assistant_messages: 2,
            total_tokens: 12_345,
            duration_seconds: 300.0,
            avg_response_seconds: Some(1.25),
            responses: 1,
            satisfaction: Some(5),
            input_tokens: Some(812),
            output_tokens: Some(45),
            cache_read_tokens: Some(512),
            cache_write_tokens: None,
            reasoning_tokens: None,
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

    /// A close with this metadata, or an opened session without.
    fn event(session: &str, metadata: Option<&str>) -> SessionEventView {
        let closed = metadata.is_some();
        let action = if closed { "session_closed" } else { "session_opened" };
        SessionEventView {
            id: "e-1".to_owned(),
            action_type: format!("conversation.{action}"),
            session_id: session.to_owned(),
            created_at: at("2026-11-20T11:05:30Z"),
            received_at: at("2026-11-20T11:05:30.25Z"),
            reason: closed.then(|| "user_left".to_owned()),
            satisfaction: closed.then_some(5),
            user_id: None,
            agent_id: None,
            model_name: None,
            tenant_tier: None,
            metadata: metadata.map(json),
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
            session_events: &[],
            statistics,
            messages: messages.iter().map(Into::into).collect(),
        }
    }

    #[test]
    fn a_transcript_shows_each_message_with_its_sender_and_tool_calls() {
        let (row, statistics, messages) = (archived(), statistics(), messages());
        let sessions = [session("web-1", &Connection::Closed), session("phone", &Connection::Open)];
        let events = [event("web-1", None), event("web-1", Some(r#"{"comment":"great"}"#))];
        let shown = TranscriptView {
            sessions: &sessions,
            session_events: &events,
            ..shown(&row, Some(&statistics), &messages)
        };
        insta::assert_snapshot!(plain(|out| write(&shown, &messages, &Limits::USUAL, out)));
    }

    #[test]
    fn large_messages_are_cut_unless_all_of_them_is_wanted() {
        let long = "x".repeat(100_000);
        let calls = Message {
            tool_calls: Some(json(&format!("[\"{long}\"]"))),
            model_name: Some(long.clone()),
            ..message("m-1", Role::Assistant, &long, "2026-11-20T11:00:00Z")
        };
        let (row, messages) = (archived(), vec![calls]);
        let events = [SessionEventView { reason: Some(long), ..event("web-1", Some("{}")) }];
        let shown = TranscriptView { session_events: &events, ..shown(&row, None, &messages) };
        let text = |limits: &Limits| plain(|out| write(&shown, &messages, limits, out));
        let cut = text(&Limits::USUAL);
        assert!(cut.len() < 10_000, "{}", cut.len());
        assert!(cut.contains("… 95 904 more bytes; --full prints all"), "{cut}");
        assert!(text(&Limits::NONE).len() > 400_000);
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
        insta::assert_snapshot!(plain(|out| write(&without_redis, &messages, &Limits::USUAL, out)));
    }
}
