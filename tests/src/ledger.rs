//! Books of what was published: every confirmed message is archived or a dead letter, once.

use std::collections::{BTreeMap, BTreeSet};

use domain::ids::ConversationKey;
use domain::message::Message;
use serde_json::Value;

use crate::reader::ALL;
use crate::{Scenario, TestReader, key};

/// Messages whose publish was confirmed, with their place in their conversation.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Ids by time: an RFC 3339 time in UTC with microseconds sorts as text.
    conversations: BTreeMap<ConversationKey, BTreeSet<(String, String)>>,
    messages: usize,
}

/// How the books and the stores differ; all empty when nothing was lost or doubled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Messages that were confirmed and are neither stored nor dead letters.
    pub lost: Vec<String>,
    /// Messages that are there more than once, dead letters included.
    pub doubled: Vec<String>,
    /// Messages that nobody published, or not into that conversation.
    pub unknown_keys: Vec<String>,
    /// Messages that are dead letters.
    pub dead_letters: BTreeSet<String>,
    /// Conversations that read otherwise than they were published: how, and from where.
    pub misread: Vec<String>,
}

impl Ledger {
    /// Enters messages that were confirmed, by [`crate::message`]'s fields.
    ///
    /// # Panics
    /// When a message has no id, or an id comes twice: ids are unique over a whole ledger.
    pub fn confirm<'a>(&mut self, messages: impl IntoIterator<Item = &'a Value>) {
        for message in messages {
            let text = |name: &str| message[name].as_str().expect("text").to_owned();
            let place = (text("timestamp"), text("message_id"));
            let fresh = self.conversations.entry(key(message)).or_default().insert(place);
            assert!(fresh, "{message} was confirmed before");
            self.messages += 1;
        }
    }

    /// How many messages were confirmed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Waits until as many messages and dead letters are stored as were confirmed; then [audits](Self::audit).
    /// Dead letters are no fault.
    ///
    /// # Panics
    /// When anything was lost, doubled, invented or put in another order.
    pub async fn reconcile(&self, scenario: &Scenario, reader: &TestReader) {
        let stored = "SELECT (SELECT count(*) FROM messages) + (SELECT count(*) FROM dead_letters)";
        scenario.until_sql(stored, &self.messages.to_string()).await;
        let findings = self.audit(scenario, reader).await;
        let dead_letters = findings.dead_letters.clone();
        assert_eq!(findings, Findings { dead_letters, ..Findings::default() });
    }

    /// Compares all ids, and every transcript: what a reader gets (of an active conversation: from
    /// Redis), what PostgreSQL says by itself, and the order of the timestamps that were published.
    ///
    /// # Panics
    /// When a store does not answer.
    pub async fn audit(&self, scenario: &Scenario, reader: &TestReader) -> Findings {
        let mut findings = self.compare(scenario).await;
        for (key, places) in &self.conversations {
            let name = |id: &str| name(key.tenant.as_str(), key.conversation.as_str(), id);
            let expected = places.iter().map(|(_, id)| id.as_str());
            let expected: Vec<&str> =
                expected.filter(|id| !findings.dead_letters.contains(&name(id))).collect();
            if expected.is_empty() {
                continue;
            }
            assert!(
                expected.len() <= ALL,
                "{key} is too long to be read whole: {}",
                expected.len()
            );
            let (read, archived) = reader.two_ways(key).await;
            let difference = differs(&ids(&archived), &expected);
            findings.misread.extend(difference.map(|it| format!("{key} in PostgreSQL: {it}")));
            if read.messages != archived {
                let difference = differs(&ids(&read.messages), &expected);
                let difference = difference.unwrap_or_else(|| "other words".to_owned());
                findings.misread.push(format!("{key} from {:?}: {difference}", read.source));
            }
        }
        findings
    }

    /// Compares ids.
    async fn compare(&self, scenario: &Scenario) -> Findings {
        let rows = "SELECT tenant_id, conversation_id, id FROM messages";
        let archived = table(scenario, rows).await;
        let rows = "SELECT tenant_id, conversation_id, message_id FROM dead_letters";
        let dead_letters = table(scenario, rows).await;
        let confirmed = self.conversations.iter().flat_map(|(key, places)| {
            let name = |id| name(key.tenant.as_str(), key.conversation.as_str(), id);
            places.iter().map(move |(_, id)| name(id))
        });
        let named = |[tenant, conversation, id]: &[String; 3]| name(tenant, conversation, id);
        let found = archived.iter().chain(&dead_letters).map(named);
        let dead_letters = dead_letters.iter().map(named).collect();
        Findings { dead_letters, ..differences(&confirmed.collect(), found) }
    }
}

/// A message wherever it is. Tests of the ledger use ids without slashes.
fn name(tenant: &str, conversation: &str, id: &str) -> String {
    format!("{tenant}/{conversation}/{id}")
}

fn differences(confirmed: &BTreeSet<String>, found: impl Iterator<Item = String>) -> Findings {
    let (mut lost, mut seen, mut findings) =
        (confirmed.clone(), BTreeSet::new(), Findings::default());
    for id in found {
        lost.remove(&id);
        if !confirmed.contains(&id) {
            findings.unknown_keys.push(id);
        } else if !seen.insert(id.clone()) {
            findings.doubled.push(id);
        }
    }
    findings.lost.extend(lost);
    findings
}

/// Where two transcripts part, in words.
fn differs(found: &[&str], expected: &[&str]) -> Option<String> {
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
    serde_json::from_str(&scenario.sql(&all).await).expect("three texts a row")
}

fn ids(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.id.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transcripts_part_where_they_first_differ() {
        assert_eq!(differs(&["a", "b"], &["a", "b"]), None);
        let difference = differs(&["a", "c"], &["a", "b", "c"]).unwrap();
        let expected = r#"2 messages instead of 3; number 2 is Some("c") instead of Some("b")"#;
        assert_eq!(difference, expected);
    }

    #[test]
    fn what_is_lost_doubled_or_invented_is_found() {
        let names = |ids: &[&str]| ids.iter().map(|id| name("t", "c", id)).collect::<Vec<_>>();
        let confirmed: BTreeSet<String> = names(&["1", "2", "3"]).into_iter().collect();
        let found = |ids| differences(&confirmed, names(ids).into_iter());
        assert_eq!(found(&["3", "1", "2"]), Findings::default());
        let expected = Findings {
            lost: names(&["3"]),
            doubled: names(&["2"]),
            unknown_keys: vec![name("t", "other", "1")],
            ..Findings::default()
        };
        let moved = [name("t", "other", "1")].into_iter().chain(names(&["1", "2", "2"]));
        assert_eq!(differences(&confirmed, moved), expected);
    }
}
