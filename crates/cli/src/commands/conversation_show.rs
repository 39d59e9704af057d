//! `verbatim conversation show`: one conversation, as a reader gets it.
//!
//! It says which store answered, so that an operator can compare the two: what Redis serves must be
//! exactly what PostgreSQL holds.

use archive::{Archive, ConversationFilter, ConversationRow, ConversationStats, Page};
use clap::{Args, ValueEnum};
use conversation::{Fresh, Reader, ReadingSettings, Source, Transcript, admission};
use domain::ids::{ConversationId, ConversationKey, SessionId, TenantId};
use domain::message::{Content, Json, Message, Role};
use domain::time::Timestamp;
use hot_store::{Address, HotStore, Window};
use metrics::Metrics;
use serde::Serialize;
use service::settings::{DatabaseSettings, ServerUrl};

use crate::commands::conversation_list::tone;
use crate::exit::{Away, Exit, Failure, with_causes};
use crate::look::{Look, Screen, Tone, ago, block, count, excerpt, moment, one_line, plural};
use crate::look::{precise, span};
use crate::servers::{Database, joined, shown};

const EXAMPLES: &str = "\
Examples:
  verbatim conversation show --tenant acme --session web-1
  verbatim conversation show --tenant acme 4d1e6f3a-0d2b-5c8e-9b1a-7f1e2d3c4b5a --last 10
  verbatim conversation show --tenant acme --session web-1 --source postgresql --json

Without REDIS_URL it reads PostgreSQL. Exit code 1: there is no such conversation, or Redis cannot
vouch for its copy where --source redis asks for that one.";

/// Shows a conversation: its messages, state and statistics
///
/// The transcript is what a reader gets: from the hot copy in Redis where that is complete, else from
/// PostgreSQL.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(
    override_usage = "verbatim conversation show [OPTIONS] --tenant <TENANT> <CONVERSATION|--session <SESSION>>"
)]
pub(crate) struct ConversationShow {
    /// Its tenant
    #[arg(long, value_parser = |text: &str| TenantId::new(text))]
    tenant: TenantId,

    /// Its id
    #[arg(value_parser = |text: &str| ConversationId::new(text))]
    #[arg(required_unless_present = "session", conflicts_with = "session")]
    conversation: Option<ConversationId>,

    /// Its session, instead of its id
    #[arg(long, value_parser = |text: &str| SessionId::new(text))]
    session: Option<SessionId>,

    /// The newest messages, at most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    last: u32,

    /// Where to read the messages
    #[arg(long, value_enum, default_value = "auto")]
    source: From,

    #[command(flatten)]
    database: DatabaseSettings,

    /// Redis; several nodes of one Redis Cluster are separated by commas.
    /// REDIS_URL_FILE may name a file that holds it
    #[arg(long, env = "REDIS_URL", value_name = "redis://:password@host:6379/0")]
    #[arg(value_delimiter = ',', value_parser = ServerUrl::redis, help_heading = "Servers")]
    redis_url: Vec<ServerUrl>,
}

/// Where to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum From {
    /// As a reader does: Redis if its copy is complete, else PostgreSQL
    Auto,
    /// Only the hot copy
    Redis,
    /// Only the archive
    Postgresql,
}

/// The whole answer.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    conversation: &'a ConversationRow,
    /// `redis` or `postgresql`.
    source: &'static str,
    /// Whether messages may be missing because PostgreSQL did not answer.
    degraded: bool,
    /// Why Redis did not answer, where it was asked.
    redis_error: Option<String>,
    statistics: Option<&'a ConversationStats>,
    messages: Vec<MessageShown<'a>>,
}

#[derive(Debug, Serialize)]
struct MessageShown<'a> {
    id: &'a str,
    role: Role,
    content: ContentShown<'a>,
    tool_calls: Option<&'a Json>,
    tool_call_id: Option<&'a str>,
    tokens_estimate: Option<i64>,
    user_id: Option<&'a str>,
    agent_id: Option<&'a str>,
    model_name: Option<&'a str>,
    processing_time_ms: Option<f64>,
    created_at: Timestamp,
    received_at: Timestamp,
    metadata: Option<&'a Json>,
}

