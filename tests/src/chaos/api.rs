//! The clients of the conversation-api in a chaos run: one publishes, others read.
//!
//! A client repeats a request that was not answered, or was answered with 429 or 503, at another replica. One that
//! publishes keeps its `Idempotency-Key`, so whatever was answered is stored once.
//!
//! Invariant: every other answer is a correct one. A list has every conversation that was there before, a transcript
//! every message that was read before or answered as durable, and neither has one of another tenant.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use domain::ids::ConversationKey;
use serde_json::{Map, Value};
use testkit::http::{self, Response};
use testkit::wait::eventually;
use tokio::time::{sleep, timeout};

use super::sessions::{is_deleted, tenant_of};
use crate::{AgentAction, LIMIT, Scenario, key_of};

/// Between two requests that no replica answered.
const PAUSE: Duration = Duration::from_millis(50);
/// One request in so many that publish waits until PostgreSQL has the actions.
const DURABLE: usize = 3;
/// Actions of a batch that are published by themselves; the others are an array.
const SINGLE: usize = 2;
/// Actions of an array, at most.
const LARGEST_ARRAY: usize = 100;
/// Of one request in so many that publish the client breaks the connection, this time after it connected, and repeats it.
const BROKEN: usize = 4;
const BREAKS: Duration = Duration::from_millis(20);
/// Messages of a page.
const PAGE: usize = 40;

const PUBLISH: &str = "publish_actions";
const READ: &str = "read_conversation";
const LIST: &str = "list_conversations";

/// What clients saw.
#[derive(Debug, Clone, Default)]
pub(super) struct ApiRecord {
    /// Answers that are neither correct nor an error that a client may get.
    pub(super) wrong: Vec<String>,
    /// Requests that published, and how many of them were sent again.
    pub(super) published: usize,
    pub(super) repeated: usize,
    /// Pages of conversations that were answered. The audit log has an entry of each.
    pub(super) pages: usize,
    /// Requests without an answer, and those that were answered with 429 or 503.
    pub(super) unanswered: usize,
    pub(super) refused: usize,
    /// The conversations that exist, each with ids of messages that it has.
    known: BTreeMap<ConversationKey, BTreeSet<String>>,
}

/// In which order a conversation is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    Ascending,
    Descending,
}

/// A client with a key of one tenant.
#[derive(Clone)]
pub(super) struct ApiClient {
    addresses: Rc<[SocketAddr]>,
    authorization: String,
    tenant: &'static str,
    /// The statuses that the OpenAPI document has of each operation.
    documented: Rc<BTreeMap<String, BTreeSet<u16>>>,
    record: Rc<RefCell<ApiRecord>>,
    /// Counts the requests that publish.
    number: usize,
}

impl ApiClient {
    /// A client of these replicas with a new key of a tenant.
    ///
    /// # Panics
    /// When no key can be made, or a replica serves no OpenAPI document.
    pub(super) async fn new(
        scenario: &Scenario,
        addresses: &[SocketAddr],
        tenant: &'static str,
        record: &Rc<RefCell<ApiRecord>>,
    ) -> Self {
        let create = ["keys", "create", "--tenant", tenant, "--name", "chaos", "--json"];
        let created = scenario.verbatim(&[&create[..], &["--scope", "read,write"]].concat()).await;
        let created: Value = serde_json::from_slice(&created.stdout).expect("a new key");
        Self {
            addresses: addresses.into(),
            authorization: format!("Bearer {}", created["key"].as_str().expect("a key")),
            tenant,
            documented: Rc::new(documented(addresses[0]).await),
            record: Rc::clone(record),
            number: 0,
        }
    }

    /// Publishes actions repeatedly until each is answered with 200 or 202. Returns them with the ids that the answers
    /// have.
    ///
    /// # Panics
    /// When one is not answered within [`LIMIT`].
    pub(super) async fn publish(&mut self, actions: Vec<AgentAction>) -> Vec<AgentAction> {
        let mut actions = actions.into_iter();
        let mut published = Vec::new();
        for action in actions.by_ref().take(SINGLE) {
            published.extend(self.publish_together(vec![action]).await);
        }
        let others: Vec<AgentAction> = actions.collect();
        for others in others.chunks(LARGEST_ARRAY) {
            let is_odd = !self.number.is_multiple_of(2);
            let others =
                if is_odd { AgentAction::together(others.to_vec()) } else { others.to_vec() };
            published.extend(self.publish_together(others).await);
        }
        published
    }

