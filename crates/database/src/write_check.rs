//! Test writes: what a batch writes, for a conversation of their own, and rolled back; and a commit of nothing.
//!
//! They tell whether PostgreSQL refuses or delays everything, or only what is in a batch. A server that answers a query
//! may still refuse every write, or hold a lock on a whole table.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use domain::action::{ActionKind, ConversationSource, TimeSource};
use domain::ids::{ConversationKey, InvalidId, MessageId, SessionId};
use domain::message::{Content, Message, Role};
use domain::session_event::SessionEvent;
use domain::time::Timestamp;
use uuid::Uuid;

use crate::dead_letters::{CollectedDeadLetter, DeadLetter, FailedMessage, insert_one};
use crate::rows::{SaveRow, corrupt};
use crate::save::insert_new;
use crate::sessions::apply_updates;
use crate::{Database, Result, SessionUpdate};

/// The tenant of test writes. None of them is ever committed.
const TENANT: &str = "verbatim-write-check";

/// New ids for one test write.
struct Ids {
    key: ConversationKey,
    session: SessionId,
    message: MessageId,
}

impl Ids {
    fn new() -> Result<Self> {
        let id = Uuid::new_v4().to_string();
        let ids = || {
            let key = ConversationKey::parse(TENANT, &id)?;
            Ok(Self { key, session: SessionId::new(&id)?, message: MessageId::new(&id)? })
        };
        ids().map_err(|error: InvalidId| corrupt("none", error.to_string()))
    }
}

impl Database {
    /// Checks whether a message can be saved.
    ///
    /// # Errors
    /// No message can be saved, for this reason.
    pub async fn check_save(&self) -> Result<()> {
        let Ids { key, session, message: id } = Ids::new()?;
        let message = message(id);
        let row = SaveRow::new(&key, &session, &message);
        self.test_write(async |connection| {
            let saved_by = match &self.writer {
                Some(writer) => Some(writer.row_to_check(connection).await?),
                None => None,
            };
            insert_new(connection, &row, saved_by).await
        })
        .await
    }

    /// Checks whether a session event can be recorded.
    ///
    /// # Errors
    /// No session event can be recorded, for this reason.
    pub async fn check_sessions(&self) -> Result<()> {
        let Ids { key, session, message: id } = Ids::new()?;
        let now = Timestamp::EARLIEST;
        let event = |kind, satisfaction| SessionEvent {
            id: id.clone(),
            kind,
            session: session.clone(),
            created_at: now,
            received_at: now,
            reason: None,
            satisfaction,
            user_id: None,
            agent_id: None,
            model_name: None,
            tenant_tier: None,
            metadata: None,
        };
        let update = |source, event| {
            SessionUpdate::new(key.clone(), source, TimeSource::Body, Arc::new(event))
        };
        // Together they need every statement of a batch but those that withdraw a close.
        let opened = event(ActionKind::SessionOpened, None);
        let closed = event(ActionKind::SessionClosed, Some(5));
        let updates = [
            update(ConversationSource::Explicit, opened),
            update(ConversationSource::FromSession, closed),
        ];
        let limit = self.limits.time_out;
        self.test_write(async |connection| apply_updates(connection, &updates, &|| 0, limit).await)
            .await
    }

    /// Checks whether a dead letter can be stored.
    ///
    /// # Errors
    /// No dead letter can be stored, for this reason.
    pub async fn check_dead_letters(&self) -> Result<()> {
        let now = DateTime::<Utc>::from(Timestamp::EARLIEST);
        let dead_letter = DeadLetter {
            id: Uuid::new_v4(),
            queue: TENANT.to_owned(),
            reason: TENANT.to_owned(),
            field: None,
            error: String::new(),
            tenant_id: None,
            conversation_id: None,
            session_id: None,
            message_id: None,
            action_type: None,
            routing_key: String::new(),
            exchange: String::new(),
            attempts: 1,
            replay_count: 0,
            replay_of: None,
            first_failed_at: now,
            last_failed_at: now,
        };
        let nothing = || serde_json::Value::Object(serde_json::Map::new());
        let message = FailedMessage {
            body: Default::default(),
            properties: nothing(),
            headers: nothing(),
            left_out: None,
            delivery: nothing(),
        };
        let collected = CollectedDeadLetter { dead_letter, message };
        self.test_write(async |connection| insert_one(connection, &collected).await).await
    }
}

fn message(id: MessageId) -> Message {
    let now = Timestamp::EARLIEST;
    Message {
        id,
        role: Role::System,
        content: Content::Text("a test write".to_owned()),
        tool_calls: None,
        tool_call_id: None,
        tokens_estimate: None,
        user_id: None,
        agent_id: None,
        model_name: None,
        processing_time_ms: None,
        created_at: now,
        received_at: now,
        metadata: None,
        details: None,
    }
}