/// As it was sent: a text, or an array of parts.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ContentShown<'a> {
    Text(&'a str),
    Parts(&'a Json),
}

/// What was read, and what Redis said where it was asked in vain.
struct Read {
    transcript: Transcript,
    redis_error: Option<String>,
}

impl ConversationShow {
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        let database = Database::open(&self.database).await?;
        let archive = &database.archive;
        let key = self.key(&database).await?;
        let missing = || {
            let what = format!("tenant {} has no conversation {}", key.tenant, key.conversation);
            Failure::problem(what, "`verbatim conversation list --tenant …` shows which there are")
        };
        let read = self.read(&database, &key).await?.ok_or_else(missing)?;
        let (row, statistics) =
            tokio::join!(archive.conversation(&key), archive.conversation_stats(&key));
        let row = row.map_err(|error| database.failure(&error))?.ok_or_else(missing)?;
        let statistics = statistics.map_err(|error| database.failure(&error))?;
        let Read { transcript, redis_error } = read;
        let shown = Shown {
            conversation: &row,
            source: match transcript.source {
                Source::HotCopy => "redis",
                Source::Archive => "postgresql",
            },
            degraded: transcript.degraded,
            redis_error,
            statistics: statistics.as_ref(),
            messages: transcript.messages.iter().map(shown_message).collect(),
        };
        screen.show(&shown, |look| text(&shown, &transcript.messages, look))?;
        Ok(Exit::Fine)
    }

    /// The conversation that was asked for: by its id, or by the session that began it.
    async fn key(&self, database: &Database) -> Result<ConversationKey, Failure> {
        let tenant = self.tenant.clone();
        let session = match (&self.conversation, &self.session) {
            (Some(conversation), _) => {
                return Ok(ConversationKey { tenant, conversation: conversation.clone() });
            }
            (None, Some(session)) => session,
            (None, None) => return Err(Failure::Usage("name a conversation or a session".into())),
        };
        let filter = ConversationFilter {
            tenant: Some(tenant.to_string()),
            session: Some(session.to_string()),
            ..ConversationFilter::default()
        };
        /// Enough to tell one from several, and to name them.
        const SOME: u32 = 20;
        let found = database.archive.conversations(&filter, SOME).await;
        let found = found.map_err(|error| database.failure(&error))?;
        match found.as_slice() {
            // The conversation that its actions would have without an id of their own.
            [] => Ok(ConversationKey::of_session(tenant, session)),
            [one] => ConversationKey::parse(&one.tenant_id, &one.id)
                .map_err(|error| Failure::plain(format!("a stored id cannot be read: {error}"))),
            several => {
                let ids: Vec<_> = several.iter().map(|row| one_line(&row.id)).collect();
                let what = format!("session {session} began {} conversations", several.len());
                Err(Failure::problem(what, format!("name one of {}", ids.join(", "))))
            }
        }
    }

    async fn read(
        &self,
        database: &Database,
        key: &ConversationKey,
    ) -> Result<Option<Read>, Failure> {
        let newest = usize::try_from(self.last).unwrap_or(usize::MAX);
        match self.source {
            From::Postgresql => from_archive(database, key, newest).await,
            From::Auto if self.redis_url.is_empty() => from_archive(database, key, newest).await,
            From::Auto => {
                let hot = self.hot(&database.archive)?;
                let reader = Reader::new(
                    database.archive.clone(),
                    hot.clone(),
                    Metrics::new(),
                    ReadingSettings::default(),
                );
                let window = Window { newest, before: None };
                let read = reader.read(key, &window).await;
                let read = read.map_err(|error| database.away(with_causes(&error)))?;
                // A reader does not mind why Redis is silent; an operator does.
                let redis_error = if hot.is_known_down() {
                    hot.probe().await.err().map(|error| with_causes(&error))
                } else {
                    None
                };
                Ok(read.map(|transcript| Read { transcript, redis_error }))
            }
            From::Redis => self.read_hot(database, key, newest).await,
        }
    }

    async fn read_hot(
        &self,
        database: &Database,
        key: &ConversationKey,
        newest: usize,
    ) -> Result<Option<Read>, Failure> {
        let hot = self.hot(&database.archive)?;
        let window = Window { newest, before: None };
        let (numbers, copy) = tokio::join!(database.archive.numbers(key), hot.read(key, &window));
        let numbers = numbers.map_err(|error| database.failure(&error))?;
        let copy = copy.map_err(|error| {
            Failure::Away(Away {
                server: "Redis",
                setting: "REDIS_URL",
                address: shown(&self.redis_url),
                cause: with_causes(&error),
            })
        })?;
        let Some(conversation) = numbers.conversation else { return Ok(None) };
        let current = hot_store::Numbers {
            epoch: numbers.hot_epoch,
            generation: conversation.hot_generation,
        };
        let mut messages = copy.usable(current).map_err(|miss| {
            let mend = "the messages are in PostgreSQL: --source auto reads them there, and loads \
                        the copy of a conversation that is not archived";
            Failure::problem(format!("Redis cannot answer: {miss}"), mend)
        })?;
        messages
            .retain(|m| conversation.erased_at.is_none_or(|erased_at| m.created_at > erased_at));
        let transcript = Transcript {
            status: Some(conversation.status),
            messages,
            source: Source::HotCopy,
            degraded: false,
        };
        Ok(Some(Read { transcript, redis_error: None }))
    }

    fn hot(&self, archive: &Archive) -> Result<HotStore, Failure> {
        let usage = |why: String| Failure::Usage(format!("REDIS_URL: {why}"));
        if self.redis_url.is_empty() {
            let example = "set it, for example to redis://:password@host:6379/0";
            return Err(usage(format!("it is not set, and --source redis reads there; {example}")));
        }
        let address =
            Address::parse(&joined(&self.redis_url)).map_err(|error| usage(error.to_string()))?;
        let admit = admission(archive.clone(), Metrics::new(), Fresh::random());
        HotStore::open(hot_store::Settings::new(address), admit)
            .map_err(|error| usage(error.to_string()))
    }
}

