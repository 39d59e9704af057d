//! The messages of `conversation.save_messages`.

use domain::action::{Action, Identity, SaveMessages, TimeSource};
use domain::decode::{Grouping, elements_as_actions};
use domain::envelope::Envelope;
use domain::failure::Refusal;
use domain::message::{Content, Message};
use fixtures::{decoded, decoded_with, received_at};
use serde_json::{Value, json};

const HEAD: &str = r#""action_type":"conversation.save_messages","tenant_id":"t","session_id":"s""#;

fn body(fields: &str, messages: &[Value]) -> String {
    let messages: Vec<String> = messages.iter().map(Value::to_string).collect();
    format!("{{{HEAD},{fields}\"messages\":[{}]}}", messages.join(","))
}

fn several(body: &str) -> Result<SaveMessages, Refusal> {
    match decoded(body)? {
        Action::SaveMessages(action) => Ok(action),
        other => panic!("not several messages: {other:?}"),
    }
}

fn ids(body: &str) -> Vec<String> {
    let action = several(body).expect("an action");
    action.elements.iter().map(|element| element.resolved.id.to_string()).collect()
}

fn micros(action: &SaveMessages) -> Vec<i64> {
    let first = action.common.happened_at.micros();
    action.elements.iter().map(|element| element.resolved.timestamp.micros() - first).collect()
}

