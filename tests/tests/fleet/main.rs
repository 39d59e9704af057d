//! What the workers do with actions, from the publish to the archived conversation.
//!
//! Most tests share one [`ServerSet`], each with its own tenant.

mod baselines;
mod closing;
mod deleting;
mod endpoints;
mod large;
mod lists;
mod messages;
mod mutated;
mod order_of_receipt;
mod rerouting;
mod several;
mod unreadable;
mod users;

use domain::ids::ConversationKey;
use domain::message::Message;
use domain::status::ConversationStatus;
use serde_json::{Value, json};
use system_tests::{ServerSet, TestReader, closed, key_of, message};
use testkit::wait::eventually;
use uuid::Uuid;

pub(crate) const ARCHIVED: ConversationStatus = ConversationStatus::Archived;
pub(crate) const ACTIVE: ConversationStatus = ConversationStatus::Active;

pub(crate) fn ids(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.id.as_str()).collect()
}

/// Waits until a conversation holds so many messages, and returns them.
pub(crate) async fn saved(
    reader: &TestReader,
    key: &ConversationKey,
    count: usize,
) -> Vec<Message> {
    eventually(format!("{count} messages of {key}"), system_tests::LIMIT, async || {
        let messages = reader.stored(key).await;
        if messages.len() >= count { Ok(messages) } else { Err(format!("{:?}", ids(&messages))) }
    })
    .await
}

/// Publishes a conversation, closes it at once, and waits until it is archived: a conversation whose close
/// was published before would be archived by now.
pub(crate) async fn wait_for_another_close(servers: &ServerSet, reader: &TestReader, tenant: &str) {
    let session = Uuid::new_v4().to_string();
    let witness = message(tenant, &session, "witness", &json!({}));
    let agent = servers.scenario.agent();
    agent.publish(&witness).await;
    saved(reader, &key_of(&witness), 1).await;
    agent.publish(&closed(tenant, &session, &json!({}))).await;
    reader.reaches(&key_of(&witness), ARCHIVED).await;
}

/// The types of the events about one conversation, in their order.
pub(crate) fn about<'a>(events: &'a [Value], key: &ConversationKey) -> Vec<&'a str> {
    let same = |event: &&Value| event["conversation_id"] == key.conversation.as_str();
    let events = events.iter().filter(same);
    events.filter_map(|event| event["event_type"].as_str()).collect()
}