async fn from_archive(
    database: &Database,
    key: &ConversationKey,
    newest: usize,
) -> Result<Option<Read>, Failure> {
    let page = Page { newest, max_bytes: usize::MAX, before: None };
    let snapshot = database.archive.read(key, &page).await;
    let snapshot = snapshot.map_err(|error| database.failure(&error))?;
    Ok(snapshot.numbers.conversation.map(|conversation| Read {
        transcript: Transcript {
            status: Some(conversation.status),
            messages: snapshot.messages,
            source: Source::Archive,
            degraded: false,
        },
        redis_error: None,
    }))
}

fn shown_message(message: &Message) -> MessageShown<'_> {
    MessageShown {
        id: message.id.as_str(),
        role: message.role,
        content: match &message.content {
            Content::Text(text) => ContentShown::Text(text),
            Content::Parts { json, .. } => ContentShown::Parts(json),
        },
        tool_calls: message.tool_calls.as_ref(),
        tool_call_id: message.tool_call_id.as_deref(),
        tokens_estimate: message.tokens_estimate,
        user_id: message.user_id.as_ref().map(AsRef::as_ref),
        agent_id: message.agent_id.as_ref().map(AsRef::as_ref),
        model_name: message.model_name.as_deref(),
        processing_time_ms: message.processing_time_ms,
        created_at: message.created_at,
        received_at: message.received_at,
        metadata: message.metadata.as_ref(),
    }
}

fn text(shown: &Shown<'_>, messages: &[Message], look: &Look) -> String {
    let row = shown.conversation;
    let paint = look.paint;
    let id = paint.text(Tone::Strong, &one_line(&row.id));
    let mut out = format!("conversation {id} of tenant {}\n", one_line(&row.tenant_id));
    let mut line = |name: &str, tone: Tone, what: &str| {
        let name = paint.text(Tone::Dim, &format!("{name:<14}"));
        out.push_str(&format!("  {name}{}\n", paint.text(tone, &one_line(what))));
    };
    line("status", tone(&row.status), &state(row, look));
    line("began", Tone::Plain, &moment(row.created_at));
    for (name, value) in [
        ("session", Some(row.session_id.as_str())),
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
        line("statistics", Tone::Plain, &told(statistics));
    }
    let all = plural(row.message_count, "message");
    let messages_told = match i64::try_from(messages.len()) {
        Ok(n) if n < row.message_count => format!("the newest {} of {all}", count(n)),
        _ => all,
    };
    let (source, tone) = match (&shown.redis_error, shown.degraded, shown.source) {
        (_, true, _) => ("from Redis; PostgreSQL is silent, some may be missing", Tone::Bad),
        (Some(_), ..) => ("from PostgreSQL, since Redis is away", Tone::Warn),
        (None, false, "redis") => ("from the hot copy in Redis", Tone::Plain),
        (None, false, _) => ("from PostgreSQL", Tone::Plain),
    };
    line("read", tone, &format!("{messages_told}, {source}; times are UTC"));
    if let Some(error) = &shown.redis_error {
        line("Redis", Tone::Warn, error);
    }
    for message in messages {
        out.push('\n');
        out.push_str(&spoken(message, look));
    }
    out
}

