//! Messages for the unit tests.

use domain::ids::{AgentId, MessageId, UserId};
use domain::message::{Content, Details, Json, Message, Position, Role};
use domain::time::Timestamp;
use proptest::option;
use proptest::prelude::*;

pub(crate) fn time(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros).unwrap()
}

pub(crate) fn position(id: &str, micros: i64) -> Position {
    Position { created_at: time(micros), id: MessageId::new(id).unwrap() }
}

/// A message with the required fields only.
pub(crate) fn message(id: &str, micros: i64) -> Message {
    Message {
        id: MessageId::new(id).unwrap(),
        role: Role::User,
        content: Content::Text("Grüße, \"Welt\"\n".to_owned()),
        tool_calls: None,
        tool_call_id: None,
        tokens_estimate: None,
        user_id: None,
        agent_id: None,
        model_name: None,
        processing_time_ms: None,
        created_at: time(micros),
        received_at: time(1_700_000_000_000_002),
        metadata: None,
        details: None,
    }
}

/// A message with every field of format 1.
pub(crate) fn full_message() -> Message {
    let json = |text: &str| Json::parse(text.to_owned()).unwrap();
    Message {
        id: MessageId::new("größe:{1}/😀").unwrap(),
        role: Role::Assistant,
        content: Content::Parts {
            json: json(r#"[ {"type":"text","text":"one"}, {"type":"image_url","image_url":{}} ]"#),
            text: "one".to_owned(),
        },
        tool_calls: Some(json(r#"[{"id":"c1","function":{"name":"f","arguments":"{}"}}]"#)),
        tool_call_id: Some("call-1".to_owned()),
        tokens_estimate: Some(150),
        user_id: Some(UserId::new("u/1").unwrap()),
        agent_id: Some(AgentId::new("agent_xyz").unwrap()),
        model_name: Some("llama3-70b-8192".to_owned()),
        processing_time_ms: Some(0.1 + 0.2),
        created_at: time(7_258_118_399_999_999),
        received_at: time(0),
        metadata: Some(json(r#"{ "tenant_tier" : "professional", "n": 1.50e2 }"#)),
        details: None,
    }
}

/// A message with every field of format 2.
pub(crate) fn message_with_details() -> Message {
    let json = |text: &str| Json::parse(text.to_owned()).unwrap();
    let details = Details {
        item: Some(json(r#"{ "type":"message","id":"msg_1" }"#)),
        usage: Some(json(r#"{"input_tokens": 812, "output_tokens": 45}"#)),
        finish_reason: Some("length".to_owned()),
        response_id: Some("resp_1".to_owned()),
        parent_message_id: Some(MessageId::new("größe").unwrap()),
        context_hash: Some("9f86d081".to_owned()),
    };
    Message { details: details.boxed(), ..full_message() }
}

pub(crate) fn any_id() -> impl Strategy<Value = String> {
    "[^\\p{Cc}]{1,32}"
}

fn any_time() -> impl Strategy<Value = Timestamp> {
    (0..7_258_118_400_000_000_i64).prop_map(time)
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        "-?(0|[1-9][0-9]{0,20})\\.[0-9]{1,20}([eE][+-]?[0-9]{1,3})?",
        any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(" , "))),
            proptest::collection::vec((any::<String>(), inner), 0..4).prop_map(|fields| {
                let fields: Vec<_> = fields
                    .into_iter()
                    .map(|(k, v)| format!("{}:\n{v}", serde_json::to_string(&k).unwrap()))
                    .collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
    .prop_map(|text| Json::parse(text).unwrap())
}

fn any_content() -> impl Strategy<Value = Content> {
    prop_oneof![
        any::<String>().prop_map(Content::Text),
        (any_json(), any::<String>()).prop_map(|(json, text)| Content::Parts { json, text }),
    ]
}

fn any_details() -> impl Strategy<Value = Details> {
    let text = || option::of(any::<String>());
    let id = option::of(any_id().prop_map(|id| MessageId::new(id).unwrap()));
    (option::of(any_json()), option::of(any_json()), text(), text(), id, text()).prop_map(
        |(item, usage, finish_reason, response_id, parent_message_id, context_hash)| Details {
            item,
            usage,
            finish_reason,
            response_id,
            parent_message_id,
            context_hash,
        },
    )
}

/// Any valid message: every field present or absent, any Unicode string, any valid time.
pub(crate) fn any_message() -> impl Strategy<Value = Message> {
    let who = (
        option::of(any_id().prop_map(|id| UserId::new(id).unwrap())),
        option::of(any_id().prop_map(|id| AgentId::new(id).unwrap())),
        option::of(any::<String>()),
    );
    let numbers = (
        option::of(any::<i64>()),
        option::of(any::<f64>().prop_filter("finite", |n| n.is_finite())),
        any_time(),
        any_time(),
    );
    let json = (
        option::of(any_json()),
        option::of(any::<String>()),
        option::of(any_json()),
        option::of(any_details()),
    );
    (any_id(), proptest::sample::select(&Role::ALL[..]), any_content(), json, who, numbers)
        .prop_map(|(id, role, content, json, who, numbers)| {
            let (tool_calls, tool_call_id, metadata, details) = json;
            let (user_id, agent_id, model_name) = who;
            let (tokens_estimate, processing_time_ms, created_at, received_at) = numbers;
            Message {
                id: MessageId::new(id).unwrap(),
                role,
                content,
                tool_calls,
                tool_call_id,
                tokens_estimate,
                user_id,
                agent_id,
                model_name,
                processing_time_ms,
                created_at,
                received_at,
                metadata,
                details: details.and_then(Details::boxed),
            }
        })
}
