//! `verbatim conversation show`: one conversation, as a reader gets it.
//!
//! It names the server that the messages came from, so that an operator can compare both: the hot copy
//! in Redis must hold exactly the messages in PostgreSQL.

mod text;

use clap::{Args, ValueEnum};
use conversation::{
    HotCopyError, Reader, Transcript, TranscriptView, read_database, read_hot_copy,
};
use database::ConversationFilter;
use domain::causes::with_causes;
use domain::ids::{ConversationId, ConversationKey, SessionId, TenantId};
use hot_store::Window;
use metrics::Metrics;
use service::settings::DatabaseSettings;
use stores::{DatabaseServer, RedisServer};

use crate::exit::{Exit, Failure};
use crate::output::{Output, one_line};
use crate::values::OptionalRedis;

/// Session events and feedback that are shown: more than a conversation usually has.
const EVENTS: u32 = 1_000;

/// Shows a conversation: its messages, status and statistics
///
/// The messages are those that a reader gets: from the hot copy in Redis if that is complete and
/// current, else from PostgreSQL.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  verbatim conversation show --tenant acme --session web-1
  verbatim conversation show --tenant acme 4d1e6f3a-0d2b-5c8e-9b1a-7f1e2d3c4b5a --last 10
  verbatim conversation show --tenant acme --session web-1 --source postgresql --json

Without REDIS_URL it reads PostgreSQL. Exit code 1: there is no such conversation; or, with
--source redis, Redis has no complete and current hot copy of it.")]
#[command(
    override_usage = "verbatim conversation show [OPTIONS] --tenant <TENANT> <CONVERSATION|--session <SESSION>>"
)]
pub(crate) struct ConversationShow {
    /// Tenant of the conversation
    #[arg(long, value_parser = |text: &str| TenantId::new(text), allow_hyphen_values = true)]
    tenant: TenantId,

    /// Id of the conversation
    #[arg(value_parser = |text: &str| ConversationId::new(text), allow_hyphen_values = true)]
    #[arg(required_unless_present = "session", conflicts_with = "session")]
    conversation: Option<ConversationId>,

    /// Session that began the conversation, instead of its id
    #[arg(long, value_parser = |text: &str| SessionId::new(text), allow_hyphen_values = true)]
    session: Option<SessionId>,

    /// Number of messages, at most; the newest
    #[arg(long, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    last: u32,

    /// Print messages whole, however large. JSON always has all of them
    #[arg(long)]
    full: bool,

    /// Where to read the messages from
    #[arg(long, value_enum, default_value = "auto")]
    source: ReadFrom,

    #[command(flatten)]
    database: DatabaseSettings,

    #[command(flatten)]
    redis: OptionalRedis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReadFrom {
    /// As readers do: Redis if its hot copy is complete and current, else PostgreSQL
    Auto,
    /// Only the hot copy in Redis
    Redis,
    /// Only PostgreSQL
    Postgresql,
}

impl ConversationShow {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let server = DatabaseServer::open(&self.database).await?;
        let database = &server.database;
        let key = self.key(&server).await?;
        let missing = || {
            let what = format!("tenant {} has no conversation {}", key.tenant, key.conversation);
            Failure::problem(
                what,
                "`verbatim conversation list --tenant …` lists the conversations of a tenant",
            )
        };
        let (transcript, redis_error) = self.read(&server, &key).await?;
        let transcript = transcript.ok_or_else(missing)?;
        let (row, sessions, events, statistics) = tokio::join!(
            database.conversation(&key),
            database.sessions(&key),
            database.session_events(&key, EVENTS),
            database.conversation_stats(&key)
        );
        let row = row.map_err(|error| server.failure(&error))?.ok_or_else(missing)?;
        let sessions = sessions.map_err(|error| server.failure(&error))?;
        let events = events.map_err(|error| server.failure(&error))?;
        let statistics = statistics.map_err(|error| server.failure(&error))?;
        let view = TranscriptView::new(&row, &sessions, &events, statistics.as_ref(), &transcript);
        let view = TranscriptView { redis_error, ..view };
        let limits = if self.full { &text::Limits::NONE } else { &text::Limits::USUAL };
        output.show(&view, |out| text::write(&view, &transcript.messages, limits, out))?;
        Ok(Exit::Success)
    }

