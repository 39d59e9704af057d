//! The actions that a test published, and the check that each took effect once: each message is stored or a dead
//! letter, each session event and feedback is stored or a dead letter, and closes and ratings have the last word.
//!
//! Messages are found by their content, and session events by an unknown field, because not every agent sends an
//! id. So a message that is stored twice under two ids is found, and one that is stored and a dead letter, too.

use std::collections::{BTreeMap, BTreeSet};

use domain::ids::ConversationKey;
use domain::message::Message;
use serde_json::Value;

use crate::agent_action::{MARKER, SentIdentity};
use crate::reader::ALL;
use crate::{AgentAction, AsAction, Scenario, TestReader, key_of};

/// How many characters of its content identify a message.
const IDENTIFYING: usize = 64;

/// Actions whose publish was confirmed.
#[derive(Debug, Default)]
pub struct PublishedActions {
    conversations: BTreeMap<ConversationKey, PublishedConversation>,
    /// Session events and feedback, by name.
    events: BTreeMap<String, Published>,
    messages: usize,
    /// The ids of messages that were deleted.
    deletions: BTreeSet<(ConversationKey, String)>,
    /// The contents of the longest list of a conversation, in their order. Some say the same.
    lists: BTreeMap<ConversationKey, Vec<String>>,
}

/// What was published of one conversation.
#[derive(Debug, Default)]
struct PublishedConversation {
    /// Messages, by the beginning of their content.
    messages: BTreeMap<String, Published>,
    /// Time and value of the newest rating.
    satisfaction: Option<(String, String)>,
    /// Time and reason of the newest close.
    close: Option<(String, String)>,
}

/// A message, session event or feedback.
#[derive(Debug)]
struct Published {
    /// An RFC 3339 time in UTC with microseconds, which sorts as text.
    timestamp: Option<String>,
    id: Option<String>,
    identity: SentIdentity,
}

/// How the published actions and the stores differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discrepancies {
    /// Actions that were confirmed and are neither stored nor dead letters.
    pub lost: Vec<String>,
    /// Actions with an identity that are stored more than once, dead letters included.
    pub duplicated: Vec<String>,
    /// Stored actions that were never published, or not into that conversation, or under another id.
    pub never_published: Vec<String>,
    /// Actions that are dead letters: no fault by themselves.
    pub dead_letters: BTreeSet<String>,
    /// Messages without an identity that are stored more than once: they are promised at least once.
    pub repeated: Vec<String>,
    /// Messages that were deleted and are stored.
    pub undeleted: Vec<String>,
    /// Transcripts that differ from what was published, with their source and the first difference.
    pub misread: Vec<String>,
    /// Conversations with another rating than the newest one, or archived for another reason than that of the
    /// newest close.
    pub outdated: Vec<String>,
}

impl PublishedActions {
    /// Adds confirmed actions: messages made by [`fixtures::message`], session events and feedback, and lists of
    /// conversations that have nothing else.
    ///
    /// # Panics
    /// When the content of a message was added before, or a session event has no [`MARKER`].
    pub fn add_confirmed<'a, A: AsAction + 'a>(
        &mut self,
        actions: impl IntoIterator<Item = &'a A>,
    ) {
        for action in actions {
            let action = action.as_action();
            if let Some(list) = action.list() {
                let known = self.lists.entry(key_of(&action.body)).or_default();
                if known.len() < list.len() {
                    *known = list;
                }
                continue;
            }
            match action.messages() {
                Some(messages) => messages.for_each(|message| {
                    // Without an id of its own it has that of its action.
                    let identity = match message.identity() {
                        SentIdentity::None => SentIdentity::ActionId,
                        identity => identity,
                    };
                    self.add(&message, identity);
                }),
                None => self.add(&action, action.identity()),
            }
        }
    }

