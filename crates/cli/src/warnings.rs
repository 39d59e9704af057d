//! What in an action is probably not meant, although the validator need not refuse it: names that other systems give to
//! fields of the contract, times without an offset, messages of an assistant without any content.

use std::collections::BTreeMap;

use domain::decode::INSTEAD_OF_CONTENT;
use domain::json::{members, string};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::output::{Text, Tone, plural};

/// A field of another system, its value if only that one is meant, and what the contract has instead.
const FOREIGN: [(&str, Option<&str>, &str); 20] = [
    ("tenantId", None, "`tenant_id`"),
    ("sessionId", None, "`session_id`"),
    ("conversationId", None, "`conversation_id`"),
    ("messageId", None, "`message_id`"),
    ("actionId", None, "`action_id`"),
    ("userId", None, "`user_id`"),
    ("agentId", None, "`agent_id`"),
    ("modelName", None, "`model_name`"),
    ("toolCalls", None, "`tool_calls`"),
    ("toolCallId", None, "`tool_call_id`"),
    ("createdAt", None, "`timestamp`"),
    ("created_at", None, "`timestamp`"),
    ("sender", None, "`role`"),
    ("parts", None, "`content`"),
    ("type", Some("human"), "`role`: `user`"),
    ("type", Some("ai"), "`role`: `assistant`"),
    ("usage.prompt_tokens", None, "`usage.input_tokens`"),
    ("usage.completion_tokens", None, "`usage.output_tokens`"),
    ("usage.cache_read_input_tokens", None, "`usage.cache_read_tokens`"),
    ("usage.cache_creation_input_tokens", None, "`usage.cache_write_tokens`"),
];

/// Fields in which an assistant says something, beside [`INSTEAD_OF_CONTENT`].
const CONTENT: [&str; 4] = ["content", "tool_calls", "item", "parts"];

const WITHOUT_CONTENT: &str =
    "the message of an assistant has no `content`, and is saved as an empty one";

const WITHOUT_OFFSET: &str = "`timestamp` has no offset: it is read as UTC";

/// Something that is probably not meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Warning {
    /// The field.
    pub(crate) field: &'static str,
    /// What happens with it, and what the contract has instead.
    pub(crate) detail: String,
    /// How many actions have it.
    pub(crate) actions: u64,
    /// The first line that has it.
    pub(crate) first_line: u64,
}

/// What in the lines of a file is probably not meant.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Warnings(Vec<Warning>);

impl Warnings {
    /// Counts what is in a line, and in its messages.
    pub(crate) fn count(&mut self, line: u64, body: &[u8]) {
        let body = std::str::from_utf8(body).unwrap_or_default();
        self.count_object(line, body);
        let members = members(body).unwrap_or_default();
        let messages = members.iter().find(|(name, _)| name == "messages").map(|(_, json)| *json);
        let messages: Option<Vec<&RawValue>> =
            messages.and_then(|it| serde_json::from_str(it).ok());
        for message in messages.into_iter().flatten() {
            self.count_object(line, message.get());
        }
    }

    fn count_object(&mut self, line: u64, object: &str) {
        let fields = |place: &str, object: &str| -> BTreeMap<String, String> {
            let members = members(object).unwrap_or_default().into_iter();
            members.map(|(name, value)| (format!("{place}{name}"), value.to_owned())).collect()
        };
        let mut sent = fields("", object);
        for (name, place) in [("data", ""), ("usage", "usage.")] {
            let nested = sent.get(name).map(|object| fields(place, object));
            sent.extend(nested.unwrap_or_default());
        }
        let time = sent.get("timestamp").and_then(|json| string(json)).unwrap_or_default();
        let clock = time.get(10..).unwrap_or_default();
        if !clock.is_empty() && !clock.contains(['Z', 'z', '+', '-']) {
            self.add("timestamp", WITHOUT_OFFSET.to_owned(), line);
        }
        let has = |name: &str| sent.get(name).is_some_and(|value| value != "null");
        if sent.get("role").and_then(|json| string(json)).as_deref() == Some("assistant")
            && !CONTENT.into_iter().chain(INSTEAD_OF_CONTENT).any(has)
        {
            self.add("content", WITHOUT_CONTENT.to_owned(), line);
        }
        for (field, value, meant) in FOREIGN {
            let Some(json) = sent.get(field) else { continue };
            if value.is_some_and(|value| string(json).as_deref() != Some(value)) {
                continue;
            }
            let of = value.map(|value| format!(" {value:?}")).unwrap_or_default();
            let stored =
                if field.contains('.') { "is not counted" } else { "is stored as metadata" };
            self.add(field, format!("`{field}`{of} {stored}; the contract has {meant}"), line);
        }
    }

    fn add(&mut self, field: &'static str, detail: String, line: u64) {
        match self.0.iter_mut().find(|warning| warning.detail == detail) {
            Some(warning) => warning.actions += 1,
            None => self.0.push(Warning { field, detail, actions: 1, first_line: line }),
        }
    }

    /// A line for each of them.
    pub(crate) fn write(&self, out: &mut Text) {
        for Warning { detail, actions, first_line, .. } in &self.0 {
            let actions = plural(*actions, "action");
            out.line(Tone::Warn, format!("{actions}, first in line {first_line}: {detail}"));
        }
    }
}
