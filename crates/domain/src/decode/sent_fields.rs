//! The fields of a body that need not be a valid action: what is known about a message that was refused.

use std::borrow::Cow;

use crate::json::{Member, members, string};

/// The fields of a body, as they are written.
#[derive(Debug, Default)]
pub struct SentFields<'a>(Vec<Member<'a>>);

impl<'a> SentFields<'a> {
    /// The fields at the top of a body and those under its `data`. None if it is not one JSON object.
    #[must_use]
    pub fn of(body: &'a [u8]) -> Self {
        let object = std::str::from_utf8(body).ok().and_then(|text| members(text).ok());
        let mut fields = object.unwrap_or_default();
        let data = fields.iter().find(|(name, _)| name == "data").map(|(_, data)| *data);
        fields.extend(data.and_then(|data| members(data).ok()).unwrap_or_default());
        Self(fields)
    }

    /// The JSON of a field. As in [`decode`](super::decode()), one that is null at the top may be under `data`.
    #[must_use]
    pub fn json(&self, name: &str) -> Option<&'a str> {
        let mut values = self.0.iter().filter(|(found, _)| found == name).map(|(_, value)| *value);
        values.find(|value| *value != "null")
    }

    /// The value of a field that is a string.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        string(self.json(name)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_at_the_top_and_then_under_data() {
        let body =
            br#"{"a":"top","b":null,"n":1e400,"data":{"a":"nested","b":"\u00e9","c":"\ud800"}}"#;
        let fields = SentFields::of(body);
        assert_eq!(fields.text("a").as_deref(), Some("top"));
        assert_eq!(fields.text("b").as_deref(), Some("é"));
        assert_eq!((fields.json("n"), fields.text("n")), (Some("1e400"), None));
        assert_eq!((fields.text("c"), fields.text("d")), (None, None));
    }

    #[test]
    fn a_body_that_is_no_object_has_no_fields() {
        for body in [&b""[..], b"\xff", b"[]", br#"{"a":"b""#] {
            assert_eq!(SentFields::of(body).json("a"), None);
        }
    }
}
