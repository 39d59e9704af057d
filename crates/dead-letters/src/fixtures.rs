//! A dead letter for tests.

use database::{
    DeadLetter, DeadLetterDetail, DeadLetterEdit, DeadLetterState, DeadLetterStatus, FailedMessage,
};
use domain::time::Timestamp;
use serde_json::json;
use uuid::Uuid;

/// An open dead letter of `conversation.save_message` with this body and without any id.
pub(super) fn dead_letter(body: &str) -> DeadLetterDetail {
    let failed_at = Timestamp::parse("2026-11-20T11:59:00Z").unwrap().into();
    DeadLetterDetail {
        dead_letter: DeadLetter {
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
            attempts: 1,
            replay_count: 0,
            replay_of: None,
            first_failed_at: failed_at,
            last_failed_at: failed_at,
        },
        message: FailedMessage {
            body: body.to_owned().into(),
            properties: json!({}),
            headers: json!({}),
            left_out: None,
            delivery: json!({}),
        },
        state: DeadLetterState {
            stored_at: failed_at,
            not_stored: None,
            copies: 1,
            status: DeadLetterStatus::Open,
            status_changed_at: None,
            status_reason: None,
            replay_tried_at: None,
            replay_fault: None,
        },
        edit: DeadLetterEdit::default(),
    }
}