    fn add(&mut self, action: &AgentAction, identity: SentIdentity) {
        let body = &action.body;
        let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
        let published = Published {
            timestamp: text("timestamp"),
            id: action.sent_id().map(str::to_owned),
            identity,
        };
        let key = key_of(body);
        if body["action_type"] == "conversation.delete_message" {
            self.deletions.insert((key, text("message_id").expect("the message to delete")));
            return;
        }
        let conversation = self.conversations.entry(key.clone()).or_default();
        let before = if let Some(content) = text("content") {
            self.messages += 1;
            conversation.messages.insert(identifying(&content), published)
        } else {
            let time = published.timestamp.clone().expect("session events have a time");
            if let Some(satisfaction) = body.get("satisfaction") {
                newest(&mut conversation.satisfaction, &time, satisfaction.to_string());
            }
            if body["action_type"] == "conversation.session_closed" {
                newest(&mut conversation.close, &time, text("reason").unwrap_or_default());
            }
            let marker = text(MARKER).expect("a session event with a marker");
            self.events.insert(name(&key, &marker), published)
        };
        assert!(before.is_none(), "{body} was added before");
    }

    /// How many messages were confirmed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages + self.lists.values().map(Vec::len).sum::<usize>()
    }

    /// How many messages were confirmed and not deleted.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.len() - self.deleted().count()
    }

    /// The names of the messages that were deleted. A deletion deletes nothing of a message that Verbatim gave its id.
    fn deleted(&self) -> impl Iterator<Item = String> {
        self.deletions.iter().filter_map(|(key, id)| {
            let messages = &self.conversations.get(key)?.messages;
            let of_id = |it: &(&String, &Published)| it.1.id.as_ref() == Some(id);
            messages.iter().find(of_id).map(|(content, _)| name(key, content))
        })
    }

    /// Whether no message was confirmed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many session events and feedbacks were confirmed.
    #[must_use]
    pub fn events(&self) -> usize {
        self.events.len()
    }

    /// Waits until as many messages and dead letters are stored as were confirmed; then [audits](Self::audit).
    /// Dead letters are accepted, and repetitions of messages without an identity.
    ///
    /// # Panics
    /// When an action was lost, duplicated, never published, or is read in another order.
    pub async fn reconcile(&self, scenario: &Scenario, reader: &TestReader) {
        let mut repeated = 0;
        loop {
            let wanted = self.kept() + repeated;
            let enough = format!(
                "SELECT (SELECT count(*) FROM messages) + (SELECT count(*) FROM dead_letters) >= {wanted}"
            );
            scenario.until_sql(&enough, "true").await;
            let found = self.audit(scenario, reader).await;
            // A repetition was counted in place of a message that is still on its way.
            if !found.lost.is_empty() && found.repeated.len() > repeated {
                repeated = found.repeated.len();
                continue;
            }
            let Discrepancies { dead_letters, repeated, .. } = found.clone();
            assert_eq!(found, Discrepancies { dead_letters, repeated, ..Discrepancies::default() });
            return;
        }
    }

    /// Compares all actions, and every transcript: as a reader gets it (of an active conversation: from Redis),
    /// as PostgreSQL has it, and in the order of the published timestamps.
    ///
    /// # Panics
    /// When a store is unavailable.
    pub async fn audit(&self, scenario: &Scenario, reader: &TestReader) -> Discrepancies {
        let mut found = self.compare(scenario).await;
        let deleted: BTreeSet<String> = self.deleted().collect();
        for (key, conversation) in &self.conversations {
            let mut expected: Vec<(&String, &String)> = conversation
                .messages
                .iter()
                .filter(|(content, _)| {
                    let name = name(key, content);
                    !found.dead_letters.contains(&name) && !deleted.contains(&name)
                })
                .filter_map(|(content, published)| Some((published.timestamp.as_ref()?, content)))
                .collect();
            if expected.is_empty() {
                continue;
            }
            expected.sort_unstable();
            let expected: Vec<&str> =
                expected.iter().map(|(_, content)| content.as_str()).collect();
            assert!(
                conversation.messages.len() <= ALL,
                "{key} has more messages than one read returns: {}",
                conversation.messages.len()
            );
            let (read, stored) = reader.transcript_and_stored(key).await;
            let timed = |messages: &[Message]| -> Vec<String> {
                let contents = messages.iter().map(|message| identifying(message.content.text()));
                contents.filter(|it| expected.contains(&it.as_str())).collect()
            };
            let difference = first_difference(&timed(&stored), &expected);
            found.misread.extend(difference.map(|it| format!("{key} in PostgreSQL: {it}")));
            if read.messages != stored {
                let difference = first_difference(&timed(&read.messages), &expected);
                let difference = difference.unwrap_or_else(|| differing(&read.messages, &stored));
                found.misread.push(format!("{key} from {:?}: {difference}", read.source));
            }
        }
        for (key, list) in &self.lists {
            let (read, stored) = reader.transcript_and_stored(key).await;
            let expected: Vec<&str> = list.iter().map(String::as_str).collect();
            for (messages, source) in [(&stored, "PostgreSQL"), (&read.messages, "a reader")] {
                let contents = messages.iter().map(|message| message.content.text().to_owned());
                let difference = first_difference(&contents.collect::<Vec<_>>(), &expected);
                found
                    .misread
                    .extend(difference.map(|it| format!("the list {key} from {source}: {it}")));
            }
        }
        found
    }

    /// Compares what is stored, without reading transcripts.
    async fn compare(&self, scenario: &Scenario) -> Discrepancies {
        let messages = format!(
            "SELECT tenant_id, conversation_id, id, left(content, {IDENTIFYING}) FROM messages"
        );
        let events = format!(
            "SELECT tenant_id, conversation_id, id, metadata ->> '{MARKER}' FROM session_events
             WHERE metadata ->> '{MARKER}' IS NOT NULL"
        );
        // LATIN1 accepts any bytes; markers are ASCII.
        let dead_letters =
            "SELECT tenant_id, conversation_id, message_id, convert_from(body, 'LATIN1')
                            FROM dead_letters";
        let stored = table(scenario, &messages).await;
        let events = table(scenario, &events).await;
        let dead_letters: Vec<Row> =
            table(scenario, dead_letters).await.into_iter().flat_map(Row::of_dead_letter).collect();
        let mut found = Discrepancies {
            dead_letters: dead_letters.iter().map(Row::name).collect(),
            ..Discrepancies::default()
        };
        let deleted: BTreeSet<String> = self.deleted().collect();
        let of_lists: BTreeSet<(&str, &str)> =
            self.lists.keys().map(|key| (key.tenant.as_str(), key.conversation.as_str())).collect();
        let stored: Vec<Row> = stored
            .into_iter()
            .filter(|row| !of_lists.contains(&(row.tenant.as_str(), row.conversation.as_str())))
            .filter(|row| {
                let is_deleted = deleted.contains(&row.name());
                found.undeleted.extend(is_deleted.then(|| row.name()));
                !is_deleted
            })
            .collect();
        let confirmed = self.conversations.iter().flat_map(|(key, conversation)| {
            conversation.messages.iter().map(move |(content, it)| (name(key, content), it))
        });
        let confirmed: BTreeMap<String, &Published> =
            confirmed.chain(self.events.iter().map(|(name, it)| (name.clone(), it))).collect();
        let confirmed: BTreeMap<String, &Published> =
            confirmed.into_iter().filter(|(name, _)| !deleted.contains(name)).collect();
        let dead_letters = dead_letters.iter().filter(|row| !deleted.contains(&row.name()));
        found.add_differences(&confirmed, stored.iter().chain(&events).chain(dead_letters));
        found.outdated = self.outdated(scenario, &found.dead_letters).await;
        found
    }

    /// Conversations whose rating or close reason is not the newest.
    async fn outdated(&self, scenario: &Scenario, dead_letters: &BTreeSet<String>) -> Vec<String> {
        // A dead letter has no effect yet, so the newest event is unknown.
        if self.events.keys().any(|event| dead_letters.contains(event)) {
            return Vec::new();
        }
        let rows = "SELECT tenant_id, id, satisfaction::text,
                           CASE WHEN status = 'archived' THEN 'closed: ' || coalesce(close_reason, '') END
                    FROM conversations";
        let mut stored: BTreeMap<ConversationKey, (String, String)> = BTreeMap::new();
        for Row { tenant, conversation, id: satisfaction, text: close } in
            table(scenario, rows).await
        {
            let key = ConversationKey::parse(&tenant, &conversation).expect("a stored key");
            stored.insert(key, (satisfaction, close));
        }
        let mut outdated = Vec::new();
        for (key, conversation) in &self.conversations {
            let (satisfaction, close) = stored.get(key).cloned().unwrap_or_default();
            if let Some((_, wanted)) = &conversation.satisfaction
                && *wanted != satisfaction
            {
                outdated.push(format!("{key}: satisfaction {satisfaction:?} instead of {wanted}"));
            }
            if let Some((_, wanted)) = &conversation.close
                && close != format!("closed: {wanted}")
            {
                outdated.push(format!("{key}: {close:?} instead of closed: {wanted}"));
            }
        }
        outdated
    }
}

