//! Events are encoded and decoded without loss and match their schemas.

use domain::event::{DeadLettered, Erased, Event, Migrated, Reopened};
use domain::failure::DeadLetterReason;
use domain::ids::{ConversationId, SessionId, TenantId, UserId};
use domain::time::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::documents::documents;
use crate::validator::faults;

fn events() -> [Event; 4] {
    let tenant_id = TenantId::new("tenant123").expect("an id");
    let conversation_id = ConversationId::new("conv/ñ").expect("an id");
    let session_id = SessionId::new("session_abc").expect("an id");
    let moment = |second: u64| Timestamp::from_seconds(1_795_167_000 + second).expect("a moment");
    [
        Event::Migrated(Migrated {
            tenant_id: tenant_id.clone(),
            conversation_id: conversation_id.clone(),
            session_id: session_id.clone(),
            agent_id: None,
            user_id: Some(UserId::new("user-42").expect("an id")),
            message_count: 3,
            total_tokens: 420,
            created_at: moment(0),
            last_message_at: moment(60),
            closed_at: moment(90),
            close_reason: Some("idle".to_owned()),
            close_token: Uuid::from_u128(7),
        }),
        Event::Reopened(Reopened {
            tenant_id: tenant_id.clone(),
            conversation_id: conversation_id.clone(),
            session_id,
            reopened_at: moment(100),
        }),
        Event::DeadLettered(DeadLettered {
            dead_letter_id: Uuid::from_u128(8),
            reason: DeadLetterReason::Schema,
            detail: "`role` is missing".to_owned(),
            field: Some("role".to_owned()),
            queue: "conversation.save_message".to_owned(),
            routing_key: "conversation.save_message".to_owned(),
            tenant_id: Some(tenant_id.clone()),
            conversation_id: None,
            attempts: 1,
            first_failed_at: moment(1),
            last_failed_at: moment(1),
        }),
        Event::Erased(Erased {
            tenant_id,
            conversation_id: Some(conversation_id),
            user_id: None,
            erased_at: moment(200),
            conversations: 1,
            messages: 3,
        }),
    ]
}

#[test]
fn events_are_decoded_as_they_were_encoded_and_have_their_routing_key() {
    for event in events() {
        let text = serde_json::to_string(&event).expect("an event");
        let wire: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(wire["event_type"], event.routing_key());
        assert_eq!(serde_json::from_str::<Event>(&text).expect("an event"), event);
    }
}

#[test]
fn events_match_their_schemas() {
    for event in events() {
        let name = format!("event.{}.json", event.routing_key());
        let (_, schema) = documents().into_iter().find(|(file, _)| *file == name).expect(&name);
        let schema = schema.to_value();
        let wire = serde_json::to_value(&event).expect("an event");
        assert_eq!(faults(&schema, &wire), Vec::<String>::new(), "{name}");
        let mut other = wire;
        other["event_type"] = "conversation.imagined".into();
        assert!(!faults(&schema, &other).is_empty(), "{name}");
    }
}
