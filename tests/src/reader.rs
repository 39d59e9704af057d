//! Reads saved messages: through the product's reader with Redis, and from PostgreSQL alone.

use std::time::Duration;

use conversation::{Source, Transcript};
use database::{Database, Page, Settings};
use domain::ids::ConversationKey;
use domain::message::Message;
use domain::status::ConversationStatus;
use fixtures::{LIMIT, Replica, database_settings};
use hot_store::Window;
use testkit::wait::eventually;

/// More messages than any conversation of these tests has, and the most that one load brings into Redis.
pub(crate) const ALL: usize = 1_000;

/// A reader with its own connections to both stores.
pub struct TestReader(Replica);

impl TestReader {
    /// A reader of these stores.
    ///
    /// # Panics
    /// When a URL is invalid.
    #[must_use]
    pub fn of(database_url: &str, redis_url: &str) -> Self {
        // A reader waits while faults slow its servers down.
        let settings = Settings {
            time_out: Duration::from_secs(30),
            lock_time_out: Duration::from_secs(5),
            ..database_settings(database_url)
        };
        Self(Replica::on(Database::open(&settings).expect("PostgreSQL's URL"), redis_url))
    }

    /// What the product's reader returns.
    ///
    /// # Panics
    /// When both stores are unavailable, or there is no such conversation.
    pub async fn transcript(&self, key: &ConversationKey) -> Transcript {
        let transcript = self.try_transcript(key).await.expect("a store that responds");
        transcript.unwrap_or_else(|| panic!("there is no conversation {key}"))
    }

    /// What the product's reader returns; `None` when there is no such conversation.
    ///
    /// # Errors
    /// When both stores are unavailable.
    pub async fn try_transcript(
        &self,
        key: &ConversationKey,
    ) -> Result<Option<Transcript>, database::Error> {
        self.0.reader.read(key, &Window { newest: ALL, before: None }).await
    }

    /// The messages of a conversation in PostgreSQL.
    ///
    /// # Panics
    /// When PostgreSQL is unavailable.
    pub async fn stored(&self, key: &ConversationKey) -> Vec<Message> {
        let page = Page { newest: ALL, max_bytes: usize::MAX, before: None };
        self.0.database.read(key, &page).await.expect("PostgreSQL responds").messages
    }

    /// The messages of an active conversation, which must be the same in Redis and in PostgreSQL.
    ///
    /// # Panics
    /// When they differ, or when no read is answered from Redis within [`LIMIT`].
    pub async fn both(&self, key: &ConversationKey) -> Vec<Message> {
        let (read, stored) = self.transcript_and_stored(key).await;
        assert_eq!(read.source, Source::HotCopy, "{key} is {:?}", read.status);
        assert_eq!(read.messages, stored, "Redis and PostgreSQL agree on {key}");
        stored
    }

    /// What the product's reader returns, from Redis unless the conversation is archived; and the
    /// messages in PostgreSQL.
    ///
    /// # Panics
    /// When no read of a conversation that is not archived is answered from Redis within [`LIMIT`].
    pub async fn transcript_and_stored(&self, key: &ConversationKey) -> (Transcript, Vec<Message>) {
        let read = eventually(format!("a hot copy of {key}"), LIMIT, async || {
            let read = self.transcript(key).await;
            match (read.source, read.status) {
                (Source::HotCopy, _) | (_, Some(ConversationStatus::Archived)) => Ok(read),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        (read, self.stored(key).await)
    }

    /// Waits until a conversation has a status.
    ///
    /// # Panics
    /// When it does not within [`LIMIT`].
    pub async fn reaches(&self, key: &ConversationKey, status: ConversationStatus) {
        eventually(format!("{key} to be {}", status.as_str()), LIMIT, async || {
            let numbers = self.0.database.numbers(key).await.map_err(|error| error.to_string())?;
            match numbers.conversation {
                Some(found) if found.status == status => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}
