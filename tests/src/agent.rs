//! An upstream agent: it publishes actions with publisher confirms.

use std::sync::Arc;

use broker::{Endpoints, Publication, Publisher};
use domain::ids::{ConversationId, ConversationKey, SessionId, TenantId};
use domain::time::Timestamp;
use metrics::Metrics;
use serde_json::{Value, json};
use testkit::wait::eventually;

use crate::LIMIT;

/// 2026-11-20T10:00:00Z in microseconds since 1970: the time of the tests' conversations.
const BEGINNING: i64 = 1_795_168_800_000_000;

/// Publishes actions to RabbitMQ directly, not through the workers' proxies.
pub struct Agent(Publisher);

impl Agent {
    /// An agent of a virtual host.
    ///
    /// # Panics
    /// When the URL is invalid.
    #[must_use]
    pub fn of(amqp_url: &str) -> Self {
        let endpoints = Endpoints::parse(amqp_url, "agent").expect("the URL of RabbitMQ");
        Self(Publisher::new(endpoints, Metrics::new()))
    }

    /// Publishes an action with its `action_type` as routing key.
    ///
    /// # Panics
    /// When it is not confirmed.
    pub async fn publish(&self, action: &Value) {
        self.publish_all(std::slice::from_ref(action)).await;
    }

    /// Publishes actions in their order.
    ///
    /// # Panics
    /// When one of them is not confirmed.
    pub async fn publish_all(&self, actions: &[Value]) {
        let publications = actions.iter().map(|action| {
            let action_type = action["action_type"].as_str().expect("an action type");
            Publication::action(action_type, action.to_string().into_bytes())
        });
        self.send(publications.collect()).await;
    }

    /// Publishes messages repeatedly until each is confirmed, as an agent does while RabbitMQ is
    /// unavailable. A message whose confirm was lost may be queued twice.
    ///
    /// # Panics
    /// When they are not all confirmed within [`LIMIT`].
    pub async fn publish_until_confirmed(&self, actions: &[Value]) {
        let action = |action: &Value| {
            let action_type = action["action_type"].as_str().expect("an action type");
            Arc::new(Publication::action(action_type, action.to_string().into_bytes()))
        };
        let mut unconfirmed: Vec<_> = actions.iter().map(action).collect();
        eventually("RabbitMQ to confirm all messages", LIMIT, async || {
            let results = self.0.publish_all(unconfirmed.iter().cloned()).await;
            let failure = results.iter().find_map(|result| result.as_ref().err()).cloned();
            let mut results = results.into_iter();
            unconfirmed.retain(|_| results.next().is_some_and(|result| result.is_err()));
            failure
                .map_or(Ok(()), |error| Err(format!("{} unconfirmed: {error}", unconfirmed.len())))
        })
        .await;
    }

    /// Publishes any messages, to any exchange or queue.
    ///
    /// # Panics
    /// When one of them is not confirmed.
    pub async fn send(&self, publications: Vec<Publication>) {
        for result in self.0.publish_all(publications.into_iter().map(Arc::new)).await {
            result.expect("RabbitMQ confirms");
        }
    }
}

/// The action `conversation.save_message` with role `user`, and the fields that `extra` adds or replaces.
///
/// # Panics
/// When `extra` is not an object.
#[must_use]
pub fn message(tenant: &str, session: &str, id: &str, extra: &Value) -> Value {
    let usual = json!({
        "action_type": "conversation.save_message", "tenant_id": tenant, "session_id": session,
        "message_id": id, "role": "user", "content": format!("text of {id}"), "timestamp": at(0),
    });
    extended(usual, extra)
}

/// The action `conversation.session_opened`, with the fields that `extra` adds or replaces.
#[must_use]
pub fn opened(tenant: &str, session: &str, extra: &Value) -> Value {
    event("conversation.session_opened", tenant, session, extra)
}

/// The action `conversation.session_closed`, with the fields that `extra` adds or replaces.
#[must_use]
pub fn closed(tenant: &str, session: &str, extra: &Value) -> Value {
    event("conversation.session_closed", tenant, session, extra)
}

/// The RFC 3339 time so many microseconds after the start of the tests' conversations.
///
/// # Panics
/// When the time is out of range.
#[must_use]
pub fn at(micros: i64) -> String {
    Timestamp::from_micros(BEGINNING + micros).unwrap().to_string()
}

/// The conversation of an action.
///
/// # Panics
/// When the action has no valid ids.
#[must_use]
pub fn key(action: &Value) -> ConversationKey {
    let tenant = TenantId::new(action["tenant_id"].as_str().unwrap()).unwrap();
    match action["conversation_id"].as_str() {
        Some(id) => ConversationKey { tenant, conversation: ConversationId::new(id).unwrap() },
        None => {
            let session = SessionId::new(action["session_id"].as_str().unwrap()).unwrap();
            ConversationKey::of_session(tenant, &session)
        }
    }
}

fn event(action_type: &str, tenant: &str, session: &str, extra: &Value) -> Value {
    let usual = json!({"action_type": action_type, "tenant_id": tenant, "session_id": session});
    extended(usual, extra)
}

fn extended(mut usual: Value, extra: &Value) -> Value {
    usual.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    usual
}