/// Where a conversation stands, in one line.
fn state(row: &ConversationRow, look: &Look) -> String {
    let reason = row.close_reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    match (row.status.as_str(), row.finalised_at, row.close_requested_at) {
        ("archived", Some(at), _) => {
            format!("archived {}, {}{reason}", ago(at, look.now), moment(at))
        }
        ("active", _, Some(at)) => {
            format!("active; its close was asked for {}{reason}", ago(at, look.now))
        }
        ("active", Some(at), None) => format!("active again; archived before, {}", moment(at)),
        (status, ..) => format!("{status}{reason}"),
    }
}

fn told(statistics: &ConversationStats) -> String {
    let ConversationStats { message_count, user_messages, assistant_messages, .. } = statistics;
    let mut told = vec![
        format!(
            "{} ({user_messages} of the user, {assistant_messages} of the assistant)",
            plural(*message_count, "message")
        ),
        plural(statistics.total_tokens, "token"),
        span(statistics.duration_seconds),
    ];
    if let Some(seconds) = statistics.avg_response_seconds {
        told.push(format!("answered within {} on average", span(seconds)));
    }
    told.join(", ")
}

/// A message as it was said.
fn spoken(message: &Message, look: &Look) -> String {
    const INDENT: &str = "  ";
    let paint = look.paint;
    let tone = match message.role {
        Role::User => Tone::Human,
        Role::Assistant => Tone::Model,
        Role::System | Role::Tool | Role::Function => Tone::Strong,
    };
    let by = [
        message.user_id.as_ref().map(AsRef::as_ref),
        message.agent_id.as_ref().map(AsRef::as_ref),
        message.model_name.as_deref(),
        Some(message.id.as_str()),
    ];
    let by: Vec<String> = by.into_iter().flatten().map(one_line).collect();
    let mut out = format!(
        "{}  {}  {}\n",
        precise(message.created_at.into()),
        paint.text(tone, message.role.as_str()),
        paint.text(Tone::Dim, &by.join(" · "))
    );
    if let Some(call) = &message.tool_call_id {
        let answered = format!("answers {}", one_line(call));
        out.push_str(&format!("{INDENT}{}\n", paint.text(Tone::Dim, &answered)));
    }
    if !message.content.text().is_empty() {
        out.push_str(&block(message.content.text(), INDENT));
    }
    if let Some(parts) = message.content.parts() {
        let parts = format!("parts {}", one_line(&excerpt(parts.as_str(), EXCERPT)));
        out.push_str(&format!("{INDENT}{}\n", paint.text(Tone::Dim, &parts)));
    }
    if let Some(calls) = &message.tool_calls {
        let calls = format!("calls {}", one_line(&excerpt(calls.as_str(), EXCERPT)));
        out.push_str(&format!("{INDENT}{}\n", paint.text(Tone::Dim, &calls)));
    }
    out
}

/// What a text shows of a JSON value, in characters; JSON output has all of it.
const EXCERPT: usize = 300;

#[cfg(test)]
mod tests {
    use domain::ids::{AgentId, MessageId, UserId};

    use super::*;
    use crate::commands::conversation_list::tests::{archived, at};
    use crate::look::Paint;

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

    fn shown<'a>(
        row: &'a ConversationRow,
        statistics: Option<&'a ConversationStats>,
        messages: &'a [Message],
    ) -> Shown<'a> {
        Shown {
            conversation: row,
            source: "postgresql",
            degraded: false,
            redis_error: None,
            statistics,
            messages: messages.iter().map(shown_message).collect(),
        }
    }

    fn look() -> Look {
        let now = Timestamp::parse("2026-11-20T12:00:00Z").unwrap();
        Look { paint: Paint::Plain, now }
    }

    #[test]
    fn a_transcript_reads_as_it_was_said() {
        let (row, statistics, messages) = (archived(), statistics(), messages());
        let shown = shown(&row, Some(&statistics), &messages);
        insta::assert_snapshot!(text(&shown, &messages, &look()));
    }

    #[test]
    fn its_json_keeps_every_value_as_it_was_sent() {
        let (row, statistics, messages) = (archived(), statistics(), messages());
        let shown = shown(&row, Some(&statistics), &messages);
        insta::assert_snapshot!(serde_json::to_string_pretty(&shown).unwrap());
    }

    #[test]
    fn what_is_left_out_and_who_is_away_is_said() {
        let row = ConversationRow {
            status: "active".to_owned(),
            message_count: 10_000,
            finalised_at: None,
            satisfaction: None,
            ..archived()
        };
        let messages = [];
        let away = Shown {
            redis_error: Some("no connection to Redis".to_owned()),
            ..shown(&row, None, &messages)
        };
        insta::assert_snapshot!(text(&away, &messages, &look()));
    }
}
