//! The messages that a test published, and the check that each is stored or a dead letter, once.

use std::collections::{BTreeMap, BTreeSet};

use domain::ids::ConversationKey;
use domain::message::Message;
use serde_json::Value;

use crate::reader::ALL;
use crate::{Scenario, TestReader, key_of};

/// Messages whose publish was confirmed, with their order in each conversation.
#[derive(Debug, Default)]
pub struct PublishedMessages {
    /// Ids by time: an RFC 3339 time in UTC with microseconds sorts as text.
    conversations: BTreeMap<ConversationKey, BTreeSet<(String, String)>>,
    messages: usize,
}

/// How the published messages and the stores differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discrepancies {
    /// Messages that were confirmed and are neither stored nor dead letters.
    pub lost: Vec<String>,
    /// Messages that are stored more than once, dead letters included.
    pub duplicated: Vec<String>,
    /// Stored messages that were never published, or not into that conversation.
    pub never_published: Vec<String>,
    /// Messages that are dead letters: no fault by themselves.
    pub dead_letters: BTreeSet<String>,
    /// Transcripts that differ from what was published, with their source and the first difference.
    pub misread: Vec<String>,
}

impl PublishedMessages {
    /// Adds confirmed messages, made by [`fixtures::message`].
    ///
    /// # Panics
    /// When a message has no id, or its place in its conversation was added before.
    pub fn add_confirmed<'a>(&mut self, messages: impl IntoIterator<Item = &'a Value>) {
        for message in messages {
            let text = |name: &str| message[name].as_str().expect("text").to_owned();
            let place = (text("timestamp"), text("message_id"));
            let is_new = self.conversations.entry(key_of(message)).or_default().insert(place);
            assert!(is_new, "{message} was added before");
            self.messages += 1;
        }
    }

    /// How many messages were confirmed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Whether no message was confirmed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Waits until as many messages and dead letters are stored as were confirmed; then [audits](Self::audit).
    /// Dead letters are accepted.
    ///
    /// # Panics
    /// When a message was lost, duplicated, never published, or is read in another order.
    pub async fn reconcile(&self, scenario: &Scenario, reader: &TestReader) {
        let stored = "SELECT (SELECT count(*) FROM messages) + (SELECT count(*) FROM dead_letters)";
        scenario.until_sql(stored, &self.messages.to_string()).await;
        let discrepancies = self.audit(scenario, reader).await;
        let dead_letters = discrepancies.dead_letters.clone();
        assert_eq!(discrepancies, Discrepancies { dead_letters, ..Discrepancies::default() });
    }

    /// Compares all ids, and every transcript: as a reader gets it (of an active conversation: from
    /// Redis), as PostgreSQL has it, and in the order of the published timestamps.
    ///
    /// # Panics
    /// When a store is unavailable.
    pub async fn audit(&self, scenario: &Scenario, reader: &TestReader) -> Discrepancies {
        let mut discrepancies = self.compare(scenario).await;
        for (key, places) in &self.conversations {
            let name = |id: &str| name(key.tenant.as_str(), key.conversation.as_str(), id);
            let expected = places.iter().map(|(_, id)| id.as_str());
            let expected: Vec<&str> =
                expected.filter(|id| !discrepancies.dead_letters.contains(&name(id))).collect();
            if expected.is_empty() {
                continue;
            }
            assert!(
                expected.len() <= ALL,
                "{key} has more messages than one read returns: {}",
                expected.len()
            );
            let (read, stored) = reader.transcript_and_stored(key).await;
            let difference = first_difference(&ids(&stored), &expected);
            discrepancies.misread.extend(difference.map(|it| format!("{key} in PostgreSQL: {it}")));
            if read.messages != stored {
                let difference = first_difference(&ids(&read.messages), &expected);
                let difference = difference.unwrap_or_else(|| "different content".to_owned());
                discrepancies.misread.push(format!("{key} from {:?}: {difference}", read.source));
            }
        }
        discrepancies
    }

    /// Compares ids.
    async fn compare(&self, scenario: &Scenario) -> Discrepancies {
        let rows = "SELECT tenant_id, conversation_id, id FROM messages";
        let stored = table(scenario, rows).await;
        let rows = "SELECT tenant_id, conversation_id, message_id FROM dead_letters";
        let dead_letters = table(scenario, rows).await;
        let confirmed = self.conversations.iter().flat_map(|(key, places)| {
            let name = |id| name(key.tenant.as_str(), key.conversation.as_str(), id);
            places.iter().map(move |(_, id)| name(id))
        });
        let named = |[tenant, conversation, id]: &[String; 3]| name(tenant, conversation, id);
        let found = stored.iter().chain(&dead_letters).map(named);
        let dead_letters = dead_letters.iter().map(named).collect();
        Discrepancies { dead_letters, ..differences(&confirmed.collect(), found) }
    }
}

/// The name of a message in a report. These tests use ids without slashes.
fn name(tenant: &str, conversation: &str, id: &str) -> String {
    format!("{tenant}/{conversation}/{id}")
}

fn differences(confirmed: &BTreeSet<String>, found: impl Iterator<Item = String>) -> Discrepancies {
    let (mut lost, mut seen, mut discrepancies) =
        (confirmed.clone(), BTreeSet::new(), Discrepancies::default());
    for id in found {
        lost.remove(&id);
        if !confirmed.contains(&id) {
            discrepancies.never_published.push(id);
        } else if !seen.insert(id.clone()) {
            discrepancies.duplicated.push(id);
        }
    }
    discrepancies.lost.extend(lost);
    discrepancies
}

/// The first difference between two transcripts, as a sentence.
fn first_difference(found: &[&str], expected: &[&str]) -> Option<String> {
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

async fn table(scenario: &Scenario, query: &str) -> Vec<[String; 3]> {
    let (a, b, c) = ("coalesce(a, '')", "coalesce(b, '')", "coalesce(c, '')");
    let arrays = format!("json_agg(json_build_array({a}, {b}, {c}))");
    let all = format!("SELECT coalesce({arrays}, '[]') FROM ({query}) AS t (a, b, c)");
    serde_json::from_str(&scenario.sql(&all).await).expect("rows of three strings")
}

fn ids(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.id.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_the_first_place_where_transcripts_differ() {
        assert_eq!(first_difference(&["a", "b"], &["a", "b"]), None);
        let difference = first_difference(&["a", "c"], &["a", "b", "c"]).unwrap();
        let expected = r#"2 messages instead of 3; number 2 is Some("c") instead of Some("b")"#;
        assert_eq!(difference, expected);
    }

    #[test]
    fn lost_duplicated_and_never_published_messages_are_found() {
        let names = |ids: &[&str]| ids.iter().map(|id| name("t", "c", id)).collect::<Vec<_>>();
        let confirmed: BTreeSet<String> = names(&["1", "2", "3"]).into_iter().collect();
        let found = |ids| differences(&confirmed, names(ids).into_iter());
        assert_eq!(found(&["3", "1", "2"]), Discrepancies::default());
        let expected = Discrepancies {
            lost: names(&["3"]),
            duplicated: names(&["2"]),
            never_published: vec![name("t", "other", "1")],
            ..Discrepancies::default()
        };
        let moved = [name("t", "other", "1")].into_iter().chain(names(&["1", "2", "2"]));
        assert_eq!(differences(&confirmed, moved), expected);
    }
}
