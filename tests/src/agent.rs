//! What an upstream agent does: publish actions, confirmed.

use std::sync::Arc;

use broker::{Endpoints, Publication, Publisher};
use domain::ids::{ConversationId, ConversationKey, SessionId, TenantId};
use domain::time::Timestamp;
use metrics::Metrics;
use serde_json::{Value, json};
use testkit::wait::eventually;

use crate::LIMIT;

/// 2026-11-20T10:00:00Z in microseconds since 1970: when the conversations of these tests take place.
const BEGINNING: i64 = 1_795_168_800_000_000;

/// Publishes actions straight to RabbitMQ, whatever proxies stand before the workers.
pub struct Agent(Publisher);

impl Agent {
    /// An agent of a virtual host.
    ///
    /// # Panics
    /// When the URL is none.
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

    /// Publishes messages again and again until each is confirmed, as an agent does whose RabbitMQ is
    /// away: what was published without an answer may be there twice.
    ///
    /// # Panics
    /// When they are not all confirmed within [`LIMIT`].
    pub async fn insist(&self, actions: &[Value]) {
        let action = |action: &Value| {
            let action_type = action["action_type"].as_str().expect("an action type");
            Arc::new(Publication::action(action_type, action.to_string().into_bytes()))
        };
        let mut left: Vec<_> = actions.iter().map(action).collect();
        eventually("RabbitMQ to confirm everything", LIMIT, async || {
            let results = self.0.publish_all(left.iter().cloned()).await;
            let failure = results.iter().find_map(|result| result.as_ref().err()).cloned();
            let mut results = results.into_iter();
            left.retain(|_| results.next().is_some_and(|result| result.is_err()));
            failure.map_or(Ok(()), |error| Err(format!("{} left: {error}", left.len())))
        })
        .await;
    }

    /// Publishes anything, to anywhere.
    ///
    /// # Panics
    /// When one of them is not confirmed.
    pub async fn send(&self, publications: Vec<Publication>) {
        for result in self.0.publish_all(publications.into_iter().map(Arc::new)).await {
            result.expect("RabbitMQ confirms");
        }
    }
}

/// A user's message, with whatever `extra` adds or replaces.
///
/// # Panics
/// When `extra` is no object.
#[must_use]
pub fn message(tenant: &str, session: &str, id: &str, extra: &Value) -> Value {
    let usual = json!({
        "action_type": "conversation.save_message", "tenant_id": tenant, "session_id": session,
        "message_id": id, "role": "user", "content": format!("words of {id}"), "timestamp": at(0),
    });
    extended(usual, extra)
}

/// A session that opens.
#[must_use]
pub fn opened(tenant: &str, session: &str, extra: &Value) -> Value {
    event("conversation.session_opened", tenant, session, extra)
}

/// A session that closes.
#[must_use]
pub fn closed(tenant: &str, session: &str, extra: &Value) -> Value {
    event("conversation.session_closed", tenant, session, extra)
}

/// A moment so many microseconds after the beginning of every test's conversations.
///
/// # Panics
/// When there is no such moment.
#[must_use]
pub fn at(micros: i64) -> String {
    Timestamp::from_micros(BEGINNING + micros).unwrap().to_string()
}

/// The conversation of an action.
///
/// # Panics
/// When the action names no valid ids.
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