/// How messages that were read differ from those that are stored: their numbers, and the first that differ.
fn differing(read: &[Message], stored: &[Message]) -> String {
    let position = read.iter().zip(stored).position(|(read, stored)| read != stored);
    let position = position.unwrap_or(read.len().min(stored.len()));
    let at = |messages: &[Message]| messages.get(position).map(|it| format!("{it:?}"));
    format!(
        "{} messages, {} stored; message {position} is {:?}, stored {:?}",
        read.len(),
        stored.len(),
        at(read),
        at(stored)
    )
}

/// A stored message, session event or dead letter.
#[derive(Debug, Clone)]
struct Row {
    tenant: String,
    conversation: String,
    id: String,
    /// What identifies it; the body of a dead letter.
    text: String,
}

impl Row {
    /// With what identifies the dead letter's action in place of its body; of an action with several messages, each of
    /// them.
    fn of_dead_letter(self) -> Vec<Self> {
        let body: Value = serde_json::from_str(&self.text).unwrap_or_default();
        let row = |body: &Value, id: &str| {
            let text = |name: &str| body.get(name).and_then(Value::as_str);
            let text = text("content").map(identifying).or(text(MARKER).map(str::to_owned));
            Self { text: text.unwrap_or_default(), id: id.to_owned(), ..self.clone() }
        };
        let action = AgentAction { body, message_id: None };
        match action.messages() {
            Some(messages) => {
                messages.map(|it| row(&it.body, it.sent_id().unwrap_or_default())).collect()
            }
            None => vec![row(&action.body, &self.id)],
        }
    }

