//! Books of what was published: every confirmed message is archived or a dead letter, once.

use std::collections::{BTreeMap, BTreeSet};

use domain::ids::ConversationKey;
use domain::message::Message;
use serde_json::Value;

use crate::{Eyes, Scenario, key};

/// Messages whose publish was confirmed, with their place in their conversation.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Ids by time: an RFC 3339 time in UTC with microseconds sorts as text.
    conversations: BTreeMap<ConversationKey, BTreeSet<(String, String)>>,
    messages: usize,
}

/// How the books and the stores differ; all empty when nothing was lost or doubled.
#[derive(Debug, Default, PartialEq, Eq)]
struct Differences {
    lost: Vec<String>,
    doubled: Vec<String>,
    strangers: Vec<String>,
}

impl Ledger {
    /// Enters messages that were confirmed, by [`crate::message`]'s fields.
    ///
    /// # Panics
    /// When a message has no id, or an id comes twice: ids are unique over a whole ledger.
    pub fn confirm(&mut self, messages: &[Value]) {
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

    /// Waits until as many messages and letters are stored as were confirmed; then compares all
    /// ids, and every transcript with Redis and without.
    ///
    /// # Panics
    /// When anything was lost, doubled, invented or put in another order.
    pub async fn reconcile(&self, scenario: &Scenario, eyes: &Eyes) {
        let stored = "SELECT (SELECT count(*) FROM messages) + (SELECT count(*) FROM dead_letters)";
        scenario.until_sql(stored, &self.messages.to_string()).await;
        let letters = self.compare(scenario).await;
        for (key, expected) in &self.conversations {
            let expected: Vec<&str> = expected
                .iter()
                .map(|(_, id)| id.as_str())
                .filter(|id| !letters.contains(*id))
                .collect();
            if expected.is_empty() {
                continue;
            }
            assert_eq!(ids(&eyes.both(key).await), expected, "{key}");
        }
    }

    /// Compares ids, and returns those of the dead letters.
    async fn compare(&self, scenario: &Scenario) -> BTreeSet<String> {
        let rows = "SELECT tenant_id, conversation_id, id FROM messages";
        let archived = table(scenario, rows).await;
        let rows = "SELECT tenant_id, conversation_id, message_id FROM dead_letters";
        let letters = table(scenario, rows).await;
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        for [tenant, conversation, id] in archived.iter().chain(&letters) {
            *found.entry(format!("{tenant}/{conversation}/{id}")).or_default() += 1;
        }
        let confirmed: BTreeSet<String> = self
            .conversations
            .iter()
            .flat_map(|(key, places)| {
                let name = |id| format!("{}/{}/{id}", key.tenant, key.conversation);
                places.iter().map(move |(_, id)| name(id))
            })
            .collect();
        let differences = Differences {
            lost: confirmed.iter().filter(|id| !found.contains_key(*id)).cloned().collect(),
            doubled: found.iter().filter(|(_, n)| **n > 1).map(|(id, _)| id.clone()).collect(),
            strangers: found.keys().filter(|id| !confirmed.contains(*id)).cloned().collect(),
        };
        assert_eq!(differences, Differences::default());
        letters.into_iter().map(|[_, _, id]| id).collect()
    }
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
