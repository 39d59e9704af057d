//! An upstream agent: it publishes actions with publisher confirms.
//!
//! Actions are published by an AMQP client of its own, with exactly the properties that they have. Copies of
//! messages are published as the workers do.

use std::sync::Arc;
use std::time::Duration;

use broker::{Endpoints, Publication, Publisher};
use fixtures::LIMIT;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use metrics::Metrics;
use testkit::wait::eventually;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::{AgentAction, AsAction};

/// Publishes to RabbitMQ directly, not through the workers' proxies.
pub struct Agent {
    amqp_url: String,
    link: Mutex<Option<Link>>,
    publisher: Publisher,
}

/// A connection with a channel in confirm mode.
struct Link {
    /// Closed when it is dropped.
    _connection: Connection,
    channel: Channel,
}

/// How long RabbitMQ may take to connect, and to confirm the messages of one call.
const TIMEOUT: Duration = Duration::from_secs(20);

/// AMQP's delivery mode of messages that RabbitMQ writes to disk.
const PERSISTENT: u8 = 2;

impl Agent {
    /// An agent of a virtual host.
    ///
    /// # Panics
    /// When the URL is invalid.
    #[must_use]
    pub fn of(amqp_url: &str) -> Self {
        let endpoints = Endpoints::parse(amqp_url, "agent").expect("the URL of RabbitMQ");
        let publisher = Publisher::new(endpoints, Metrics::new());
        Self { amqp_url: amqp_url.to_owned(), link: Mutex::default(), publisher }
    }

    /// Publishes an action with its `action_type` as routing key.
    ///
    /// # Panics
    /// When it is not confirmed.
    pub async fn publish(&self, action: &impl AsAction) {
        self.publish_all(std::slice::from_ref(action)).await;
    }

    /// Publishes actions in their order.
    ///
    /// # Panics
    /// When one of them is not confirmed.
    pub async fn publish_all(&self, actions: &[impl AsAction]) {
        let actions: Vec<AgentAction> = actions.iter().map(AsAction::as_action).collect();
        for result in self.try_publish(&actions).await {
            result.expect("RabbitMQ confirms");
        }
    }

    /// Publishes actions repeatedly until each is confirmed, as an agent does while RabbitMQ is unavailable. An
    /// action whose confirm was lost may be queued twice.
    ///
    /// # Panics
    /// When they are not all confirmed within [`LIMIT`].
    pub async fn publish_until_confirmed(&self, actions: &[impl AsAction]) {
        let mut unconfirmed: Vec<AgentAction> = actions.iter().map(AsAction::as_action).collect();
        eventually("RabbitMQ to confirm all messages", LIMIT, async || {
            let results = self.try_publish(&unconfirmed).await;
            let failure = results.iter().find_map(|result| result.as_ref().err()).cloned();
            let mut results = results.into_iter();
            unconfirmed.retain(|_| results.next().is_some_and(|result| result.is_err()));
            failure
                .map_or(Ok(()), |error| Err(format!("{} unconfirmed: {error}", unconfirmed.len())))
        })
        .await;
    }

    /// Publishes any messages, to any exchange or queue, as the workers do.
    ///
    /// # Panics
    /// When one of them is not confirmed.
    pub async fn send(&self, publications: Vec<Publication>) {
        for result in self.publisher.publish_all(publications.into_iter().map(Arc::new)).await {
            result.expect("RabbitMQ confirms");
        }
    }

    /// Publishes actions in their order: for each, whether RabbitMQ confirmed it.
    async fn try_publish(&self, actions: &[AgentAction]) -> Vec<Result<(), String>> {
        let mut link = self.link.lock().await;
        let all = match timeout(TIMEOUT, publish(&mut link, &self.amqp_url, actions)).await {
            Ok(Ok(results)) => results,
            Ok(Err(error)) => vec![Err(error.to_string()); actions.len()],
            Err(_) => vec![Err(format!("no confirm within {TIMEOUT:?}")); actions.len()],
        };
        if all.iter().any(Result::is_err) {
            *link = None;
        }
        all
    }
}

async fn publish(
    link: &mut Option<Link>,
    amqp_url: &str,
    actions: &[AgentAction],
) -> lapin::Result<Vec<Result<(), String>>> {
    let channel = match link {
        Some(link) => &link.channel,
        None => &link.insert(connect(amqp_url).await?).channel,
    };
    let mut sent = Vec::with_capacity(actions.len());
    for AgentAction { body, message_id } in actions {
        let action_type = body["action_type"].as_str().expect("an action type");
        let mut properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(PERSISTENT);
        if let Some(id) = message_id {
            properties = properties.with_message_id(id.as_str().into());
        }
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let body = body.to_string();
        let exchange = "domain.actions".into();
        let publish = channel.basic_publish(
            exchange,
            action_type.into(),
            options,
            body.as_bytes(),
            properties,
        );
        sent.push(publish.await);
    }
    let mut results = Vec::with_capacity(actions.len());
    for sent in sent {
        let confirmation = match sent {
            Ok(confirm) => confirm.await,
            Err(error) => Err(error),
        };
        results.push(match confirmation {
            Ok(Confirmation::Ack(None)) => Ok(()),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        });
    }
    Ok(results)
}

/// Connects to the first node of a cluster that accepts the connection.
async fn connect(amqp_urls: &str) -> lapin::Result<Link> {
    let mut refused = None;
    for url in amqp_urls.split(',') {
        match Connection::connect(url, ConnectionProperties::default()).await {
            Ok(connection) => {
                let channel = connection.create_channel().await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                return Ok(Link { _connection: connection, channel });
            }
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.expect("a list has one URL at least"))
}
