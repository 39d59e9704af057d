//! The file of `verbatim sync`: its messages, and the parts in which they are sent.

use std::ops::Range;

use domain::decode::MAX_LISTED;
use domain::json::{members, string};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::exit::Failure;
use crate::input::Input;

/// Messages, each as it is written.
#[derive(Debug)]
pub(super) struct List<'a> {
    pub(super) messages: Vec<&'a str>,
    /// The `model` of the object in which they are.
    pub(super) model: Option<String>,
}

impl<'a> List<'a> {
    /// Reads an array of messages, or an object with the array `messages`.
    pub(super) fn read(bytes: &'a [u8], file: &Input) -> Result<Self, Failure> {
        let wrong = |what: &str| {
            Failure::problem(
                format!("{file} {what}"),
                "send a JSON array of messages, or an object with the array `messages`; for one action on each line use \
                 `verbatim publish`",
            )
        };
        let text = std::str::from_utf8(bytes).map_err(|_| wrong("is not UTF-8"))?;
        let text = text.trim_start_matches('\u{feff}').trim();
        let (array, model) = if text.starts_with('[') {
            (text, None)
        } else {
            let fields =
                members(text).map_err(|error| wrong(&format!("is not one JSON value: {error}")))?;
            let field =
                |wanted: &str| fields.iter().find(|(name, _)| name == wanted).map(|it| it.1);
            let array = field("messages").ok_or_else(|| wrong("has no `messages`"))?;
            (array, field("model").and_then(string).map(std::borrow::Cow::into_owned))
        };
        let messages: Vec<&RawValue> = serde_json::from_str(array)
            .map_err(|error| wrong(&format!("has no array of messages: {error}")))?;
        if messages.is_empty() {
            return Err(wrong("has no messages"));
        }
        Ok(Self { messages: messages.into_iter().map(RawValue::get).collect(), model })
    }

    /// The parts in which they are sent: actions of so many bytes at most, whose other fields have `fields` bytes. No part but
    /// the first begins with a system or developer message: there it would be the head of the list.
    pub(super) fn parts(
        &self,
        max_bytes: usize,
        fields: usize,
    ) -> Result<Vec<Range<usize>>, Failure> {
        // `"messages":[],` and the id behind which a part begins.
        const BESIDE: usize = 600;
        let room = max_bytes.saturating_sub(fields + BESIDE);
        let mut parts = Vec::new();
        let mut start = 0;
        while start < self.messages.len() {
            let (mut end, mut bytes) = (start, 0);
            while let Some(message) = self.messages.get(end) {
                bytes += message.len() + ",".len();
                if bytes > room || end - start == MAX_LISTED {
                    break;
                }
                end += 1;
            }
            if end == start {
                let what = format!(
                    "message {start} has {} bytes, and an action at most {max_bytes}",
                    self.messages[start].len()
                );
                return Err(Failure::problem(what, "send its large content by reference"));
            }
            let may_end =
                |end: &usize| self.messages.get(*end).is_none_or(|next| !is_instruction(next));
            end = (start + 1..=end).rev().find(may_end).unwrap_or(end);
            parts.push(start..end);
            start = end;
        }
        Ok(parts)
    }

    /// The body of the action with these fields and messages.
    pub(super) fn body(&self, fields: &Value, part: Range<usize>) -> Vec<u8> {
        let fields = fields.to_string();
        let fields = fields.trim_end_matches('}');
        format!("{fields},\"messages\":[{}]}}", self.messages[part].join(",")).into_bytes()
    }
}

fn is_instruction(message: &str) -> bool {
    let role = || {
        let fields = members(message).ok()?;
        let (_, role) = fields.into_iter().find(|(name, _)| name == "role")?;
        string(role).map(std::borrow::Cow::into_owned)
    };
    role().is_some_and(|role| matches!(&*role, "system" | "developer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Input {
        Input::parse("history.json").unwrap()
    }

    #[test]
    fn messages_are_an_array_or_in_an_object() {
        let read = |text: &str| {
            let list = List::read(text.as_bytes(), &file());
            list.map(|list| (list.messages.len(), list.model)).map_err(|failure| failure.text)
        };
        assert_eq!(read(" [{}, {\"a\": 1}]\n"), Ok((2, None)));
        let body = r#"{"model": "gpt-5", "messages": [{}], "tools": []}"#;
        assert_eq!(read(body), Ok((1, Some("gpt-5".to_owned()))));
        for (text, fault) in [
            ("", "is not one JSON value"),
            ("[]", "has no messages"),
            ("{}", "has no `messages`"),
            (r#"{"messages": 7}"#, "has no array of messages"),
            ("{}\n{}", "is not one JSON value"),
            ("[{}", "has no array of messages"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with("history.json ") && error.contains(fault), "{text}: {error}");
        }
    }

    #[test]
    fn a_large_list_is_sent_in_parts_none_of_which_begins_with_instructions() {
        let message =
            |role: &str| format!("{{\"role\":\"{role}\",\"content\":\"{}\"}}", "x".repeat(60));
        let roles = ["system", "user", "assistant", "user", "system", "assistant", "user"];
        let text = format!("[{}]", roles.map(message).join(","));
        let list = List::read(text.as_bytes(), &file()).unwrap();
        let one = message("assistant").len() + 1;
        let parts = |messages: usize| list.parts(600 + 10 + messages * one, 10).unwrap();
        assert_eq!(parts(7).len(), 1);
        assert_eq!(parts(4), [0..3, 3..7]);
        assert_eq!(parts(3), [0..3, 3..6, 6..7]);
        assert!(list.parts(600, 10).is_err());
        let body = list.body(&serde_json::json!({"a": 1}), 0..1);
        assert_eq!(
            String::from_utf8(body).unwrap(),
            format!("{{\"a\":1,\"messages\":[{}]}}", message("system"))
        );
    }
}
