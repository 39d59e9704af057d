//! The rules that span fields: ids, conversation, times and AMQP properties.

use domain::action::{Action, ConversationSource, Identity, SaveMessage, TimeSource};
use domain::envelope::{Envelope, Resolved};
use domain::failure::{Hint, Refusal};
use domain::ids::{ConversationId, MessageId};
use domain::message::{Content, Json};
use domain::time::Timestamp;
use domain::wire::MAX_DETAIL_BYTES;

use fixtures::{NEW_ID, decoded, decoded_with, received_at};

/// Decodes a message whose body has these fields beside the required ones.
fn message_with(fields: &str, envelope: &Envelope<'_>) -> Result<SaveMessage, Refusal> {
    let body = body(&format!(r#""content":"hi",{fields}"#));
    match decoded_with(body.as_bytes(), envelope)? {
        Action::SaveMessage(save) => Ok(*save),
        other => panic!("not a message: {other:?}"),
    }
}

fn body(fields: &str) -> String {
    let fields = fields.trim_end_matches(',');
    format!(
        r#"{{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"assistant",{fields}}}"#
    )
}

fn message(fields: &str) -> SaveMessage {
    message_with(fields, &Envelope::default()).expect("a good message")
}

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).expect("a timestamp")
}

fn with_message_id(message_id: &str) -> Envelope<'_> {
    Envelope { message_id: Some(message_id), ..Envelope::default() }
}