    fn name(&self) -> String {
        format!("{}/{}/{}", self.tenant, self.conversation, self.text)
    }
}

impl Discrepancies {
    fn add_differences<'a>(
        &mut self,
        confirmed: &BTreeMap<String, &Published>,
        found: impl Iterator<Item = &'a Row>,
    ) {
        let mut seen = BTreeSet::new();
        for row in found {
            let name = row.name();
            let Some(published) = confirmed.get(&name) else {
                self.never_published.push(name);
                continue;
            };
            if published.id.as_ref().is_some_and(|id| *id != row.id) {
                self.never_published.push(format!("{name} under the id {:?}", row.id));
            }
            if !seen.insert(name.clone()) {
                match published.identity {
                    SentIdentity::None => self.repeated.push(name),
                    _ => self.duplicated.push(name),
                }
            }
        }
        self.lost.extend(confirmed.keys().filter(|name| !seen.contains(*name)).cloned());
    }
}

fn newest(known: &mut Option<(String, String)>, time: &str, value: String) {
    if known.as_ref().is_none_or(|(newest, _)| newest.as_str() < time) {
        *known = Some((time.to_owned(), value));
    }
}

/// The part of a content that identifies its message.
fn identifying(content: &str) -> String {
    content.chars().take(IDENTIFYING).collect()
}

