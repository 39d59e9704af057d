//! Every invalid body is refused for its reason; the refusal names the field, the fault and the
//! remedy.

use std::fmt::Write;

use domain::decode::DEFAULT_MAX_BODY_BYTES;
use domain::envelope::Envelope;
use domain::failure::{DeadLetterReason, Hint};
use fixtures::examples::malformed;

use fixtures::decoded_with;

#[test]
fn every_bad_body_is_refused_for_its_reason_and_names_its_field() {
    let all = malformed(DEFAULT_MAX_BODY_BYTES);
    assert!(all.len() >= 110, "only {} bad bodies were read", all.len());
    let mut wrong = String::new();
    for bad in &all {
        let found = decoded_with(&bad.body, &Envelope::default())
            .map_err(|refusal| (refusal.reason.as_str(), refusal.field));
        let expected = (bad.reason, bad.field.map(str::to_owned));
        if found != Err(expected.clone()) {
            writeln!(wrong, "{}: {found:?} instead of {expected:?}", bad.name).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_refusal_names_the_field_the_fault_and_the_remedy() {
    let mut refusals = String::new();
    for bad in malformed(DEFAULT_MAX_BODY_BYTES) {
        let refusal = decoded_with(&bad.body, &Envelope::default()).expect_err(bad.name);
        writeln!(refusals, "{}\n    {refusal}", bad.name).unwrap();
    }
    insta::assert_snapshot!(refusals);
}

#[test]
fn a_refusal_has_a_typed_hint_where_its_sentence_has_a_suggestion() {
    let mut meant = 0;
    for bad in malformed(DEFAULT_MAX_BODY_BYTES) {
        let refusal = decoded_with(&bad.body, &Envelope::default()).expect_err(bad.name);
        match &refusal.hint {
            Some(Hint::DidYouMean(value)) => {
                meant += 1;
                assert!(
                    refusal.detail.ends_with(&format!("; did you mean `{value}`?")),
                    "{refusal}"
                );
                assert!(refusal.field.is_some(), "{refusal}");
            }
            Some(Hint::AddField) => assert!(refusal.detail.ends_with("` is missing"), "{refusal}"),
            Some(Hint::ReplaceUnstorable) => {
                let unstorable = ["U+0000", "surrogate", "NaN", "Infinity"];
                let named = unstorable.iter().any(|it| refusal.detail.contains(it));
                assert!(named && refusal.field.is_some(), "{refusal}");
            }
            Some(Hint::ToUtf8) => assert!(refusal.detail.contains("UTF-8"), "{refusal}"),
            None => assert!(!refusal.detail.contains("did you mean"), "{refusal}"),
        }
    }
    assert!(meant >= 5, "only {meant} suggestions");
}

#[test]
fn no_refusal_repeats_more_than_the_beginning_of_a_value() {
    let long = "x".repeat(5_000);
    for field in ["role", "timestamp", "tokens_estimate", "action_type", "metadata", "tool_calls"] {
        let body = format!(
            r#"{{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s",
                "role":"user","content":"hi","{field}":"{long}"}}"#
        );
        let duplicate = format!("\"{field}\":\"{long}\"");
        // Where the body already has the field, only the long value stays.
        let body = match field {
            "role" => body.replace(r#""role":"user","#, ""),
            "action_type" => body.replace(r#""action_type":"conversation.save_message","#, ""),
            _ => body,
        };
        assert!(body.contains(&duplicate));
        let refusal = decoded_with(body.as_bytes(), &Envelope::default()).expect_err(field);
        let repeated = refusal.detail.matches('x').count();
        assert!(repeated <= 82, "{field}: {repeated} in {refusal}");
        assert_eq!(refusal.field.as_deref(), Some(field));
    }
}

#[test]
fn the_field_of_a_refusal_is_short_however_long_its_name_is() {
    let name = "x".repeat(5_000);
    let start = r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"user","content":"hi""#;
    for fault in [r#":NaN"#, r#":"\u0000""#] {
        let body = format!("{start},\"{name}\"{fault}}}");
        let refusal = decoded_with(body.as_bytes(), &Envelope::default()).expect_err(fault);
        let field = refusal.field.expect("a field");
        assert!(field.ends_with('…') && field.len() < 150, "{field}");
    }
}

#[test]
fn the_largest_body_is_accepted_and_one_byte_more_is_too_large() {
    let body = |bytes: usize| {
        let open = r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"user","content":""#;
        let close = "\"}";
        format!("{open}{}{close}", "x".repeat(bytes - open.len() - close.len()))
    };
    let largest = body(DEFAULT_MAX_BODY_BYTES);
    assert_eq!(largest.len(), 1_048_576);
    decoded_with(largest.as_bytes(), &Envelope::default()).expect("the largest body");
    let refusal = decoded_with(body(DEFAULT_MAX_BODY_BYTES + 1).as_bytes(), &Envelope::default())
        .expect_err("one byte more");
    assert_eq!(refusal.reason, DeadLetterReason::TooLarge);
}
