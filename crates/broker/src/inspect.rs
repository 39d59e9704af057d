//! The depth of the queues, as far as AMQP reports it: ready messages and consumers.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::sync::Mutex;

use crate::connection::{Connection, Endpoints, Error, NOT_FOUND, request, request_within};
use crate::topology;

/// The depth of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Messages ready for delivery; unacknowledged ones do not count.
    pub ready: u32,
    /// Consumers that are registered with it.
    pub consumers: u32,
}

/// Reads the depth of queues. Keeps one connection open, which its clones share.
#[derive(Clone)]
pub struct Inspector {
    endpoints: Endpoints,
    connection: Arc<Mutex<Option<Connection>>>,
}

impl Inspector {
    /// An inspector that connects when it is first used.
    #[must_use]
    pub fn new(endpoints: Endpoints) -> Self {
        Self { endpoints, connection: Arc::default() }
    }

    /// Checks that RabbitMQ replies to a request.
    ///
    /// # Errors
    /// RabbitMQ is unavailable.
    pub async fn probe(&self) -> Result<(), Error> {
        let mut kept = self.connection.lock().await;
        let connection = self.take_or_open(&mut kept).await?;
        let channel = connection.channel().await?;
        request("close a channel", channel.close(200, "done".into())).await?;
        *kept = Some(connection);
        Ok(())
    }

    /// The depth of one queue.
    ///
    /// # Errors
    /// RabbitMQ is unavailable, or the queue does not exist.
    pub(crate) async fn depth(&self, queue: &'static str) -> Result<Depth, Error> {
        let mut kept = self.connection.lock().await;
        let connection = self.take_or_open(&mut kept).await?;
        let depth = depth(&connection, queue).await?;
        *kept = Some(connection);
        Ok(depth)
    }

    /// The depth of every queue of the topology, in its order. A queue that does not exist is
    /// `None`.
    ///
    /// # Errors
    /// RabbitMQ is unavailable, or refuses to tell the depth of a queue that exists.
    pub async fn depths(&self) -> Result<Vec<(&'static str, Option<Depth>)>, Error> {
        let mut kept = self.connection.lock().await;
        let connection = self.take_or_open(&mut kept).await?;
        let mut depths = Vec::new();
        for queue in topology::queues() {
            let depth = match depth(&connection, queue.name).await {
                Ok(depth) => Some(depth),
                Err(error) if error.reply().is_some_and(|(code, _)| code == NOT_FOUND) => None,
                Err(error) => return Err(error),
            };
            depths.push((queue.name, depth));
        }
        *kept = Some(connection);
        Ok(depths)
    }

    /// Takes the open connection, or opens one. The caller puts it back after success, so a failed one
    /// is not used again.
    async fn take_or_open(&self, kept: &mut Option<Connection>) -> Result<Connection, Error> {
        match kept.take().filter(Connection::is_open) {
            Some(connection) => Ok(connection),
            None => self.endpoints.connect_for_requests("inspect").await,
        }
    }
}

/// The limit for the reply with the depth of a queue.
const DEPTH_TIMEOUT: Duration = Duration::from_secs(5);

/// The depth of one queue. Opens its own channel, because RabbitMQ closes the channel when the queue does
/// not exist.
pub(crate) async fn depth(connection: &Connection, queue: &'static str) -> Result<Depth, Error> {
    let declare = async {
        let channel = connection.open_channel().await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
        channel.close(200, "done".into()).await?;
        Ok(Depth { ready: declared.message_count(), consumers: declared.consumer_count() })
    };
    request_within(DEPTH_TIMEOUT, "read the depth of a queue", declare).await
}