/// The name of an action in a report. These tests use ids without slashes.
fn name(key: &ConversationKey, text: &str) -> String {
    format!("{}/{}/{text}", key.tenant, key.conversation)
}

/// The first difference between two transcripts, as a sentence.
fn first_difference(found: &[String], expected: &[&str]) -> Option<String> {
    if found == expected {
        return None;
    }
    let same = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let (found_there, expected_there) = (found.get(same), expected.get(same));
    let (found, expected) = (found.len(), expected.len());
    Some(format!(
        "{found} messages instead of {expected}; number {} is {found_there:?} instead of \
         {expected_there:?}",
        same + 1
    ))
}

async fn table(scenario: &Scenario, query: &str) -> Vec<Row> {
    let columns = ["a", "b", "c", "d"].map(|column| format!("coalesce({column}, '')")).join(", ");
    let all = format!(
        "SELECT coalesce(json_agg(json_build_array({columns})), '[]') FROM ({query}) AS t (a, b, c, d)"
    );
    let rows: Vec<[String; 4]> =
        serde_json::from_str(&scenario.sql(&all).await).expect("rows of four strings");
    let row =
        |[tenant, conversation, id, text]: [String; 4]| Row { tenant, conversation, id, text };
    rows.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_the_first_place_where_transcripts_differ() {
        let found =
            |contents: &[&str]| contents.iter().map(|&it| it.to_owned()).collect::<Vec<_>>();
        assert_eq!(first_difference(&found(&["a", "b"]), &["a", "b"]), None);
        let difference = first_difference(&found(&["a", "c"]), &["a", "b", "c"]).unwrap();
        let expected = r#"2 messages instead of 3; number 2 is Some("c") instead of Some("b")"#;
        assert_eq!(difference, expected);
    }

    #[test]
    fn lost_duplicated_repeated_and_never_published_actions_are_found() {
        let published = |identity| Published { timestamp: None, id: None, identity };
        let (sent, none) = (published(SentIdentity::MessageId), published(SentIdentity::None));
        let with_id = Published { id: Some("id".to_owned()), ..published(SentIdentity::ActionId) };
        let confirmed: BTreeMap<String, &Published> =
            [("1", &sent), ("2", &sent), ("3", &none), ("4", &with_id), ("5", &sent)]
                .map(|(text, published)| (format!("t/c/{text}"), published))
                .into();
        let row = |conversation: &str, text: &str| Row {
            tenant: "t".to_owned(),
            conversation: conversation.to_owned(),
            id: "id".to_owned(),
            text: text.to_owned(),
        };
        let differences = |rows: &[Row]| {
            let mut found = Discrepancies::default();
            found.add_differences(&confirmed, rows.iter());
            found
        };
        let all = ["3", "1", "5", "2", "4"].map(|text| row("c", text));
        assert_eq!(differences(&all), Discrepancies::default());
        let other_id = Row { id: "other".to_owned(), ..row("c", "4") };
        let rows = [
            row("other", "1"),
            row("c", "2"),
            row("c", "2"),
            row("c", "3"),
            row("c", "3"),
            other_id,
        ];
        let names =
            |texts: &[&str]| texts.iter().map(|text| format!("t/{text}")).collect::<Vec<_>>();
        let expected = Discrepancies {
            lost: names(&["c/1", "c/5"]),
            duplicated: names(&["c/2"]),
            repeated: names(&["c/3"]),
            never_published: names(&["other/1", "c/4 under the id \"other\""]),
            ..Discrepancies::default()
        };
        assert_eq!(differences(&rows), expected);
    }
}
