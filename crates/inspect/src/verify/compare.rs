//! Compares a range of a hot copy with the same range of committed rows. Pure.

use std::collections::BTreeMap;

use domain::message::{Details, Message, Position};

use super::finding::Kind;

/// A message that is only in one of the two, or differs between them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mismatch {
    pub(super) id: String,
    pub(super) kind: Kind,
    pub(super) fields: Vec<&'static str>,
}

impl Mismatch {
    pub(super) fn detail(&self) -> String {
        match self.kind {
            Kind::HotCopyMissing => {
                "committed in PostgreSQL, missing in the valid hot copy".to_owned()
            }
            Kind::HotCopySurplus => "in the valid hot copy, not committed in PostgreSQL".to_owned(),
            _ => format!("the valid hot copy differs in {}", self.fields.join(", ")),
        }
    }
}

/// Compares the messages at `from` and after it. Both slices are in order, and complete from there on.
pub(super) fn compare(
    copy: &[Message],
    rows: &[Message],
    from: Option<&Position>,
) -> Vec<Mismatch> {
    let covered = |message: &&Message| from.is_none_or(|from| message.position() >= *from);
    let mut found: BTreeMap<&str, Mismatch> = BTreeMap::new();
    let rows: BTreeMap<&str, &Message> =
        rows.iter().filter(covered).map(|row| (row.id.as_str(), row)).collect();
    let copy: BTreeMap<&str, &Message> =
        copy.iter().filter(covered).map(|message| (message.id.as_str(), message)).collect();
    let mut add = |id, kind, fields| {
        found.insert(id, Mismatch { id: String::from(id), kind, fields });
    };
    for (id, message) in &copy {
        match rows.get(id) {
            None => add(id, Kind::HotCopySurplus, vec![]),
            Some(row) if row == message => {}
            Some(row) => add(id, Kind::HotCopyDifferent, differing(row, message)),
        }
    }
    for id in rows.keys().filter(|id| !copy.contains_key(*id)) {
        add(id, Kind::HotCopyMissing, vec![]);
    }
    found.into_values().collect()
}

/// The names of the fields in which two messages differ.
fn differing(row: &Message, other: &Message) -> Vec<&'static str> {
    // Destructured without `..`, so that a new field is a compile error here.
    let Message {
        id: _,
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
        details,
    } = row;
    let Details { item, usage, finish_reason, response_id, parent_message_id, context_hash } =
        Details::of(details);
    let others = Details::of(&other.details);
    [
        ("role", *role == other.role),
        ("content", *content == other.content),
        ("tool_calls", *tool_calls == other.tool_calls),
        ("tool_call_id", *tool_call_id == other.tool_call_id),
        ("tokens_estimate", *tokens_estimate == other.tokens_estimate),
        ("user_id", *user_id == other.user_id),
        ("agent_id", *agent_id == other.agent_id),
        ("model_name", *model_name == other.model_name),
        ("processing_time_ms", *processing_time_ms == other.processing_time_ms),
        ("timestamp", *created_at == other.created_at),
        ("received_at", *received_at == other.received_at),
        ("metadata", *metadata == other.metadata),
        ("item", *item == others.item),
        ("usage", *usage == others.usage),
        ("finish_reason", *finish_reason == others.finish_reason),
        ("response_id", *response_id == others.response_id),
        ("parent_message_id", *parent_message_id == others.parent_message_id),
        ("context_hash", *context_hash == others.context_hash),
    ]
    .into_iter()
    .filter(|(_, same)| !same)
    .map(|(name, _)| name)
    .collect()
}

#[cfg(test)]
mod tests {
    use domain::ids::MessageId;
    use domain::message::{Content, Role};
    use domain::time::Timestamp;

    use super::*;

    fn message(id: &str, micros: i64) -> Message {
        let at = Timestamp::from_micros(micros).unwrap();
        Message {
            id: MessageId::new(id).unwrap(),
            role: Role::User,
            content: Content::Text(format!("content of {id}")),
            tool_calls: None,
            tool_call_id: None,
            tokens_estimate: None,
            user_id: None,
            agent_id: None,
            model_name: None,
            processing_time_ms: None,
            created_at: at,
            received_at: at,
            metadata: None,
            details: None,
        }
    }

    fn found(copy: &[Message], rows: &[Message]) -> Vec<(String, Kind, Vec<&'static str>)> {
        let mismatches = compare(copy, rows, None);
        mismatches.into_iter().map(|it| (it.id, it.kind, it.fields)).collect()
    }

    #[test]
    fn equal_ranges_have_no_mismatch() {
        let all = [message("a", 1), message("b", 2)];
        assert_eq!(found(&all, &all), []);
        assert_eq!(found(&[], &[]), []);
    }

    #[test]
    fn missing_surplus_and_different_messages_are_distinguished() {
        let other = Message { role: Role::Tool, ..message("c", 3) };
        let copy = [message("b", 2), other, message("d", 4)];
        let rows = [message("a", 1), message("b", 2), message("c", 3)];
        let expected = [
            ("a".to_owned(), Kind::HotCopyMissing, vec![]),
            ("c".to_owned(), Kind::HotCopyDifferent, vec!["role"]),
            ("d".to_owned(), Kind::HotCopySurplus, vec![]),
        ];
        assert_eq!(found(&copy, &rows), expected);
    }

    #[test]
    fn a_message_at_another_time_is_one_mismatch() {
        let moved = Message { created_at: Timestamp::from_micros(9).unwrap(), ..message("a", 1) };
        let expected = [("a".to_owned(), Kind::HotCopyDifferent, vec!["timestamp"])];
        assert_eq!(found(&[moved], &[message("a", 1)]), expected);
    }

    #[test]
    fn messages_before_the_start_are_not_compared() {
        let rows = [message("a", 1), message("b", 2)];
        let from = message("b", 2).position();
        assert_eq!(compare(&rows[1..], &rows, Some(&from)), []);
        assert_eq!(compare(&rows, &rows[1..], Some(&from)), []);
    }
}
