//! How full the queues are, as far as AMQP tells: messages ready for delivery, and consumers.

use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use crate::connection::{Connection, Endpoints, Error, request, request_within};
use crate::topology;

/// What a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// The queue.
    pub queue: &'static str,
    /// Messages that wait for a consumer; those under way do not count.
    pub ready: u32,
    /// Consumers that are registered with it.
    pub consumers: u32,
}

/// Looks at queues over one connection that it keeps.
pub struct Inspector {
    endpoints: Endpoints,
    connection: Option<Connection>,
}

impl Inspector {
    /// An inspector that connects when it is first used.
    #[must_use]
    pub fn new(endpoints: Endpoints) -> Self {
        Self { endpoints, connection: None }
    }

    /// Asks the broker whether it is there.
    ///
    /// # Errors
    /// It is away.
    pub async fn probe(&mut self) -> Result<(), Error> {
        let connection = self.connection().await?;
        let channel = connection.channel().await?;
        request("close a channel", channel.close(200, "done".into())).await?;
        self.connection = Some(connection);
        Ok(())
    }

    /// The depth of every queue of the topology, in its order. A queue that does not exist is
    /// `None`.
    ///
    /// # Errors
    /// The broker is away.
    pub async fn depths(&mut self) -> Result<Vec<(&'static str, Option<Depth>)>, Error> {
        let connection = self.connection().await?;
        let mut depths = Vec::new();
        for queue in topology::queues() {
            let depth = match depth(&connection, queue.name).await {
                Ok(depth) => Some(depth),
                // The broker answered, and the answer was no.
                Err(error) if error.reply().is_some() => None,
                Err(error) => return Err(error),
            };
            depths.push((queue.name, depth));
        }
        self.connection = Some(connection);
        Ok(depths)
    }

    /// The connection of the last time, taken: whoever fails with it leaves none behind.
    async fn connection(&mut self) -> Result<Connection, Error> {
        match self.connection.take().filter(Connection::is_open) {
            Some(connection) => Ok(connection),
            None => self.endpoints.connect_for_requests("inspect").await,
        }
    }
}

/// For a node to say how full a queue is; who is slower is as good as silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The depth of one queue. Has a channel of its own, because asking for a queue that does not exist
/// closes the channel.
pub(crate) async fn depth(connection: &Connection, queue: &'static str) -> Result<Depth, Error> {
    let ask = async {
        let channel = connection.open_channel().await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let answer = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
        channel.close(200, "done".into()).await?;
        Ok(Depth { queue, ready: answer.message_count(), consumers: answer.consumer_count() })
    };
    request_within(ANSWER_TIMEOUT, "tell a queue's depth", ask).await
}
