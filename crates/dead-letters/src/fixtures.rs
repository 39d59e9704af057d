//! A dead letter for tests.

use database::{DeadLetterRow, DeadLetterStatus};
use domain::time::Timestamp;
use serde_json::json;
use uuid::Uuid;

/// An open dead letter of `conversation.save_message` with this body and without any id.
pub(super) fn dead_letter(body: &str) -> DeadLetterRow {
    let failed_at = Timestamp::parse("2026-11-20T11:59:00Z").unwrap().into();
    DeadLetterRow {
        id: Uuid::from_u128(7),
        queue: "conversation.save_message".to_owned(),
        reason: "schema".to_owned(),
        field: None,
        error: "`role` must be a role".to_owned(),
        tenant_id: None,
        conversation_id: None,
        session_id: None,
        message_id: None,
        action_type: None,
        routing_key: "conversation.save_message".to_owned(),
        exchange: "domain.actions".to_owned(),
        body: body.as_bytes().to_vec(),
        properties: json!({}),
        headers: json!({}),
        attempts: 1,
        replay_count: 0,
        first_failed_at: failed_at,
        last_failed_at: failed_at,
        stored_at: failed_at,
        copies: 1,
        status: DeadLetterStatus::Open,
        status_changed_at: None,
        status_reason: None,
        edited_body: None,
        edited_at: None,
        edited_by: None,
        replay_of: None,
        replay_tried_at: None,
        replay_fault: None,
    }
}
