//! Reading what was saved: as a reader gets it with Redis, and from PostgreSQL alone.

use std::time::Duration;

use conversation::{RandomSource, Reader, ReadingSettings, Source, Transcript, record_server};
use database::{Database, Page};
use domain::failure::Unavailable;
use domain::ids::ConversationKey;
use domain::message::Message;
use domain::status::ConversationStatus;
use hot_store::{Address, HotStore, Window};
use metrics::Metrics;
use testkit::wait::eventually;

use crate::LIMIT;

/// More than any conversation here holds, and as much as one load brings into Redis.
pub(crate) const ALL: usize = 1_000;

/// A reader with its own connections to both stores.
pub struct TestReader {
    database: Database,
    reader: Reader,
}

impl TestReader {
    /// A reader of these stores.
    ///
    /// # Panics
    /// When a URL is none.
    #[must_use]
    pub fn of(database_url: &str, redis_url: &str) -> Self {
        let (database, metrics) = (database(database_url), Metrics::new());
        let settings = hot_store::Settings::new(Address::parse(redis_url).expect("Redis's URL"));
        let admit = record_server(database.clone(), metrics.clone(), RandomSource::random());
        let hot = HotStore::open(settings, admit);
        let reader = Reader::new(database.clone(), hot, metrics, ReadingSettings::default());
        Self { database, reader }
    }

    /// What a reader gets.
    ///
    /// # Panics
    /// When PostgreSQL does not answer, or there is no such conversation.
    pub async fn transcript(&self, key: &ConversationKey) -> Transcript {
        let transcript = self.glance(key).await.expect("a reader is served");
        transcript.unwrap_or_else(|| panic!("there is no conversation {key}"))
    }

    /// What a reader gets, or why it gets nothing; `None` when there is no such conversation.
    ///
    /// # Errors
    /// When neither store serves it.
    pub async fn glance(&self, key: &ConversationKey) -> Result<Option<Transcript>, Unavailable> {
        self.reader.read(key, &Window { newest: ALL, before: None }).await
    }

    /// What PostgreSQL says by itself.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn archived(&self, key: &ConversationKey) -> Vec<Message> {
        let page = Page { newest: ALL, max_bytes: usize::MAX, before: None };
        self.database.read(key, &page).await.expect("PostgreSQL answers").messages
    }

    /// What both stores say of a conversation that is active, having made sure that it is the same.
    ///
    /// # Panics
    /// When they differ, or when Redis does not serve a second read.
    pub async fn both(&self, key: &ConversationKey) -> Vec<Message> {
        let (read, archived) = self.two_ways(key).await;
        assert_eq!(read.source, Source::HotCopy, "{key} is {:?}", read.status);
        assert_eq!(read.messages, archived, "Redis and PostgreSQL agree on {key}");
        archived
    }

    /// What a reader gets, from Redis unless the conversation is archived; and what PostgreSQL says.
    ///
    /// # Panics
    /// When Redis does not serve a second read of a conversation that is not archived.
    pub async fn two_ways(&self, key: &ConversationKey) -> (Transcript, Vec<Message>) {
        let read = eventually(format!("a hot copy of {key}"), LIMIT, async || {
            let read = self.transcript(key).await;
            match (read.source, read.status) {
                (Source::HotCopy, _) | (_, Some(ConversationStatus::Archived)) => Ok(read),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        (read, self.archived(key).await)
    }

    /// Waits until a conversation has a status, and returns what a reader then gets.
    ///
    /// # Panics
    /// When it does not within [`LIMIT`].
    pub async fn reaches(&self, key: &ConversationKey, status: ConversationStatus) {
        eventually(format!("{key} to be {}", status.as_str()), LIMIT, async || {
            let numbers = self.database.numbers(key).await.map_err(|error| error.to_string())?;
            match numbers.conversation {
                Some(found) if found.status == status => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}

/// A pool of a test's own.
///
/// # Panics
/// When the URL is none.
pub(crate) fn database(database_url: &str) -> Database {
    Database::open(&database::Settings {
        url: database_url.to_owned(),
        application: "test".to_owned(),
        connections: 4,
        time_out: Duration::from_secs(30),
        lock_time_out: Duration::from_secs(5),
    })
    .expect("PostgreSQL's URL")
}
