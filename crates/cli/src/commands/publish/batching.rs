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
    /// Messages of a conversation, and the publications that they would be by themselves.
    Messages { message: Box<SaveMessage>, alone: Vec<Outgoing>, grouping: Grouping },
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
                let max_bytes = router.validator.max_body_bytes;
                self.add_message(number, publication, message, max_bytes);
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

    fn add_message(
        &mut self,
        number: u64,
        publication: Publication,
        message: Box<SaveMessage>,
        max_bytes: usize,
    ) {
        let key = &message.common.key;
        let open = self.open.get(key).and_then(|index| self.entries.get_mut(*index));
        let line =
            |publication| Outgoing { lines: vec![number], publication: Arc::new(publication) };
        if let Some(Entry::Messages { message: first, alone, grouping }) = open
            && Grouping::joins(first, &message)
            && grouping.add(&publication.body, &message)
        {
            alone.push(line(publication));
            return;
        }
        let mut grouping = Grouping::of(&message, max_bytes.min(MAX_BYTES));
        if grouping.add(&publication.body, &message) {
            self.open.insert(key.clone(), self.entries.len());
            let alone = vec![line(publication)];
            self.entries.push(Entry::Messages { message, alone, grouping });
        } else {
            self.open.remove(key);
            self.add_line(number, publication);
        }
    }

    /// The publications. Messages that the workers would refuse together are published by themselves: together they are
    /// nested more deeply.
    pub(super) fn into_publications(self, router: &Router) -> Vec<Outgoing> {
        let mut outgoing = Vec::with_capacity(self.entries.len());
        for entry in self.entries {
            match entry {
                Entry::Line(line) => outgoing.push(line),
                Entry::Messages { alone, .. } if alone.len() == 1 => outgoing.extend(alone),
                Entry::Messages { alone, grouping, .. } => {
                    let body = grouping.into_body();
                    let decoded = router.validator.decode(&body);
                    if decoded.is_ok_and(|action| action.refused_elements().next().is_none()) {
                        let lines = alone.iter().flat_map(|it| it.lines.clone()).collect();
                        let kind = ActionKind::SaveMessages.as_str();
                        let publication = Arc::new(router.validator.publication(kind, body));
                        outgoing.push(Outgoing { lines, publication });
                    } else {
                        outgoing.extend(alone);
                    }
                }
            }
        }
        outgoing
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
        let validator =
            Validator { now: Timestamp::EARLIEST, max_body_bytes: 1 << 20, sender: None };
        let router = Router { validator, routing_key: None, groups: true };
        let mut batch = Batch::default();
        for (number, action) in (1..).zip(actions) {
            let line = Line { number, body: action.to_string().into_bytes() };
            assert!(batch.add(line, &router, &mut MissingFields::default()));
        }
        batch.into_publications(&router).into_iter().map(|it| it.lines).collect()
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

    #[test]
    fn messages_that_together_are_refused_are_published_by_themselves() {
        // As deep as a message may be, and deeper inside of an action.
        let nested = format!("{}1{}", "[".repeat(126), "]".repeat(126));
        let deep = json!({"extra": serde_json::from_str::<Value>(&nested).unwrap()});
        assert_eq!(grouped(&[body("a", "1", &deep), body("a", "2", &deep)]), [[1], [2]]);
        let with = |extra: Value| body("a", "m", &extra);
        let timeless = with(json!({"timestamp": null}));
        let timed = with(json!({"timestamp": "2020-01-01T00:00:00Z"}));
        let actions = [timed.clone(), timeless.clone(), timeless, timed];
        assert_eq!(grouped(&actions), [&[1_u64][..], &[2, 3], &[4]]);
    }
}
