//! Reading: from the hot copy where it is proven complete, else from PostgreSQL.
//!
//! Epoch and generation are read from PostgreSQL together with every read of Redis. So a copy that missed a
//! message is not used, even a moment later. A miss loads the copy: first the load token, then epoch,
//! generation and rows in one snapshot, then rows and completeness marker in one step, if the load token is
//! still there. An unavailable server is an error, never an empty conversation.

use database::{ConversationNumbers, Database, Numbers, Page, Snapshot};
use domain::causes::with_causes;
use domain::failure::FailureClass;
use domain::ids::ConversationKey;
use domain::message::Message;
use domain::status::ConversationStatus;
use hot_store::{CompleteFrom, CompletenessMarker, HotCopy, HotStore, Loaded, Miss, Window};
use metrics::{Counter, HotLoad, HotRead, Metrics};
use serde::Serialize;

/// The most messages, newest first, and bytes of content that a load writes to Redis: more than the context window
/// of any model in ordinary messages, and a few milliseconds of Redis.
const LOAD_MESSAGES: usize = 1_000;
const LOAD_BYTES: usize = 4 * 1024 * 1024;

/// Which server the messages came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Source {
    /// Redis.
    #[serde(rename = "redis")]
    HotCopy,
    /// PostgreSQL.
    #[serde(rename = "postgresql")]
    Database,
}

/// The messages of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Transcript {
    /// Its state; `None` if PostgreSQL was unavailable.
    pub status: Option<ConversationStatus>,
    /// The messages of the window, oldest first.
    pub messages: Vec<Message>,
    /// Which server they came from.
    pub source: Source,
    /// Whether messages may be missing, because PostgreSQL was unavailable.
    pub degraded: bool,
}

/// Why a hot copy alone cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HotCopyError {
    /// PostgreSQL, which says whether it is current, failed.
    #[error(transparent)]
    Database(#[from] database::Error),
    /// Redis failed.
    #[error(transparent)]
    Redis(#[from] hot_store::Error),
    /// It is missing, incomplete or outdated.
    #[error("Redis has no usable hot copy: {0}")]
    Unusable(Miss),
    /// PostgreSQL cannot say whether it is current.
    #[error("no hot copy is valid: {NO_EPOCH}")]
    NoEpoch,
}

/// Why PostgreSQL has no current epoch.
const NO_EPOCH: &str = "PostgreSQL is a standby, or just failed over or was restored";

/// Reads conversations. Clones share their connections.
#[derive(Clone)]
pub struct Reader {
    database: Database,
    hot: HotStore,
    metrics: Metrics,
}

impl Reader {
    /// A reader of these two servers.
    #[must_use]
    pub fn new(database: Database, hot: HotStore, metrics: Metrics) -> Self {
        Self { database, hot, metrics }
    }

    /// The newest messages of a conversation, or those before a position; `None` if the conversation does not
    /// exist.
    ///
    /// # Errors
    /// PostgreSQL is unavailable and Redis has no message of the conversation; or PostgreSQL became unavailable
    /// after it had answered that the hot copy cannot be used; or PostgreSQL failed in another way.
    pub async fn read(
        &self,
        key: &ConversationKey,
        window: &Window,
    ) -> Result<Option<Transcript>, database::Error> {
        // Before the numbers: a server that is connected only now may hold an old copy with its marker. Its
        // connection changes the epoch, and the numbers must include that change.
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
            Err(error) => return Self::degraded(copy, error),
        };
        let Some(conversation) = numbers.conversation.clone() else {
            return Ok(None);
        };
        let copy = match copy {
            Ok(copy) => copy,
            Err(error) => {
                let error = with_causes(&error);
                tracing::debug!(
                    conversation = %key,
                    error,
                    "hot copy could not be read; reading from PostgreSQL"
                );
                self.count(HotRead::Unavailable);
                return self.read_rows(key, window).await;
            }
        };
        let Some(current) = current_numbers(&numbers, &conversation) else {
            tracing::info!(conversation = %key, why = NO_EPOCH, "outdated hot copy; reading from PostgreSQL");
            self.count(HotRead::Stale);
            // A load would have no epoch for its marker.
            return self.read_rows(key, window).await;
        };
        let usable = match Self::without_deleted(&self.database, key, &conversation, &copy).await? {
            true => copy.usable(current),
            false => Err(Miss::Outdated),
        };
        let miss = match usable {
            Ok(messages) => {
                self.count(HotRead::Hit);
                return Ok(Some(from_copy(messages, &conversation)));
            }
            Err(miss) => miss,
        };
        let why = miss.as_str();
        let load = match miss {
            Miss::Outdated | Miss::Damaged(_) => {
                tracing::info!(conversation = %key, why, "outdated hot copy; reading from PostgreSQL");
                self.count(HotRead::Stale);
                true
            }
            Miss::NoMarker | Miss::BeforeCompleteFrom | Miss::CutShort => {
                tracing::debug!(conversation = %key, why, "hot copy not usable; reading from PostgreSQL");
                self.count(HotRead::Miss);
                // A valid copy begins where another load would begin: at the limits of a load. Loading again
                // would empty it and gain nothing.
                matches!(miss, Miss::NoMarker)
            }
        };
        if load {
            self.read_and_load(key, window, conversation.status).await
        } else {
            self.read_rows(key, window).await
        }
    }

    /// Reads from PostgreSQL. Also loads the copy, if a copy can serve this window and the conversation is not
    /// archived, so that it is likely to be read again.
    async fn read_and_load(
        &self,
        key: &ConversationKey,
        window: &Window,
        status: ConversationStatus,
    ) -> Result<Option<Transcript>, database::Error> {
        let fits = window.before.is_none() && window.newest <= LOAD_MESSAGES;
        if !fits || status == ConversationStatus::Archived {
            return self.read_rows(key, window).await;
        }
        let load_token = match self.hot.begin_load(key).await {
            Ok(load_token) => load_token,
            Err(error) => {
                let superseded = matches!(error, hot_store::Error::LoadUnderWay);
                let result = if superseded { HotLoad::Superseded } else { HotLoad::Failed };
                self.metrics.add(Counter::HotLoads { result }, 1);
                return self.read_rows(key, window).await;
            }
        };
        let page = Page { newest: LOAD_MESSAGES, max_bytes: LOAD_BYTES, before: None };
        let snapshot = self.database.read(key, &page).await?;
        let Some(conversation) = snapshot.numbers.conversation.clone() else {
            return Ok(None);
        };
        let complete_from = match snapshot.messages.first() {
            Some(oldest) if !snapshot.from_beginning => CompleteFrom::At(oldest.position()),
            _ => CompleteFrom::Beginning,
        };
        let result = match current_numbers(&snapshot.numbers, &conversation) {
            Some(numbers) => {
                let marker = CompletenessMarker { numbers, complete_from };
                match self.hot.finish_load(load_token, &marker, &snapshot.messages).await {
                    Ok(Loaded::Accepted) => HotLoad::Loaded,
                    Ok(Loaded::Superseded) => HotLoad::Superseded,
                    Err(_) => HotLoad::Failed,
                }
            }
            None => HotLoad::Superseded,
        };
        self.metrics.add(Counter::HotLoads { result }, 1);
        if snapshot.messages.len() < window.newest && !snapshot.from_beginning {
            // Large messages reached the byte limit of the load before the window was filled.
            return self.read_rows(key, window).await;
        }
        Ok(Some(from_snapshot(snapshot, window.newest)))
    }

    async fn read_rows(
        &self,
        key: &ConversationKey,
        window: &Window,
    ) -> Result<Option<Transcript>, database::Error> {
        read_database(&self.database, key, window).await
    }

    /// PostgreSQL failed. If it is unavailable, returns what Redis holds, marked as degraded; else the error.
    /// Whether a copy has no message that was deleted. A slow saver may have appended one after the deletion.
    async fn without_deleted(
        database: &Database,
        key: &ConversationKey,
        conversation: &ConversationNumbers,
        copy: &HotCopy,
    ) -> Result<bool, database::Error> {
        if !conversation.has_deleted {
            return Ok(true);
        }
        let ids: Vec<&str> = copy.messages.iter().map(|message| message.id.as_str()).collect();
        Ok(!database.has_deleted(key, &ids).await?)
    }

    fn degraded(
        copy: Result<HotCopy, hot_store::Error>,
        error: database::Error,
    ) -> Result<Option<Transcript>, database::Error> {
        let unavailable =
            matches!(error.class(), FailureClass::Unavailable | FailureClass::Transient);
        match copy {
            Ok(copy) if unavailable && !copy.messages.is_empty() => Ok(Some(Transcript {
                status: None,
                messages: copy.messages,
                source: Source::HotCopy,
                degraded: true,
            })),
            _ => Err(error),
        }
    }

    fn count(&self, result: HotRead) {
        self.metrics.add(Counter::HotReads { result }, 1);
    }
}