#[test]
fn the_id_of_a_message_is_the_first_of_its_ids() {
    let envelope = with_message_id("amqp");
    let known = |fields: &str| {
        let save = message_with(fields, &envelope).expect("a good message");
        assert_eq!(save.identity, Identity::Sent);
        save.message.id.as_str().to_owned()
    };
    assert_eq!(
        known(r#""message_id":"m","action_id":"a","timestamp":"2026-01-01T00:00:00Z""#),
        "m"
    );
    assert_eq!(known(r#""action_id":"a","timestamp":"2026-01-01T00:00:00Z""#), "a");
    assert_eq!(known(r#""message_id":null,"timestamp":"2026-01-01T00:00:00Z""#), "amqp");
    assert_eq!(known(""), "amqp");
}

#[test]
fn without_ids_the_id_is_derived_from_conversation_timestamp_and_body() {
    let one = message(r#""timestamp":"2026-01-01T00:00:00Z""#);
    assert_eq!(one.identity, Identity::Derived);
    let again = message(r#""timestamp":"2026-01-01T00:00:00Z""#);
    assert_eq!(again.message.id, one.message.id);
    for other in [
        r#""timestamp":"2026-01-01T00:00:00.000001Z""#,
        r#""timestamp":"2026-01-01T00:00:00Z","conversation_id":"c""#,
        r#""timestamp":"2026-01-01T00:00:00Z","tokens_estimate":1"#,
    ] {
        assert_ne!(message(other).message.id, one.message.id, "{other}");
    }
}

#[test]
fn without_ids_and_timestamp_the_id_is_new_even_if_amqp_has_a_timestamp() {
    let envelope = Envelope { timestamp: Some(1_767_225_600), ..Envelope::default() };
    let save = message_with("", &envelope).expect("a good message");
    assert_eq!(save.identity, Identity::Random { redelivered: false });
    assert_eq!(save.message.id.as_str(), NEW_ID.to_string());
    let again = message_with("", &Envelope { redelivered: true, ..envelope });
    assert_eq!(again.unwrap().identity, Identity::Random { redelivered: true });
    assert_eq!(save.message.created_at, at("2026-01-01T00:00:00Z"));
}

#[test]
fn an_invalid_amqp_message_id_is_refused_only_where_it_identifies_the_action() {
    let long = "x".repeat(513);
    for invalid in ["a\tb", "\u{85}", &long] {
        let envelope = with_message_id(invalid);
        let refused = |fields: &str| {
            let refusal = message_with(fields, &envelope).expect_err(invalid);
            assert_eq!(refusal.field.as_deref(), Some("AMQP message_id"));
            assert!(refusal.detail.ends_with("or send an id in the body"), "{refusal}");
        };
        refused("");
        refused(r#""timestamp":"2026-01-01T00:00:00Z""#);
        for (fields, action_id) in
            [(r#""message_id":"m""#, None), (r#""action_id":"m""#, Some("m"))]
        {
            let save = message_with(fields, &envelope).expect("a message with an id of its own");
            assert_eq!((save.message.id.as_str(), save.identity), ("m", Identity::Sent));
            assert_eq!(save.common.action_id.as_ref().map(AsRef::as_ref), action_id);
        }
        let resolved = message(r#""message_id":"m""#).common.resolved();
        let retry = Envelope { resolved: Some(&resolved), ..envelope };
        assert_eq!(message_with("", &retry).expect("a later attempt").message.id, resolved.id);
        let request =
            br#"{"action_type":"conversation.get_context","tenant_id":"t","session_id":"s"}"#;
        decoded_with(request, &envelope).expect("a request needs no identity");
    }
}

#[test]
fn an_empty_amqp_property_counts_as_absent() {
    let empty = Envelope {
        message_id: Some(""),
        correlation_id: Some(""),
        reply_to: Some(""),
        ..Envelope::default()
    };
    let save = message_with(r#""timestamp":"2026-01-01T00:00:00Z""#, &empty).expect("a message");
    assert_eq!(save.identity, Identity::Derived);
    let fields = r#""correlation_id":"c","callback_queue_name":"replies""#;
    let common = message_with(fields, &empty).expect("a message").common;
    assert_eq!(common.correlation_id.as_deref(), Some("c"));
    assert_eq!(common.reply_to.as_deref(), Some("replies"));
    assert_eq!(message(r#""callback_queue_name":"""#).common.reply_to, None);
}

#[test]
fn an_invalid_amqp_timestamp_is_not_used_by_a_later_attempt() {
    let resolved = message("").common.resolved();
    let milliseconds = Some(1_767_225_600_000);
    let retry =
        Envelope { timestamp: milliseconds, resolved: Some(&resolved), ..Envelope::default() };
    let save = message_with("", &retry).expect("a later attempt");
    assert_eq!(save.common.happened_at, resolved.timestamp);
}

#[test]
fn a_conversation_is_the_sent_one_or_derived_from_tenant_and_session() {
    let derived = message("").common;
    assert_eq!(derived.conversation_is_explicit, ConversationSource::FromSession);
    assert_eq!(derived.key, message(r#""agent_id":"another""#).common.key);
    let named = message(r#""conversation_id":"c""#).common;
    assert_eq!(named.conversation_is_explicit, ConversationSource::Explicit);
    assert_eq!(named.key.conversation.as_str(), "c");
}

#[test]
fn the_time_is_the_bodys_then_the_amqp_timestamp_then_the_receipt() {
    let broker = Envelope {
        timestamp: Some(1_767_225_600),
        timestamp_micros: 850_007,
        ..Envelope::default()
    };
    let body = r#""timestamp":"2026-02-03T04:05:06.7890129+02:00""#;
    let sent = message_with(body, &broker).expect("a good message");
    assert_eq!(sent.message.created_at, at("2026-02-03T02:05:06.789012Z"));
    assert_eq!(sent.message.received_at, received_at());
    let by_amqp = message_with("", &broker).expect("a good message");
    assert_eq!(by_amqp.message.created_at, at("2026-01-01T00:00:00.850007Z"));
    assert_eq!(by_amqp.common.time_source, TimeSource::AmqpSecond);
    let by_receipt = message("");
    assert_eq!(by_receipt.message.created_at, received_at());
    assert_eq!(by_receipt.common.time_source, TimeSource::Receipt);
}

#[test]
fn an_amqp_timestamp_of_0_counts_as_absent() {
    let envelope = Envelope { timestamp: Some(0), ..Envelope::default() };
    let save = message_with("", &envelope).expect("a good message");
    assert_eq!(
        (save.common.time_source, save.message.created_at),
        (TimeSource::Receipt, received_at())
    );
    let resolved = save.common.resolved();
    let retry = Envelope { resolved: Some(&resolved), ..envelope };
    assert_eq!(message_with("", &retry), Ok(save));
}

#[test]
fn a_later_attempt_has_the_microseconds_that_the_first_added_to_the_amqp_timestamp() {
    let first =
        Envelope { timestamp: Some(1_767_225_600), timestamp_micros: 42, ..Envelope::default() };
    let save = message_with("", &first).expect("a good message");
    let resolved = save.common.resolved();
    let retry = Envelope { timestamp_micros: 43, resolved: Some(&resolved), ..first };
    let again = message_with("", &retry).expect("a good message");
    assert_eq!(again.message.created_at, at("2026-01-01T00:00:00.000042Z"));
    assert_eq!(again.common.happened_at, save.common.happened_at);
    assert_eq!(again.common.time_source, TimeSource::AmqpSecond);
}

#[test]
fn an_amqp_timestamp_in_milliseconds_is_refused_unless_the_body_has_one() {
    let envelope = Envelope { timestamp: Some(1_767_225_600_000), ..Envelope::default() };
    let refusal = message_with("", &envelope).expect_err("the year 57971");
    assert_eq!(refusal.field.as_deref(), Some("AMQP timestamp"));
    message_with(r#""timestamp":"2026-01-01T00:00:00Z""#, &envelope).expect("a good message");
}

#[test]
fn a_later_attempt_gets_the_same_action_as_the_first() {
    for fields in ["", r#""timestamp":"2026-01-01T00:00:00Z""#, r#""message_id":"m""#] {
        let first = message(fields);
        let resolved = Action::SaveMessage(Box::new(first.clone())).resolved();
        assert!(resolved.is_some());
        let retry = Envelope { resolved: resolved.as_ref(), ..Envelope::default() };
        let body = body(&format!(r#""content":"hi",{fields}"#));
        let context = domain::decode::DecodeContext {
            received_at: at("2027-01-01T00:00:00Z"),
            max_body_bytes: 10_000,
            new_id: &|| panic!("a later attempt needs no new id"),
        };
        let second = domain::decode::decode(body.as_bytes(), &retry, &context);
        assert_eq!(second, Ok(Action::SaveMessage(Box::new(first))), "{fields}");
    }
}

#[test]
fn what_an_earlier_attempt_resolved_takes_precedence() {
    let resolved = Resolved {
        id: MessageId::new("id").expect("an id"),
        conversation: ConversationId::new("conversation").expect("an id"),
        timestamp: at("2026-03-01T00:00:00Z"),
        received_at: at("2026-03-02T00:00:00Z"),
    };
    let envelope = Envelope { resolved: Some(&resolved), ..with_message_id("copy") };
    let fields = r#""message_id":"m","conversation_id":"c","timestamp":"2026-01-01T00:00:00Z""#;
    let save = message_with(fields, &envelope).expect("a good message");
    assert_eq!(save.common.resolved(), resolved);
    assert_eq!(save.message.id, resolved.id);
    assert_eq!(save.message.created_at, resolved.timestamp);
    assert_eq!(save.message.received_at, resolved.received_at);
}

#[test]
fn only_what_may_be_retried_is_resolved() {
    let request =
        decoded(r#"{"action_type":"conversation.get_context","tenant_id":"t","session_id":"s"}"#);
    assert_eq!(request.expect("a request").resolved(), None);
    let event = decoded(
        r#"{"action_type":"conversation.session_closed","tenant_id":"t","session_id":"s","action_id":"a"}"#,
    );
    let resolved = event.expect("an event").resolved().expect("a resolution");
    assert_eq!(resolved.id.as_str(), "a");
    assert_eq!(resolved.received_at, received_at());
}

#[test]
fn amqp_properties_of_replies_take_precedence() {
    let fields = r#""correlation_id":"body","callback_queue_name":"body.replies""#;
    let common = message(fields).common;
    assert_eq!(common.correlation_id.as_deref(), Some("body"));
    assert_eq!(common.reply_to.as_deref(), Some("body.replies"));
    let envelope = Envelope {
        correlation_id: Some("amqp"),
        reply_to: Some("amq.rabbitmq.reply-to.g1"),
        ..Envelope::default()
    };
    let common = message_with(fields, &envelope).expect("a good message").common;
    assert_eq!(common.correlation_id.as_deref(), Some("amqp"));
    assert_eq!(common.reply_to.as_deref(), Some("amq.rabbitmq.reply-to.g1"));
}

#[test]
fn a_number_since_1970_is_refused_with_the_time_that_it_means() {
    for (sent, meant) in [
        ("1795167000", "2026-11-20T09:30:00.000000Z"),
        ("1795167000.1234", "2026-11-20T09:30:00.123400Z"),
        ("\"1795167000123\"", "2026-11-20T09:30:00.123000Z"),
        ("1795167000123456", "2026-11-20T09:30:00.123456Z"),
        ("1795167000123456789", "2026-11-20T09:30:00.123456Z"),
        ("999999999", "2001-09-09T01:46:39.000000Z"),
        ("1.795167E9", "2026-11-20T09:30:00.000000Z"),
    ] {
        let refusal = message_with(&format!("\"timestamp\":{sent}"), &Envelope::default());
        assert_eq!(refusal.expect_err(sent).hint, Some(Hint::DidYouMean(meant.to_owned())));
    }
    for sent in
        ["1e400", "20261120", "-1795167000", "\"1795167000 s\"", "17951670001", "9999999999999"]
    {
        let refusal = message_with(&format!("\"timestamp\":{sent}"), &Envelope::default());
        assert_eq!(refusal.expect_err(sent).hint, None, "{sent}");
    }
}

#[test]
fn a_tier_may_be_in_the_metadata() {
    let tier = |fields: &str| message(fields).common.tenant_tier;
    assert_eq!(tier(r#""metadata":{"tenant_tier":"free"}"#).as_deref(), Some("free"));
    assert_eq!(tier(r#""metadata":{"tenant_tier":3}"#), None);
    let both = r#""tenant_tier":"advance","metadata":{"tenant_tier":"free"}"#;
    assert_eq!(tier(both).as_deref(), Some("advance"));
    assert_eq!(tier(r#""data":{"tenant_tier":"enterprise"}"#).as_deref(), Some("enterprise"));
}

#[test]
fn metadata_are_kept_byte_for_byte_and_nothing_beside_them_is_lost() {
    let metadata = |fields: &str| {
        message(fields).message.metadata.map(|metadata| metadata.as_str().to_owned())
    };
    assert_eq!(metadata(""), None);
    assert_eq!(metadata(r#""metadata":null"#), None);
    let own = r#"{ "b" : 1.00, "a":"\u00e9" , "c":2 }"#;
    assert_eq!(metadata(&format!(r#""metadata":{own}"#)).as_deref(), Some(own));
    assert_eq!(metadata(r#""x":null,"y":[1.0]"#).as_deref(), Some(r#"{"x":null,"y":[1.0]}"#));
    assert_eq!(
        metadata(r#""x":1,"metadata":{"x":2,"extra.x":3}"#).as_deref(),
        Some(r#"{"x":2,"extra.x":3,"extra.extra.x":1}"#)
    );
    assert_eq!(
        metadata(r#""task_id":"9","origin_service":null,"metadata":{}"#).as_deref(),
        Some(r#"{"task_id":"9"}"#)
    );
    assert_eq!(metadata(r#""we\"ird\n":1"#).as_deref(), Some(r#"{"we\"ird\n":1}"#));
}

#[test]
fn a_number_in_a_free_field_is_kept_as_it_was_written() {
    let numbers = "[1e400, -1E-400,123456789012345678901234567890,-0, 1.0,1 ,0.10]";
    let free = format!(r#""metadata":{{"n":{numbers}}},"x":{numbers}"#);
    let sent = message(&format!(r#"{free},"tool_calls":[{numbers}]"#)).message;
    let metadata = format!(r#"{{"n":{numbers},"x":{numbers}}}"#);
    assert_eq!(sent.metadata.as_ref().map(Json::as_str), Some(metadata.as_str()));
    assert_eq!(sent.tool_calls.as_ref().map(Json::as_str), Some(&*format!("[{numbers}]")));
    let parts = format!(r#"[{{"type":"x","n":{numbers}}}]"#);
    let Ok(Action::SaveMessage(save)) = decoded(&body(&format!(r#""content":{parts}"#))) else {
        panic!("parts with numbers")
    };
    assert_eq!(save.message.content.parts().map(Json::as_str), Some(parts.as_str()));
}

#[test]
fn messages_whose_free_fields_differ_in_a_large_number_have_different_hashes() {
    let hash = |number: &str| message(&format!(r#""tool_calls":[{number}]"#)).body_hash();
    let different =
        ["1e400", "1e401", "-1e400", "0", "1e-400", "123456789012345678901234567890", "1e29"];
    for (n, one) in different.iter().enumerate() {
        for (m, other) in different.iter().enumerate() {
            assert_eq!(hash(one) == hash(other), n == m, "{one} {other}");
        }
    }
    assert_ne!(hash("123456789012345678901234567890"), hash("123456789012345678901234567891"));
    assert_eq!(hash("10e399"), hash("1e400"));
}

#[test]
fn an_integer_of_ours_may_be_written_with_a_fraction_of_0() {
    for (estimate, tokens) in [("4.0", 4), ("40e-1", 4), ("1E2", 100), ("-0.0", 0)] {
        let sent = message(&format!(r#""tokens_estimate":{estimate}"#)).message;
        assert_eq!(sent.tokens_estimate, Some(tokens), "{estimate}");
    }
    let large = message(r#""tokens_estimate":9007199254740993.0"#).message;
    assert_eq!(large.tokens_estimate, Some(9_007_199_254_740_993));
    let start = r#""tenant_id":"t","session_id":"s""#;
    for body in [
        format!(r#"{{"action_type":"conversation.feedback",{start},"satisfaction":4.0}}"#),
        format!(r#"{{"action_type":"conversation.session_closed",{start},"satisfaction":5e0}}"#),
        format!(r#"{{"action_type":"conversation.get_history",{start},"limit":1e3}}"#),
        format!(r#"{{"action_type":"conversation.get_context",{start},"max_tokens":10.00}}"#),
    ] {
        decoded(&body).unwrap_or_else(|refusal| panic!("{body}: {refusal}"));
    }
}

#[test]
fn an_equal_value_in_both_places_is_accepted_and_null_is_ignored() {
    assert_eq!(message(r#""data":{"content":"hi","role":"assistant"}"#).common.metadata, None);
    let json = r#""metadata":{"a":1,"b":[2]},"data":{"metadata":{"b":[2],"a":1}}"#;
    assert!(message(json).message.metadata.is_some());
    let numbers = r#""tokens_estimate":4,"x":1e400,"data":{"tokens_estimate":4.0,"x":10e399}"#;
    assert_eq!(message(numbers).message.tokens_estimate, Some(4));
    let nulls = r#""agent_id":null,"user_id":"u","data":{"agent_id":"a","user_id":null}"#;
    let message = message(nulls).message;
    assert_eq!(message.agent_id.expect("from data").as_str(), "a");
    assert_eq!(message.user_id.expect("from the top").as_str(), "u");
}

#[test]
fn content_may_be_absent_if_there_are_tool_calls_and_in_messages_of_the_assistant() {
    for content in ["", r#""content":null,"#, r#""content":"","#] {
        let body = body(&format!(r#"{content}"tool_calls":[]"#));
        let Ok(Action::SaveMessage(save)) = decoded(&body) else { panic!("{body}") };
        assert_eq!(save.message.content, Content::Text(String::new()));
        assert_eq!(save.message.tool_calls.as_ref().map(Json::as_str), Some("[]"));
    }
    let saved = |fields: &str| match decoded(&body(fields)) {
        Ok(Action::SaveMessage(save)) => save.message,
        other => panic!("{fields}: {other:?}"),
    };
    for (fields, text) in [
        (r#""tool_calls":null"#, ""),
        (r#""refusal":"no""#, "no"),
        (r#""data":{"refusal":"no"}"#, "no"),
        (r#""refusal":7,"audio":{"id":"a","transcript":"yes"}"#, "yes"),
        (r#""refusal":null,"audio":{"id":"a"}"#, ""),
        (r#""tool_calls":[],"refusal":"no""#, "no"),
        (r#""tool_calls":[{"id":"c"}],"refusal":"no""#, ""),
        (r#""content":"hi","refusal":"no""#, "hi"),
    ] {
        let message = saved(fields);
        assert_eq!(message.content, Content::Text(text.to_owned()), "{fields}");
        let metadata = message.metadata.as_ref().map(Json::as_str).unwrap_or_default();
        assert_eq!(metadata.contains("refusal"), fields.contains("refusal"), "{fields}");
    }
    for parts in [r#""parts":[]"#, r#""content":null,"tool_calls":[{}],"data":{"parts":["a"]}"#] {
        let refusal = decoded(&body(parts)).expect_err(parts);
        assert!(refusal.detail.contains("send the array `parts` as `content`"), "{refusal}");
    }
    for (role, words) in [("user", "add `tool_calls`"), ("tool", "add `tool_calls`")] {
        let body = body("").replace("assistant", role).replace(",}", "}");
        let refusal = decoded(&body).expect_err("no content");
        assert_eq!(refusal.field.as_deref(), Some("content"));
        assert!(refusal.detail.contains(words), "{refusal}");
    }
}

#[test]
fn the_text_of_parts_is_that_of_the_types_that_the_contract_lists() {
    for (parts, text) in [
        (r#"["a",{"text":"b"},{"type":null,"text":{"value":"c"}}]"#, "a\nb\nc"),
        (r#"[{"type":"output_text","text":"a"},{"type":"input_text","text":"b"}]"#, "a\nb"),
        (r#"[{"type":"refusal","refusal":"a"},{"type":"thinking","thinking":"b"}]"#, "a\nb"),
        (r#"[{"type":"tool_result","content":"a"},{"type":"tool_result"}]"#, "a"),
        (
            r#"[{"type":"tool_result","content":["a",{"text":"b"},{"type":"tool_result","content":7}]}]"#,
            "a\nb",
        ),
        (r#"[{"type":"audio","text":7},{"toolUse":{}},{"type":"image_url"},{"text":null}]"#, ""),
        (r#"[{"type":"refusal"},{"type":"thinking","thinking":null}]"#, ""),
        ("[]", ""),
    ] {
        let Ok(Action::SaveMessage(save)) = decoded(&body(&format!(r#""content":{parts}"#))) else {
            panic!("{parts}")
        };
        assert_eq!(save.message.content.text(), text, "{parts}");
        assert_eq!(save.message.content.parts().map(Json::as_str), Some(parts));
    }
}

#[test]
fn an_id_that_is_an_integer_is_its_digits() {
    let common = message(r#""user_id":5550001,"conversation_id":-1001234567890,"message_id":7.0"#);
    assert_eq!(common.common.user_id.unwrap().as_str(), "5550001");
    assert_eq!(common.common.key.conversation.as_str(), "-1001234567890");
    assert_eq!(common.message.id.as_str(), "7");
    let digits = message(r#""message_id":18446744073709551616"#);
    assert_eq!(digits.message.id.as_str(), "18446744073709551616");
    let start =
        r#"{"action_type":"state.load","tenant_id":"t","session_id":1,"profile":"p","key":"#;
    for key in ["7", r#"{"company":17,"phone":"+7"}"#] {
        decoded(&format!("{start}{key}}}")).expect(key);
    }
    for key in ["1.5", "[]", "true", r#"{"company":[]}"#, r#"{"company":""}"#] {
        let refusal = decoded(&format!("{start}{key}}}")).expect_err(key);
        assert_eq!(refusal.field.as_deref(), Some("key"), "{refusal}");
    }
}

#[test]
fn an_empty_array_is_an_empty_object() {
    assert_eq!(message(r#""metadata":[ ],"data":[]"#).message.metadata.unwrap().as_str(), "{}");
    let metadata = message(r#""metadata":[],"x":[]"#).message.metadata;
    assert_eq!(metadata.unwrap().as_str(), r#"{"x":[]}"#);
    let start = r#""tenant_id":"t","session_id":"s","profile":"p","key":"k""#;
    for fields in [
        r#"{"action_type":"state.save","value":[],"#,
        r#"{"action_type":"state.patch","patch":[],"append":[],"increment":[],"#,
        r#"{"action_type":"state.list_active","filter":[],"#,
    ] {
        decoded(&format!("{fields}{start}}}")).expect(fields);
    }
}

#[test]
fn parts_are_kept_and_their_text_is_read() {
    let parts = r#"[ {"type":"text","text":"a"}, {"type":"audio","text":7}, {"type":"text","text":"b","x":1.0} ]"#;
    let Ok(Action::SaveMessage(save)) = decoded(&body(&format!(r#""content":{parts}"#))) else {
        panic!("parts")
    };
    assert_eq!(save.message.content.text(), "a\nb");
    assert_eq!(save.message.content.parts().map(Json::as_str), Some(parts));
}

#[test]
fn a_time_without_an_offset_is_utc() {
    for text in ["2026-02-03T04:05:06", "2026-02-03 04:05:06", "2026-02-03t04:05:06.000z"] {
        assert_eq!(at(text), at("2026-02-03T04:05:06Z"), "{text}");
    }
    for text in [
        "2026-02-03T04:05Z",
        "2026-02-03T04:05",
        "2026-02-03 04:05 +0000",
        "2026-02-03 05:05:00 +01:00",
        "2026-02-03T02:35:00.0-0130",
        "2026-02-03 04:05:00+00",
    ] {
        assert_eq!(at(text), at("2026-02-03T04:05:00Z"), "{text}");
    }
}

#[test]
fn details_are_kept_and_a_value_of_another_type_is_metadata() {
    let sent = message(
        r#""item":{ "b":1.0,"a":[] },"usage":{"input_tokens":7},"finish_reason":"stop","response_id":"r",
           "parent_message_id":17,"context_hash":"h""#,
    );
    let details = sent.message.details.expect("details");
    let json = |json: &Option<Json>| json.as_ref().map(|json| json.as_str().to_owned());
    assert_eq!(json(&details.item).as_deref(), Some(r#"{ "b":1.0,"a":[] }"#));
    assert_eq!(json(&details.usage).as_deref(), Some(r#"{"input_tokens":7}"#));
    assert_eq!(details.finish_reason.as_deref(), Some("stop"));
    assert_eq!(details.response_id.as_deref(), Some("r"));
    assert_eq!(details.parent_message_id.as_ref().map(MessageId::as_str), Some("17"));
    assert_eq!((details.context_hash.as_deref(), sent.message.metadata), (Some("h"), None));

    let others = r#""usage":[1],"finish_reason":7,"response_id":{},"parent_message_id":"","context_hash":true"#;
    let message = message(&format!(r#"{others},"item":null"#)).message;
    assert_eq!(message.details, None);
    let metadata = message.metadata.expect("metadata");
    assert_eq!(metadata.as_str(), format!("{{{others}}}"));

    let long = "x".repeat(MAX_DETAIL_BYTES + 1);
    let long =
        format!(r#""usage":{{"x":"{long}"}},"finish_reason":"{long}","context_hash":"{long}""#);
    let message = self::message(&long).message;
    assert_eq!(message.details, None);
    assert_eq!(message.metadata.expect("metadata").as_str(), format!("{{{long}}}"));
}

#[test]
fn messages_that_say_different_things_instead_of_content_have_different_hashes() {
    let hash = |fields: &str| match decoded(&body(fields)) {
        Ok(Action::SaveMessage(save)) => save.body_hash(),
        other => panic!("{fields}: {other:?}"),
    };
    let different = [
        r#""function_call":{"name":"a","arguments":"{}"}"#,
        r#""function_call":{"name":"b","arguments":"{}"}"#,
        r#""audio":{"id":"a"}"#,
        r#""audio":{"id":"b"}"#,
        r#""reasoning_content":"a""#,
        r#""refusal":"a""#,
        r#""content":"a""#,
        r#""content":"""#,
    ];
    for (n, one) in different.iter().enumerate() {
        for (m, other) in different.iter().enumerate() {
            assert_eq!(hash(one) == hash(other), n == m, "{one} {other}");
        }
    }
    // Beside tool calls they are metadata, as they were before.
    let calls = r#""content":null,"tool_calls":[{"id":"c"}]"#;
    assert_eq!(hash(&format!(r#"{calls},"reasoning_content":"a""#)), hash(calls));
    let traced = r#""trace":1,"refusal":null,"function_call":{ "arguments":"{}","name":"a" }"#;
    assert_eq!(hash(traced), hash(different[0]));
}

#[test]
fn messages_with_different_items_have_different_hashes() {
    let hash = |fields: &str| message(fields).body_hash();
    assert_ne!(hash(r#""item":{"a":1}"#), hash(""));
    assert_ne!(hash(r#""item":{"a":1}"#), hash(r#""item":{"a":2}"#));
    assert_eq!(hash(r#""item":{"a":1,"b":2}"#), hash(r#""item":{ "b":2, "a":1.0 }"#));
    let rest = r#""usage":{"input_tokens":7},"finish_reason":"stop","parent_message_id":"m""#;
    assert_eq!(hash(rest), hash(""));
}