    /// Publishes actions in one request, with one `Idempotency-Key`.
    async fn publish_together(&mut self, actions: Vec<AgentAction>) -> Vec<AgentAction> {
        self.number += 1;
        let key = format!("{}-{}", self.tenant, self.number);
        // A message whose deletion overtakes it is refused as `erased`, and 422 would be a correct answer.
        let is_durable =
            self.number.is_multiple_of(DURABLE) && !actions.iter().any(has_deleted_message);
        let path = if is_durable { "/api/actions?wait=durable" } else { "/api/actions" };
        let mut bodies: Vec<Value> = actions.into_iter().map(|action| action.body).collect();
        for body in &mut bodies {
            let fields = body.as_object_mut().expect("an object");
            fields.remove("action_id");
            fields.remove("tenant_id");
        }
        let body = match &bodies[..] {
            [one] => one.to_string(),
            all => Value::from(all).to_string(),
        };
        let (mut tries, headers) = (0, [("idempotency-key", key.as_str())]);
        let first = self.number;
        if first.is_multiple_of(BROKEN) {
            let broken = self.request(PUBLISH, first, "POST", path, &headers, &body);
            timeout(BREAKS, broken).await.ok();
            tries += 1;
        }
        let answer = eventually(format!("an answer to {key}"), LIMIT, async || {
            let replica = first + tries;
            tries += 1;
            let answer = self.request(PUBLISH, replica, "POST", path, &headers, &body).await;
            let wrong = || self.record.borrow().wrong.last().cloned().unwrap_or_default();
            answer.ok_or_else(|| format!("{tries} tries; the last wrong answer: {}", wrong()))
        })
        .await;
        let mut record = self.record.borrow_mut();
        record.published += 1;
        record.repeated += tries - 1;
        let answers = answer["actions"].as_array().map(Vec::as_slice).unwrap_or_default();
        if answers.len() != bodies.len() {
            record.wrong.push(format!("{path} {key}: {} actions, {answer}", bodies.len()));
            return Vec::new();
        }
        let published = bodies.into_iter().zip(answers).map(|(mut body, answer)| {
            body["tenant_id"] = self.tenant.into();
            body["action_id"] = answer["id"].clone();
            if answer["status"] == "durable" && body["action_type"] == "conversation.save_message" {
                record.know(key_of(&body), &answer["id"], &body["content"]);
            }
            AgentAction { body, message_id: None }
        });
        published.collect()
    }

    /// Whether a conversation is of its tenant.
    pub(super) fn owns(&self, key: &ConversationKey) -> bool {
        key.tenant.as_str() == self.tenant
    }

    /// Reads all pages of a conversation, which must not be found if it is of another tenant.
    pub(super) async fn transcript(&self, replica: usize, key: &ConversationKey, order: Order) {
        let is_foreign = !self.owns(key);
        let known = self.record.borrow().known.get(key).cloned();
        let order_by = match order {
            Order::Ascending => "asc",
            Order::Descending => "desc",
        };
        let path =
            format!("/api/conversations/{}/full?limit={PAGE}&order={order_by}", key.conversation);
        let mut messages: Vec<Value> = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("{path}{cursor}");
            let Some(page) = self.request(READ, replica, "GET", &path, &[], "").await else {
                return;
            };
            let is_missing = page["status"] == 404;
            if is_missing && (is_foreign || known.is_none()) {
                return;
            }
            if is_missing || is_foreign || page["tenant_id"] != self.tenant {
                return self.wrong(format!("{path} with a key of {}: {page}", self.tenant));
            }
            self.record.borrow_mut().pages += 1;
            messages.extend(page["messages"].as_array().cloned().unwrap_or_default());
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        let place =
            |message: &Value| [&message["created_at"], &message["id"]].map(Value::to_string);
        let is_sorted = messages.is_sorted_by(|a, b| match order {
            Order::Ascending => place(a) < place(b),
            Order::Descending => place(a) > place(b),
        });
        let ids: BTreeSet<&str> = messages.iter().filter_map(|it| it["id"].as_str()).collect();
        let missing = known.iter().flatten().find(|id| !ids.contains(id.as_str()));
        let foreign = messages.iter().find(|message| !self.is_own(&message["content"]));
        if !is_sorted || missing.is_some() || foreign.is_some() {
            let found: Vec<_> = messages.iter().map(place).collect();
            self.wrong(format!(
                "{path} of {}: sorted {is_sorted}, missing {missing:?}, foreign {foreign:?}: {found:?}",
                self.tenant
            ));
        }
        for message in &messages {
            self.record.borrow_mut().know(key.clone(), &message["id"], &message["content"]);
        }
    }