fn say(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn at(content: &str, time: &str) -> Value {
    json!({"role": "user", "content": content, "timestamp": format!("2026-11-20T10:00:{time}Z")})
}

#[test]
fn each_message_is_the_one_that_it_would_be_by_itself() {
    let fields = r#""action_id":"a","timestamp":"2026-11-20T10:00:00Z","agent_id":"agent","user_id":"u","trace":7,
        "metadata":{"k":1},"callback_queue_name":"replies","#;
    let messages = [
        say("hi"),
        json!({"role": "tool", "content": ["x"], "tool_call_id": "c", "user_id": null, "metadata": {}}),
        json!({"role": "assistant", "data": {"content": "ok", "agent_id": "other", "message_id": "m"}}),
        json!({"role": "assistant", "refusal": "no", "tenant_id": "t", "timestamp": "2026-11-20T11:00Z"}),
        json!({"role": "bot", "content": "bad"}),
        json!({"role": "user", "content": "a", "data": {"content": "b"}}),
        json!(17),
    ];
    let body = body(fields, &messages);
    let action = several(&body).expect("an action");
    assert_eq!(action.common.reply_to.as_deref(), Some("replies"));
    assert_eq!(
        micros(&action),
        [0, 1, 2, 3_600_000_000, 3_600_000_001, 3_600_000_002, 3_600_000_003]
    );
    for (position, element) in action.elements.iter().enumerate() {
        let own = elements_as_actions(body.as_bytes(), &action, [position]).remove(0);
        let envelope = Envelope { resolved: Some(&element.resolved), ..Envelope::default() };
        match (decoded_with(&own, &envelope), &element.message) {
            (Ok(Action::SaveMessage(one)), Ok(several)) => {
                assert_eq!(one.message, several.message, "{position}");
                assert_eq!(one.common.session, several.common.session);
                // Without the headers it has the same id and time.
                let Ok(Action::SaveMessage(alone)) = decoded_with(&own, &Envelope::default())
                else {
                    panic!("element {position} by itself");
                };
                assert_eq!(alone.message.position(), several.message.position(), "{position}");
                assert_eq!(several.common.reply_to, None);
            }
            (Err(one), Err(several)) => assert_eq!(one.reason, several.reason, "{position}"),
            (one, several) => panic!("{position}: {one:?} instead of {several:?}"),
        }
    }
    let refused: Vec<_> =
        action.elements.iter().filter_map(|it| it.message.as_ref().err()).collect();
    let fields: Vec<_> = refused.iter().map(|refusal| refusal.field.as_deref()).collect();
    assert_eq!(
        fields,
        [Some("messages[4].role"), Some("messages[5].content"), Some("messages[6]")]
    );
    let first = action.elements[0].message.as_ref().expect("a message");
    assert_eq!(first.message.metadata.as_ref().expect("metadata").as_str(), r#"{"k":1,"trace":7}"#);
    assert_eq!(first.message.content, Content::Text("hi".to_owned()));
}

#[test]
fn messages_with_times_of_their_own_have_the_same_ids_in_every_grouping() {
    let yes = |time: &str| at("yes", time);
    let all = [yes("01"), yes("01"), at("ok", "02"), yes("03"), yes("01")];
    let whole = ids(&body("", &all));
    assert_eq!(whole.iter().collect::<std::collections::HashSet<_>>().len(), 5);
    let other_key_order = r#"{"content":"ok","role":"user","timestamp":"2026-11-20T10:00:02Z"}"#;
    assert_eq!(ids(&format!("{{{HEAD},\"messages\":[{other_key_order}]}}"))[0], whole[2]);
    assert_eq!(ids(&body(r#""action_id":"x","#, &all[2..4])), whole[2..4]);
    assert_eq!(ids(&body("", &all[..2])), whole[..2]);
    let elsewhere = ids(&body(r#""conversation_id":"c","#, &all));
    assert!(elsewhere.iter().all(|id| !whole.contains(id)));
}

#[test]
fn messages_without_a_time_are_identified_by_their_action_and_their_position() {
    let messages = [say("yes"), say("yes")];
    let one = several(&body(r#""action_id":"a","#, &messages)).expect("an action");
    assert_eq!(one.elements[0].message.as_ref().expect("a message").identity, Identity::Derived);
    let (one, again) = (
        ids(&body(r#""action_id":"a","#, &messages)),
        ids(&body(r#""action_id":"a","#, &messages)),
    );
    assert_eq!(one, again);
    assert_ne!(one[0], one[1]);
    assert_ne!(one, ids(&body(r#""action_id":"b","#, &messages)));
    let timed = r#""timestamp":"2026-11-20T10:00:00Z","#;
    assert_eq!(ids(&body(timed, &messages)), ids(&body(timed, &messages)));

    let random = several(&body("", &messages)).expect("an action");
    let save = random.elements[0].message.as_ref().expect("a message");
    assert_eq!(save.identity, Identity::Random { redelivered: false });
    assert_eq!(save.common.time_source, TimeSource::Receipt);
    assert_eq!(save.message.created_at, received_at());
    let named = several(&body("", &[json!({"role": "user", "content": "a", "message_id": 7})]));
    let named = named.expect("an action");
    assert_eq!(named.elements[0].resolved.id.as_str(), "7");
    assert_eq!(named.elements[0].message.as_ref().expect("a message").identity, Identity::Sent);
}

#[test]
fn fields_that_count_for_every_message_are_limited_and_read_once_for_each() {
    let fields = |count: usize| {
        let fields: Vec<String> = (0..count).map(|n| format!("\"f{n}\":0")).collect();
        format!("{},", fields.join(","))
    };
    let many = several(&body(&fields(1_000), &vec![say("a"); 100])).expect("1 000 fields");
    let metadata = many.elements[99].message.as_ref().expect("a message").message.metadata.clone();
    assert!(metadata.expect("metadata").as_str().ends_with("\"f999\":0}"));
    let refusal = several(&body(&fields(5_000), &vec![say("a"); 100])).expect_err("too much");
    assert_eq!(refusal.field.as_deref(), Some("messages"));
    assert!(refusal.detail.contains("send fewer messages"), "{refusal}");
}

#[test]
fn an_action_has_1_to_100_messages_and_no_fields_of_a_message() {
    let many = |count: usize| body("", &vec![say("a"); count]);
    assert_eq!(several(&many(100)).expect("100").elements.len(), 100);
    for (body, field, words) in [
        (many(0), "messages", "has 0 messages; send 1 to 100"),
        (many(101), "messages", "has 101 messages; send 1 to 100"),
        (format!("{{{HEAD}}}"), "messages", "is missing"),
        (format!("{{{HEAD},\"messages\":{{}}}}"), "messages", "an array of messages"),
        (body(r#""role":"user","#, &[say("a")]), "role", "in the elements of `messages`"),
        (body(r#""atomic":1,"#, &[say("a")]), "atomic", "true or false"),
    ] {
        let refusal = several(&body).expect_err(words);
        assert_eq!(refusal.field.as_deref(), Some(field));
        assert!(refusal.detail.contains(words), "{refusal}");
    }
    for name in ["session_id", "tenant_id", "conversation_id", "action_type"] {
        let action = several(&body("", &[json!({"role": "user", "content": "a", name: "other"})]));
        let action = action.expect("an action");
        let refusal = action.elements[0].message.as_ref().expect_err(name);
        assert_eq!(refusal.field.as_deref(), Some(&*format!("messages[0].{name}")));
        assert!(refusal.detail.contains("an action of its own"), "{refusal}");
    }
}

#[test]
fn a_message_among_several_is_the_one_that_it_is_by_itself() {
    let examples =
        fixtures::examples::ACTIONS.iter().map(|example| example.body.as_bytes().to_vec());
    let bodies = examples.chain(fixtures::shapes::shapes().into_iter().map(|shape| shape.body));
    let mut grouped = 0;
    for body in bodies {
        let Ok(text) = String::from_utf8(body.clone()) else { continue };
        let Ok(Action::SaveMessage(alone)) = decoded(&text) else { continue };
        let mut grouping = Grouping::of(&alone, 1 << 20);
        if !grouping.add(&body, &alone) {
            let wants_a_reply =
                alone.common.reply_to.is_some() || alone.common.correlation_id.is_some();
            assert!(wants_a_reply, "{text}");
            continue;
        }
        assert!(grouping.add(&body, &alone));
        grouped += 1;
        let action = String::from_utf8(grouping.into_body()).expect("UTF-8");
        let action = several(&action).expect("an action");
        assert_eq!(action.common.key, alone.common.key);
        for (position, element) in action.elements.iter().enumerate() {
            let message = element.message.as_ref().expect("a message");
            assert_eq!(message.body_hash(), alone.body_hash(), "{text}");
            let alone = Message {
                created_at: alone.message.created_at.later_by(position),
                ..alone.message.clone()
            };
            let message = &message.message;
            if alone.id == message.id {
                assert_eq!(*message, alone, "{text}");
            }
        }
    }
    assert!(grouped > 30, "{grouped}");
}

#[test]
fn an_action_is_full_with_100_messages_or_its_bytes() {
    let body = json!({
        "action_type": "conversation.save_message", "tenant_id": "t", "session_id": "s",
        "role": "user", "content": "hi", "message_id": "m",
    })
    .to_string();
    let Ok(Action::SaveMessage(message)) = decoded(&body) else { panic!("a message") };
    let mut full = Grouping::of(&message, 1 << 20);
    let added = (0..150).filter(|_| full.add(body.as_bytes(), &message)).count();
    assert_eq!((added, full.messages()), (100, 100));
    let bytes = full.into_body().len();
    for (limit, most) in [(bytes, 100), (bytes - 1, 99)] {
        let mut limited = Grouping::of(&message, limit);
        while limited.add(body.as_bytes(), &message) {}
        assert_eq!(limited.messages(), most);
        assert!(limited.into_body().len() <= limit);
    }
}