    /// The key of the conversation: by its id, or by the session that began it.
    async fn key(&self, server: &DatabaseServer) -> Result<ConversationKey, Failure> {
        let tenant = self.tenant.clone();
        if let Some(conversation) = self.conversation.clone() {
            return Ok(ConversationKey { tenant, conversation });
        }
        let missing = || Failure::usage("give the id of a conversation, or --session");
        let session = self.session.as_ref().ok_or_else(missing)?;
        let filter = ConversationFilter {
            tenant: Some(tenant.to_string()),
            session: Some(session.to_string()),
            ..ConversationFilter::default()
        };
        /// Conversations that an ambiguous session lists.
        const LISTED: u32 = 20;
        let found = server.database.conversations(&filter, LISTED + 1).await;
        let found = found.map_err(|error| server.failure(&error))?;
        match found.as_slice() {
            // The id that is derived from the session, for actions without conversation_id.
            [] => Ok(ConversationKey::of_session(tenant, session)),
            [one] => ConversationKey::parse(&one.tenant_id, &one.id).map_err(|error| {
                Failure::plain(format!("the id of a stored conversation is invalid: {error}"))
            }),
            several => {
                let listed = several.iter().take(LISTED as usize);
                let ids: Vec<_> = listed.map(|row| one_line(&row.id)).collect();
                let more = if several.len() > ids.len() { "more than " } else { "" };
                let what = format!("session {session} began {more}{} conversations", ids.len());
                Err(Failure::problem(
                    what,
                    format!("give one of these ids instead: {}", ids.join(", ")),
                ))
            }
        }
    }

    /// The messages, and the error of Redis if it did not answer.
    async fn read(
        &self,
        server: &DatabaseServer,
        key: &ConversationKey,
    ) -> Result<(Option<Transcript>, Option<String>), Failure> {
        let newest = usize::try_from(self.last).unwrap_or(usize::MAX);
        let (window, database) = (Window { newest, before: None }, &server.database);
        match self.source {
            ReadFrom::Auto if !self.redis.redis_url.is_empty() => {
                let hot = self.redis(server)?.hot;
                let reader = Reader::new(database.clone(), hot.clone(), Metrics::new());
                let read = reader.read(key, &window).await;
                let read = read.map_err(|error| server.failure(&error))?;
                // The reader does not return the error of Redis.
                let redis_error = if hot.is_known_down() {
                    hot.probe().await.err().map(|error| with_causes(&error))
                } else {
                    None
                };
                Ok((read, redis_error))
            }
            ReadFrom::Auto | ReadFrom::Postgresql => {
                let read = read_database(database, key, &window).await;
                Ok((read.map_err(|error| server.failure(&error))?, None))
            }
            ReadFrom::Redis => {
                let redis = self.redis(server)?;
                let read = read_hot_copy(database, &redis.hot, key, &window).await;
                let read = read.map_err(|error| match error {
                    HotCopyError::Database(error) => server.failure(&error).into(),
                    HotCopyError::Redis(error) => redis.failure(&error).into(),
                    HotCopyError::Unusable(_) | HotCopyError::NoEpoch => Failure::problem(
                        error.to_string(),
                        "use --source auto: it reads PostgreSQL, and loads the hot copy of a \
                         conversation that is not archived",
                    ),
                })?;
                Ok((read, None))
            }
        }
    }

    fn redis(&self, server: &DatabaseServer) -> Result<RedisServer, Failure> {
        if self.redis.redis_url.is_empty() {
            return Err(Failure::usage(
                "REDIS_URL: it is not set, but --source redis needs it; set it, for example to \
                 redis://:password@host:6379/0",
            ));
        }
        Ok(RedisServer::reading(&self.redis.redis_url, &server.database)?)
    }
}
