//! Deleting single messages: first in PostgreSQL, where the hot copy becomes invalid in the same transaction, then the copy.

use std::time::Duration;

use database::{Database, Deleted, Deletion, Error};
use domain::action::Common;
use domain::causes::with_causes;
use domain::failure::{Failure, Unavailable};
use domain::ids::{ConversationKey, MessageId};
use failpoints::Step;
use hot_store::HotStore;
use metrics::{Counter, Metrics};

use crate::RandomSource;
use crate::background::Background;
use crate::recording::{Change, Recorder};

/// Deletes messages. Clones share their connections.
#[derive(Clone)]
pub struct Deletions {
    recorder: Recorder,
    hot: HotStore,
}

impl Deletions {
    /// Deletes from these two servers.
    #[must_use]
    pub fn new(
        database: &Database,
        hot: HotStore,
        metrics: Metrics,
        random: RandomSource,
        background: Background,
    ) -> Self {
        Self { recorder: Recorder::new(database, metrics, random, background), hot }
    }

    /// The same with this time limit, for single deletions that are slow or locked.
    #[must_use]
    pub fn with_time_limit(&self, limit: Duration) -> Self {
        Self { recorder: self.recorder.with_time_limit(limit), hot: self.hot.clone() }
    }

    /// Deletes messages: the action that deletes each, and its id. One outcome for each, in their order.
    ///
    /// # Errors
    /// PostgreSQL is unavailable; deleting them again is harmless.
    pub async fn delete(
        &self,
        messages: &[(&Common, &MessageId)],
    ) -> Result<Vec<Result<Deleted, Failure>>, Unavailable> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let deletions: Vec<Deletion> =
            messages.iter().map(|(common, message)| deletion(common, message)).collect();
        let keys: Vec<ConversationKey> = deletions.iter().map(|it| it.key.clone()).collect();
        let outcomes = self.recorder.record(deletions).await?;
        failpoints::reached(Step::DeletionCommitted);
        let deleted = outcomes.iter().filter(|it| matches!(it, Ok(Deleted::Now))).count();
        self.recorder.metrics().add(Counter::MessagesDeleted, deleted as u64);
        // Their conversations have new generations, so these copies are read only while PostgreSQL is unavailable. But what
        // was said shall not stay there.
        if let Err(error) = self.hot.drop_copies(&keys).await {
            tracing::warn!(
                conversations = keys.len(),
                error = with_causes(&error),
                "hot copies with deleted messages could not be dropped from Redis; they stay until they are loaded again or \
                 expire, and are read only while PostgreSQL is unavailable"
            );
        }
        Ok(outcomes)
    }
}

fn deletion(common: &Common, message: &MessageId) -> Deletion {
    let text = |id: &dyn AsRef<str>| id.as_ref().to_owned();
    Deletion {
        key: common.key.clone(),
        session: common.session.clone(),
        message: message.clone(),
        action: common.resolved_id.clone(),
        deleted_at: common.happened_at,
        received_at: common.received_at,
        user_id: common.user_id.as_ref().map(|id| text(id)),
        agent_id: common.agent_id.as_ref().map(|id| text(id)),
        model_name: common.model_name.clone(),
        tenant_tier: common.tenant_tier.clone(),
        metadata: common.metadata.clone(),
    }
}

impl Change for Deletion {
    type Applied = Deleted;

    fn key(&self) -> &ConversationKey {
        &self.key
    }

    fn id(&self) -> &str {
        self.action.as_str()
    }

    async fn apply(
        database: &Database,
        changes: &[Self],
        random: &(dyn Fn() -> i64 + Sync),
    ) -> Result<Vec<Deleted>, Error> {
        database.delete_messages(changes, random).await
    }
}
