//! Reading: from the hot copy where it is complete, else from PostgreSQL; never a guess.
//!
//! The numbers that judge a copy are read from PostgreSQL beside every read of Redis, so a copy
//! that missed a message is not believed even a moment later. A miss loads: intent first, then
//! numbers and rows in one snapshot, then rows and mark in one step if the intent is still there.
//! "Unavailable" is never answered as "empty".

use database::{ConversationNumbers, Database, Numbers, Page, Snapshot};
use domain::causes::with_causes;
use domain::failure::Unavailable;
use domain::ids::ConversationKey;
use domain::message::Message;
use domain::status::ConversationStatus;
use domain::time::Timestamp;
use hot_store::{CompleteFrom, CompletenessMarker, HotCopy, HotStore, Loaded, Miss, Window};
use metrics::{Counter, HotLoad, HotRead, Metrics};

/// How much a load brings into Redis.
#[derive(Debug, Clone, Copy)]
pub struct ReadingSettings {
    /// At most so many of the newest messages.
    pub load_messages: usize,
    /// At most so many bytes of content.
    pub load_bytes: usize,
}

impl Default for ReadingSettings {
    /// 1 000 messages or 4 MiB: more than any model's window of ordinary messages, and a few
    /// milliseconds of Redis.
    fn default() -> Self {
        Self { load_messages: 1_000, load_bytes: 4 * 1024 * 1024 }
    }
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Redis.
    HotCopy,
    /// PostgreSQL.
    Database,
}

/// What a conversation says.
#[derive(Debug, Clone, PartialEq)]
pub struct Transcript {
    /// Its state; `None` when PostgreSQL did not answer.
    pub status: Option<ConversationStatus>,
    /// The messages of the window, oldest first.
    pub messages: Vec<Message>,
    /// Where they came from.
    pub source: Source,
    /// Whether the answer may lack messages, because PostgreSQL did not answer.
    pub degraded: bool,
}

/// Reads conversations. Clones share their connections.
#[derive(Clone)]
pub struct Reader {
    database: Database,
    hot: HotStore,
    metrics: Metrics,
    settings: ReadingSettings,
}

impl Reader {
    /// A reader over the two stores.
    #[must_use]
    pub fn new(
        database: Database,
        hot: HotStore,
        metrics: Metrics,
        settings: ReadingSettings,
    ) -> Self {
        Self { database, hot, metrics, settings }
    }

    /// The newest messages of a conversation, or those before a position; `None` when there is no
    /// such conversation.
    ///
    /// # Errors
    /// PostgreSQL does not answer, and Redis holds nothing of the conversation.
    pub async fn read(
        &self,
        key: &ConversationKey,
        window: &Window,
    ) -> Result<Option<Transcript>, Unavailable> {
        // Before the numbers: a server that is met only now may have an older copy with its mark, and
        // what voids that must be among them.
        let redis = self.hot.reading().await;
        let copy = async {
            match redis {
                Ok(redis) => redis.read(key, window).await,
                Err(error) => Err(error),
            }
        };
        let (numbers, copy) = tokio::join!(self.database.numbers(key), copy);
        let numbers = match numbers {
            Ok(numbers) => numbers,
            Err(error) => return self.degraded(copy, error),
        };
        let Some(conversation) = numbers.conversation.clone() else {
            return Ok(None);
        };
        match copy {
            Ok(copy) => match copy.usable(marked(&numbers, &conversation)) {
                Ok(messages) => {
                    self.count(HotRead::Hit);
                    Ok(Some(Transcript {
                        status: Some(conversation.status),
                        messages: above(messages, conversation.erased_at),
                        source: Source::HotCopy,
                        degraded: false,
                    }))
                }
                Err(miss) => {
                    let (result, worth_a_load) = match miss {
                        Miss::NoMarker => (HotRead::Miss, true),
                        Miss::Outdated | Miss::Damaged(_) => (HotRead::Stale, true),
                        // The copy is sound and begins where another load would: at the limits of
                        // one. Loading again would empty it for nothing.
                        Miss::BeforeCompleteFrom | Miss::CutShort => (HotRead::Miss, false),
                    };
                    let why = miss.as_str();
                    if result == HotRead::Stale {
                        tracing::info!(conversation = %key, why, "a hot copy is stale: PostgreSQL answers");
                    } else {
                        tracing::debug!(conversation = %key, why, "hot copy not used");
                    }
                    self.count(result);
                    if worth_a_load {
                        self.read_and_load(key, window, conversation.status).await
                    } else {
                        self.read_database(key, window).await
                    }
                }
            },
            Err(error) => {
                tracing::debug!(conversation = %key, error = with_causes(&error), "hot copy not read");
                self.count(HotRead::Unavailable);
                self.read_database(key, window).await
            }
        }
    }

