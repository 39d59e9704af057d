//! The JSON of the views is compared byte for byte with the files in `fixtures`: scripts read it.

use chrono::{DateTime, Utc};
use domain::json::Json;
use domain::status::ConversationStatus;
use domain::time::Timestamp;
use serde::Serialize;
use serde_json::json;

use crate::{AuditEntry, ConversationStats, ConversationView, SessionEventView, SessionView};

fn at(text: &str) -> DateTime<Utc> {
    Timestamp::parse(text).unwrap().into()
}

fn assert_json(view: &impl Serialize, fixture: &str) {
    assert_eq!(serde_json::to_string_pretty(view).unwrap() + "\n", fixture);
}

#[test]
fn the_json_of_a_conversation_is_its_fixture() {
    let view = ConversationView {
        tenant_id: "acme".to_owned(),
        id: "c-1".to_owned(),
        session_id: "web-1".to_owned(),
        agent_id: Some("agent_xyz".to_owned()),
        user_id: None,
        model_name: Some("llama3-70b-8192".to_owned()),
        status: ConversationStatus::Closing,
        message_count: 4,
        total_tokens: None,
        created_at: at("2026-11-20T11:00:00Z"),
        last_message_at: Some(at("2026-11-20T11:05:00.25Z")),
        close_requested_at: Some(at("2026-11-20T11:05:10.000001Z")),
        closed_at: None,
        finalised_at: None,
        close_reason: Some("user_left".to_owned()),
        satisfaction: Some(5),
    };
    assert_json(&view, include_str!("../fixtures/conversation.json"));
}

#[test]
fn the_json_of_a_session_is_its_fixture() {
    let last_event_at = at("2026-11-20T11:05:30Z");
    let view = SessionView { session_id: "web-1".to_owned(), open: true, last_event_at };
    assert_json(&view, include_str!("../fixtures/session.json"));
}

#[test]
fn the_json_of_a_session_event_is_its_fixture() {
    let view = SessionEventView {
        id: "act-1".to_owned(),
        action_type: "conversation.session_closed".to_owned(),
        session_id: "web-1".to_owned(),
        created_at: at("2026-11-20T11:05:30Z"),
        received_at: at("2026-11-20T11:05:30.25Z"),
        reason: Some("user_left".to_owned()),
        satisfaction: Some(5),
        user_id: Some("u-9".to_owned()),
        agent_id: None,
        model_name: None,
        tenant_tier: None,
        metadata: Some(Json::parse(r#"{"comment": "great","n":1.0}"#.to_owned()).unwrap()),
    };
    assert_json(&view, include_str!("../fixtures/session_event.json"));
}

#[test]
fn the_json_of_statistics_is_its_fixture() {
    let view = ConversationStats {
        agent_id: Some("agent_xyz".to_owned()),
        model_name: Some("gpt-4o".to_owned()),
        message_count: 4,
        user_messages: 1,
        assistant_messages: 2,
        total_tokens: 12_345,
        duration_seconds: 300.0,
        avg_response_seconds: Some(1.25),
        responses: 1,
        satisfaction: None,
        input_tokens: Some(812),
        output_tokens: Some(45),
        cache_read_tokens: None,
        cache_write_tokens: None,
        reasoning_tokens: Some(0),
        computed_from: at("2026-11-20T11:05:41Z"),
        computed_at: at("2026-11-20T11:05:42Z"),
    };
    assert_json(&view, include_str!("../fixtures/statistics.json"));
}

#[test]
fn the_json_of_an_audit_entry_is_its_fixture() {
    let view = AuditEntry {
        id: 7,
        at: at("2026-11-20T11:59:30Z"),
        actor: "ops@night".to_owned(),
        action: "dead_letter.edit".to_owned(),
        tenant_id: Some("acme".to_owned()),
        subject: None,
        detail: Some(json!({"fields": ["role"], "bytes": 118})),
    };
    assert_json(&view, include_str!("../fixtures/audit_entry.json"));
}
