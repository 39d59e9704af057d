//! Names that other systems give to fields of the contract. An action with one of them is valid: the field is stored as
//! metadata. Its sender probably means the field of the contract.

use std::collections::BTreeMap;

use domain::json::{members, string};
use serde::Serialize;

use crate::output::{Text, Tone, plural};

/// A field of another system, its value if only that one is meant, and what the contract has instead.
const FOREIGN: [(&str, Option<&str>, &str); 16] = [
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
];

/// Actions that have a field of another system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Warning {
    /// The field.
    pub(crate) field: &'static str,
    /// What it is, and what the contract has instead.
    pub(crate) detail: String,
    /// How many actions have it.
    pub(crate) actions: u64,
    /// The first line that has it.
    pub(crate) first_line: u64,
}

/// The fields of other systems in the actions of a file.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Warnings(Vec<Warning>);

impl Warnings {
    /// Counts the fields of a valid action.
    pub(crate) fn count(&mut self, line: u64, body: &[u8]) {
        let fields = |object: &str| -> BTreeMap<String, String> {
            let members = members(object).unwrap_or_default().into_iter();
            members.map(|(name, value)| (name.into_owned(), value.to_owned())).collect()
        };
        let mut sent = fields(std::str::from_utf8(body).unwrap_or_default());
        let nested = sent.get("data").map(|data| fields(data));
        sent.extend(nested.unwrap_or_default());
        for (field, value, meant) in FOREIGN {
            let Some(json) = sent.get(field) else { continue };
            if value.is_some_and(|value| string(json).as_deref() != Some(value)) {
                continue;
            }
            let of = value.map(|value| format!(" {value:?}")).unwrap_or_default();
            let detail = format!("`{field}`{of} is stored as metadata; the contract has {meant}");
            match self.0.iter_mut().find(|warning| warning.detail == detail) {
                Some(warning) => warning.actions += 1,
                None => self.0.push(Warning { field, detail, actions: 1, first_line: line }),
            }
        }
    }

    /// A line for each field.
    pub(crate) fn write(&self, out: &mut Text) {
        for Warning { detail, actions, first_line, .. } in &self.0 {
            let actions = plural(*actions, "action");
            out.line(Tone::Warn, format!("{actions}, first in line {first_line}: {detail}"));
        }
    }
}
