//! Dead letters to replay.

use broker::{Delivery, Publication, StoredDelivery};
use domain::failure::{DeadLetterReason, Refusal};
use domain::fleet::WorkQueue;
use domain::time::Timestamp;
use fixtures::message;
use serde_json::json;

const SAVES: &str = WorkQueue::SaveMessage.name();

/// The dead letter that a message-save-worker publishes after the last attempt of a message.
#[must_use]
pub fn as_dead_letter(body: &str) -> Publication {
    as_dead_letter_for(body, DeadLetterReason::AttemptsExhausted)
}

/// The dead letter that a message-save-worker publishes for this reason.
#[must_use]
pub fn as_dead_letter_for(body: &str, reason: DeadLetterReason) -> Publication {
    let at = Timestamp::parse("2026-11-20T10:00:01Z").unwrap();
    let published = StoredDelivery {
        delivery: json!({"exchange": "domain.actions"}),
        ..StoredDelivery::default()
    };
    let delivery = Delivery::from_stored(body.as_bytes().to_vec(), &published, at);
    let refusal =
        Refusal { reason, hint: None, field: None, detail: "an error of the test".to_owned() };
    Publication::copy(&delivery, WorkQueue::SaveMessage.dlq()).dead_lettered(SAVES, refusal, at)
}

/// The body of a message without id and timestamp.
#[must_use]
pub fn anonymous(tenant: &str, n: i64) -> String {
    let mut action = message(tenant, "s", "", &json!({"content": format!("text {n}")}));
    let fields = action.as_object_mut().unwrap();
    fields.remove("message_id");
    fields.remove("timestamp");
    action.to_string()
}
