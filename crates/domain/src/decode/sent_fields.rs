//! The fields of a body that need not be a valid action: what is known about a message that was refused.

use std::borrow::Cow;

use crate::ids::id_text;
use crate::json::{Member, members, string, wanted_members};

/// The fields of a body that identify its message and its sender, as they are written.
#[derive(Debug, Default)]
pub struct SentFields<'a>(Vec<Member<'a>>);

/// The fields that are kept.
const NAMES: [&str; 10] = [
    DATA,
    "action_type",
    "tenant_id",
    "conversation_id",
    "session_id",
    "message_id",
    "action_id",
    "timestamp",
    "callback_queue_name",
    "correlation_id",
];
const DATA: &str = "data";

/// The longest body that is checked to be JSON, in bytes. The members of a body of 128 MiB, RabbitMQ's limit, would
/// need a gigabyte.
const MAX_CHECKED: usize = 2 << 20;

impl<'a> SentFields<'a> {
    /// The fields at the top of a body and those under its `data`. None if it is not one JSON object. Of a body of
    /// more than 2 MiB only the brackets and strings are checked.
    #[must_use]
    pub fn of(body: &'a [u8]) -> Self {
        let object = std::str::from_utf8(body).ok().and_then(fields);
        let mut found = object.unwrap_or_default();
        let data = found.iter().find(|(name, _)| name == DATA).map(|(_, data)| *data);
        found.extend(data.and_then(fields).unwrap_or_default());
        Self(found)
    }

    /// The JSON of a field. As in [`decode`](super::decode()), one that is null at the top may be under `data`.
    #[must_use]
    pub fn json(&self, name: &str) -> Option<&'a str> {
        debug_assert!(NAMES.contains(&name), "{name} is not kept");
        let mut values = self.0.iter().filter(|(found, _)| found == name).map(|(_, value)| *value);
        values.find(|value| *value != "null")
    }

    /// The value of a field that is a string.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        string(self.json(name)?)
    }

    /// The text of a field that is an id: a string, or an integer by its digits. The id need not be valid.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<Cow<'a, str>> {
        id_text(self.json(name)?)
    }
}

fn fields(object: &str) -> Option<Vec<Member<'_>>> {
    if object.len() > MAX_CHECKED { wanted_members(object, &NAMES) } else { members(object).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_at_the_top_and_then_under_data() {
        let body = br#"{"tenant_id":"top","session_id":null,"action_id":1e400,
            "data":{"tenant_id":"nested","session_id":"\u00e9","message_id":"\ud800"}}"#;
        let large = [body.as_slice(), &vec![b' '; MAX_CHECKED]].concat();
        for body in [body.as_slice(), &large] {
            let fields = SentFields::of(body);
            assert_eq!(fields.text("tenant_id").as_deref(), Some("top"));
            assert_eq!(fields.text("session_id").as_deref(), Some("é"));
            assert_eq!((fields.json("action_id"), fields.text("action_id")), (Some("1e400"), None));
            assert_eq!((fields.text("message_id"), fields.text("timestamp")), (None, None));
            assert_eq!(
                (fields.id("session_id"), fields.id("message_id")),
                (Some("é".into()), None)
            );
        }
        let numbers = SentFields::of(br#"{"session_id":-1001234567890,"data":{"message_id":7.0}}"#);
        assert_eq!(numbers.id("session_id").as_deref(), Some("-1001234567890"));
        assert_eq!(
            (numbers.id("message_id").as_deref(), numbers.text("message_id")),
            (Some("7"), None)
        );
    }

    #[test]
    fn a_body_that_is_no_object_has_no_fields() {
        let space = " ".repeat(MAX_CHECKED);
        for body in [&b""[..], b"\xff", b"[]", br#"{"tenant_id":"b""#, br#"{"tenant_id":"b"}]"#] {
            assert_eq!(SentFields::of(body).json("tenant_id"), None);
            let large = [body, space.as_bytes()].concat();
            assert_eq!(SentFields::of(&large).json("tenant_id"), None);
        }
    }

    #[test]
    fn of_a_large_body_no_more_is_kept_than_the_fields_that_are_wanted() {
        let all = |repeated: &str| {
            let repeated = repeated.repeat(MAX_CHECKED / repeated.len() + 1);
            format!(r#"{{"x":{{}},{repeated}"tenant_id":"t","data":{{"session_id":"s"}}}}"#)
        };
        let deep = ["[", "]"].map(|bracket| bracket.repeat(MAX_CHECKED)).concat();
        for body in [
            all(r#""":0,"#),
            all(r#""tenant_id":null,"#),
            all(r#""action_id":[{},"]"],"#),
            format!(r#"{{"x":{deep},"tenant_id":"t","data":{{"session_id":"s"}}}}"#),
            format!(r#"{{"\u0078{deep}":0,"tenant_id":"t","data":{{"session_id":"s"}}}}"#),
        ] {
            let fields = SentFields::of(body.as_bytes());
            assert_eq!(fields.text("tenant_id").as_deref(), Some("t"));
            assert_eq!(fields.text("session_id").as_deref(), Some("s"));
            assert!(fields.0.len() <= 2 * NAMES.len() && fields.0.capacity() < 100);
        }
    }
}
