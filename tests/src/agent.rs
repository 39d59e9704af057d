//! An upstream agent: it publishes actions with publisher confirms.

use std::sync::Arc;

use broker::{Endpoints, Publication, Publisher};
use fixtures::LIMIT;
use metrics::Metrics;
use serde_json::Value;
use testkit::wait::eventually;

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