    /// Reads from PostgreSQL and fills the copy, where the window is one that a copy can serve and
    /// the conversation is one that is likely to be read again.
    async fn read_and_load(
        &self,
        key: &ConversationKey,
        window: &Window,
        status: ConversationStatus,
    ) -> Result<Option<Transcript>, Unavailable> {
        let fits = window.before.is_none() && window.newest <= self.settings.load_messages;
        if !fits || status == ConversationStatus::Archived {
            return self.read_database(key, window).await;
        }
        let load_token = match self.hot.begin_load(key).await {
            Ok(load_token) => load_token,
            Err(error) => {
                let superseded = matches!(error, hot_store::Error::LoadUnderWay);
                let result = if superseded { HotLoad::Superseded } else { HotLoad::Failed };
                self.metrics.add(Counter::HotLoads { result }, 1);
                return self.read_database(key, window).await;
            }
        };
        let page = Page {
            newest: self.settings.load_messages,
            max_bytes: self.settings.load_bytes,
            before: None,
        };
        let snapshot = self.database.read(key, &page).await?;
        let Some(conversation) = snapshot.numbers.conversation.clone() else {
            return Ok(None);
        };
        let complete_from = match snapshot.messages.first() {
            Some(oldest) if !snapshot.from_beginning => CompleteFrom::At(oldest.position()),
            _ => CompleteFrom::Beginning,
        };
        let marker =
            CompletenessMarker { numbers: marked(&snapshot.numbers, &conversation), complete_from };
        let result = match self.hot.finish_load(load_token, &marker, &snapshot.messages).await {
            Ok(Loaded::Accepted) => HotLoad::Loaded,
            Ok(Loaded::Superseded) => HotLoad::Superseded,
            Err(_) => HotLoad::Failed,
        };
        self.metrics.add(Counter::HotLoads { result }, 1);
        if snapshot.messages.len() < window.newest && !snapshot.from_beginning {
            // Large bodies cut the load short of what was asked for.
            return self.read_database(key, window).await;
        }
        Ok(Some(from_snapshot(snapshot, window.newest)))
    }

    async fn read_database(
        &self,
        key: &ConversationKey,
        window: &Window,
    ) -> Result<Option<Transcript>, Unavailable> {
        let page =
            Page { newest: window.newest, max_bytes: usize::MAX, before: window.before.clone() };
        let snapshot = self.database.read(key, &page).await?;
        Ok(snapshot.numbers.conversation.is_some().then(|| from_snapshot(snapshot, window.newest)))
    }

    /// PostgreSQL is silent: what Redis holds, said to be degraded, or nothing but the error.
    fn degraded(
        &self,
        copy: Result<HotCopy, hot_store::Error>,
        error: database::Error,
    ) -> Result<Option<Transcript>, Unavailable> {
        match copy {
            Ok(copy) if !copy.messages.is_empty() => Ok(Some(Transcript {
                status: None,
                messages: copy.messages,
                source: Source::HotCopy,
                degraded: true,
            })),
            _ => Err(error.into()),
        }
    }

    fn count(&self, result: HotRead) {
        self.metrics.add(Counter::HotReads { result }, 1);
    }
}

pub(crate) fn marked(numbers: &Numbers, conversation: &ConversationNumbers) -> hot_store::Numbers {
    hot_store::Numbers { epoch: numbers.hot_epoch, generation: conversation.hot_generation }
}

fn above(mut messages: Vec<Message>, erased_at: Option<Timestamp>) -> Vec<Message> {
    if let Some(erased_at) = erased_at {
        messages.retain(|message| message.created_at > erased_at);
    }
    messages
}

fn from_snapshot(mut snapshot: Snapshot, newest: usize) -> Transcript {
    let surplus = snapshot.messages.len().saturating_sub(newest);
    snapshot.messages.drain(..surplus);
    Transcript {
        status: snapshot.numbers.conversation.map(|conversation| conversation.status),
        messages: snapshot.messages,
        source: Source::Database,
        degraded: false,
    }
}