/// Reads from PostgreSQL alone; `None` if the conversation does not exist.
///
/// # Errors
/// PostgreSQL failed.
pub async fn read_database(
    database: &Database,
    key: &ConversationKey,
    window: &Window,
) -> Result<Option<Transcript>, database::Error> {
    let page = Page { newest: window.newest, max_bytes: usize::MAX, before: window.before.clone() };
    let snapshot = database.read(key, &page).await?;
    Ok(snapshot.numbers.conversation.is_some().then(|| from_snapshot(snapshot, window.newest)))
}

/// Reads the hot copy alone; `None` if the conversation does not exist.
///
/// # Errors
/// A server failed, or the hot copy is not usable.
pub async fn read_hot_copy(
    database: &Database,
    hot: &HotStore,
    key: &ConversationKey,
    window: &Window,
) -> Result<Option<Transcript>, HotCopyError> {
    // Before the numbers: connecting may change the epoch, and the numbers must include that change.
    let redis = hot.reading().await;
    let numbers = database.numbers(key).await?;
    let copy = redis?.read(key, window).await?;
    let Some(conversation) = &numbers.conversation else { return Ok(None) };
    let current = current_numbers(&numbers, conversation).ok_or(HotCopyError::NoEpoch)?;
    if !Reader::without_deleted(database, key, conversation, &copy).await? {
        return Err(HotCopyError::Unusable(Miss::Outdated));
    }
    let messages = copy.usable(current).map_err(HotCopyError::Unusable)?;
    Ok(Some(from_copy(messages, conversation)))
}

/// The numbers that a completeness marker must have to be current; `None` if no marker is.
#[must_use]
pub fn current_numbers(
    numbers: &Numbers,
    conversation: &ConversationNumbers,
) -> Option<hot_store::Numbers> {
    let generation = conversation.hot_generation;
    numbers.hot_epoch.map(|epoch| hot_store::Numbers { epoch, generation })
}

fn from_copy(mut messages: Vec<Message>, conversation: &ConversationNumbers) -> Transcript {
    let erased_at = conversation.erased_at;
    messages.retain(|message| erased_at.is_none_or(|erased_at| message.created_at > erased_at));
    Transcript {
        status: Some(conversation.status),
        messages,
        source: Source::HotCopy,
        degraded: false,
    }
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
