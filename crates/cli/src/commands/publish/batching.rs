//! Lines become publications: neighbouring messages of a conversation together, everything else by itself.

use std::collections::HashMap;
use std::sync::Arc;

use broker::Publication;
use domain::action::{Action, ActionKind, SaveMessage};
use domain::decode::Grouping;
use domain::ids::ConversationKey;

use super::router::{Routed, Router};
use crate::input::Line;
use crate::validator::MissingFields;

/// The largest action of several messages, in bytes. With small messages an action of 100 has less.
const MAX_BYTES: usize = 256 << 10;

/// A publication, and the lines that are in it.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) lines: Vec<u64>,
    pub(super) publication: Arc<Publication>,
}

/// Lines that are published together, in the order in which they are published.
#[derive(Debug, Default)]
pub(super) struct Batch {
    entries: Vec<Entry>,
    /// Of each conversation the entry to which its next message may be added.
    open: HashMap<ConversationKey, usize>,
    pub(super) lines: usize,
    pub(super) bytes: usize,
}

#[derive(Debug)]
enum Entry {
    /// A line as it is.
    Line(Outgoing),
    /// Messages of a conversation. The first line is published as it is if it stays the only one.
    Messages {
        first: Arc<Publication>,
        message: Box<SaveMessage>,
        lines: Vec<u64>,
        grouping: Grouping,
    },
}

impl Batch {
    /// Adds a line. Returns whether it has a routing key; without one it is not added.
    pub(super) fn add(&mut self, line: Line, router: &Router, missing: &mut MissingFields) -> bool {
        let Line { number, body } = line;
        let Some(Routed { publication, action }) = router.route(body, missing) else {
            return false;
        };
        self.lines += 1;
        self.bytes += publication.body.len();
        match action {
            Some(Action::SaveMessage(message)) if router.groups => {
                self.add_message(number, publication, message);
            }
            action => {
                // What follows it is published after it.
                if let Some(action) = action {
                    self.open.remove(&action.common().key);
                }
                self.add_line(number, publication);
            }
        }
        true
    }

    fn add_line(&mut self, number: u64, publication: Publication) {
        let publication = Arc::new(publication);
        self.entries.push(Entry::Line(Outgoing { lines: vec![number], publication }));
    }

    fn add_message(&mut self, number: u64, publication: Publication, message: Box<SaveMessage>) {
        let key = &message.common.key;
        let open = self.open.get(key).and_then(|index| self.entries.get_mut(*index));
        if let Some(Entry::Messages { message: first, lines, grouping, .. }) = open
            && Grouping::joins(first, &message)
            && grouping.add(&publication.body, &message)
        {
            lines.push(number);
            return;
        }
        let mut grouping = Grouping::of(&message, MAX_BYTES);
        if grouping.add(&publication.body, &message) {
            self.open.insert(key.clone(), self.entries.len());
            let (first, lines) = (Arc::new(publication), vec![number]);
            self.entries.push(Entry::Messages { first, message, lines, grouping });
        } else {
            self.open.remove(key);
            self.add_line(number, publication);
        }
    }

    /// The publications.
    pub(super) fn into_publications(self) -> Vec<Outgoing> {
        let kind = ActionKind::SaveMessages.as_str();
        let outgoing = |entry| match entry {
            Entry::Line(outgoing) => outgoing,
            Entry::Messages { first, lines, grouping, .. } => {
                let publication = match grouping.messages() {
                    1 => first,
                    _ => Arc::new(Publication::action(kind, grouping.into_body())),
                };
                Outgoing { lines, publication }
            }
        };
        self.entries.into_iter().map(outgoing).collect()
    }
}

#[cfg(test)]
mod tests {
    use domain::time::Timestamp;
    use fixtures::body;
    use serde_json::{Value, json};

    use super::*;
    use crate::validator::Validator;

    /// The lines of each publication of these actions.
    fn grouped(actions: &[Value]) -> Vec<Vec<u64>> {
        let validator = Validator { now: Timestamp::EARLIEST, max_body_bytes: 1 << 20 };
        let router = Router { validator, routing_key: None, groups: true };
        let mut batch = Batch::default();
        for (number, action) in (1..).zip(actions) {
            let line = Line { number, body: action.to_string().into_bytes() };
            assert!(batch.add(line, &router, &mut MissingFields::default()));
        }
        batch.into_publications().into_iter().map(|it| it.lines).collect()
    }

    #[test]
    fn messages_of_a_conversation_are_together_and_what_follows_them_comes_after_them() {
        let message = |session: &str| body(session, "m", &json!({}));
        let closed = json!({
            "action_type": "conversation.session_closed", "tenant_id": "acme", "session_id": "a",
        });
        let wants_reply = body("a", "m", &json!({"callback_queue_name": "replies"}));
        let actions = [
            message("a"),
            message("b"),
            message("a"),
            closed,
            message("b"),
            message("a"),
            wants_reply,
            message("a"),
            message("b"),
        ];
        let expected: [&[u64]; 6] = [&[1, 3], &[2, 5, 9], &[4], &[6], &[7], &[8]];
        assert_eq!(grouped(&actions), expected);
    }

    #[test]
    fn sessions_of_a_conversation_and_large_messages_are_apart() {
        let of = |session: &str, content: &str| {
            body(session, "m", &json!({"conversation_id": "c", "content": content}))
        };
        let large = "x".repeat(MAX_BYTES);
        let actions = [of("a", "1"), of("b", "2"), of("b", "3"), of("b", &large), of("b", "4")];
        assert_eq!(grouped(&actions), [&[1_u64][..], &[2, 3], &[4], &[5]]);
    }
}