    /// Reads all pages of the list of conversations.
    pub(super) async fn list(&self, replica: usize) {
        let known: Vec<ConversationKey> = self.record.borrow().known.keys().cloned().collect();
        let known = known.into_iter().filter(|key| self.owns(key));
        let path = format!("/api/conversations/list/{}?limit=200", self.tenant);
        let (mut found, mut cursor) = (BTreeSet::new(), String::new());
        loop {
            let path = format!("{path}{cursor}");
            let Some(page) = self.request(LIST, replica, "GET", &path, &[], "").await else {
                return;
            };
            for conversation in page["conversations"].as_array().into_iter().flatten() {
                if !self.is_own(&conversation["session_id"]) {
                    self.wrong(format!("{path}: {conversation}"));
                }
                found.insert(conversation["id"].as_str().unwrap_or_default().to_owned());
            }
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        let missing: Vec<_> =
            known.filter(|key| !found.contains(key.conversation.as_str())).collect();
        if let Some(first) = missing.first() {
            let (missing, found) = (missing.len(), found.len());
            self.wrong(format!(
                "{path}: {found} conversations, without {missing}, such as {first}"
            ));
        }
    }

    /// Whether a session or a content names a publisher of this tenant, if it names one.
    fn is_own(&self, text: &Value) -> bool {
        let publisher = text.as_str().and_then(publisher_of);
        publisher.is_none_or(|(publisher, _)| tenant_of(publisher) == self.tenant)
    }

    /// Sends a request once. Returns the answer if it has status 200, 202 or 404; without an answer, or after 429 or 503,
    /// it waits as long as a client does.
    async fn request(
        &self,
        operation: &str,
        replica: usize,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Value> {
        let address = self.addresses[replica % self.addresses.len()];
        let headers = [&[("authorization", self.authorization.as_str())], headers].concat();
        let response = http::request(address, method, path, &headers, body).await;
        let Some(response) = response.ok().filter(is_whole) else {
            self.record.borrow_mut().unanswered += 1;
            sleep(PAUSE).await;
            return None;
        };
        let is_documented =
            self.documented.get(operation).is_some_and(|it| it.contains(&response.status));
        let answer = serde_json::from_str::<Value>(&response.body);
        let wait = response.header("retry-after").and_then(|it| it.parse().ok());
        match (response.status, answer, wait) {
            (200 | 202 | 404, Ok(answer), _) if is_documented => Some(answer),
            (429 | 503, Ok(_), Some(wait)) if is_documented => {
                self.record.borrow_mut().refused += 1;
                sleep(Duration::from_secs(wait)).await;
                None
            }
            _ => {
                self.wrong(format!("{method} {path}: {response:?}"));
                sleep(PAUSE).await;
                None
            }
        }
    }

    fn wrong(&self, answer: String) {
        self.record.borrow_mut().wrong.push(answer);
    }
}

impl ApiRecord {
    /// A conversation has this message, unless it is one that is deleted.
    fn know(&mut self, key: ConversationKey, id: &Value, content: &Value) {
        let known = self.known.entry(key).or_default();
        let named = content.as_str().and_then(publisher_of);
        if !named.is_some_and(|(_, number)| is_deleted(number)) {
            known.extend(id.as_str().map(str::to_owned));
        }
    }
}

/// Whether one of the messages of an action is deleted by the next one of its session.
fn has_deleted_message(action: &AgentAction) -> bool {
    let several = action.body["messages"].as_array().into_iter().flatten();
    let mut contents = several.chain([&action.body]).map(|body| &body["content"]);
    contents.any(|it| it.as_str().and_then(publisher_of).is_some_and(|(_, n)| is_deleted(n)))
}

/// Whether the body has as many bytes as its header says: a process may be killed in the middle.
fn is_whole(response: &Response) -> bool {
    let length = response.header("content-length").and_then(|it| it.parse().ok());
    length.is_none_or(|length: usize| length == response.body.len())
}

/// Publisher and number in `m3-17`, `s3-17-0` or `list3-17`, at the beginning of a text.
fn publisher_of(text: &str) -> Option<(usize, usize)> {
    let text = text.trim_start_matches(|it: char| it.is_ascii_lowercase());
    let (publisher, rest) = text.split_once('-')?;
    let number = rest.split(|it: char| !it.is_ascii_digit()).next()?;
    Some((publisher.parse().ok()?, number.parse().ok()?))
}

/// The statuses of each operation in the OpenAPI document.
async fn documented(address: SocketAddr) -> BTreeMap<String, BTreeSet<u16>> {
    let response = http::get(address, "/openapi.json").await.expect("the OpenAPI document");
    let document: Value = serde_json::from_str(&response.body).expect("JSON");
    let operations = document["paths"].as_object().into_iter().flat_map(Map::values);
    let operations = operations.filter_map(Value::as_object).flat_map(Map::values);
    let of = |operation: &Value| {
        let statuses = operation["responses"].as_object().into_iter().flat_map(Map::keys);
        let name = operation["operationId"].as_str()?.to_owned();
        Some((name, statuses.filter_map(|it| it.parse().ok()).collect()))
    };
    operations.filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_and_contents_name_their_publisher() {
        let named = ["m3-17", "s4-2-11", "list4-0 says 3", "m0-5   "].map(publisher_of);
        assert_eq!(named, [Some((3, 17)), Some((4, 2)), Some((4, 0)), Some((0, 5))]);
        assert_eq!(publisher_of("yes"), None);
    }
}
