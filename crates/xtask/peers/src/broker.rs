//! RabbitMQ: one connection and one channel.

use std::io::Write;

use anyhow::Result;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, Consumer};

/// The queue that the save worker consumes.
const QUEUE: &str = "conversation.save_message";

/// Maximum number of messages in a batch, as the worker's default.
const BATCH: usize = 500;

/// Maximum number of batches in flight, as the worker's default.
pub(crate) const IN_FLIGHT: usize = 4;

pub(crate) async fn connect(url: &str) -> Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

/// How many messages a delivery has.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Deliveries {
    /// Messages in each delivery
    #[arg(long, default_value_t = 1)]
    batch: usize,
}

impl Deliveries {
    /// The messages of each.
    pub(crate) fn batch(self) -> usize {
        self.batch
    }

    /// The deliveries of a full batch.
    pub(crate) fn of_a_batch(self) -> usize {
        (BATCH / self.batch).max(1)
    }
}

/// Starts a consumer with a prefetch of one batch more than are in flight.
pub(crate) async fn consume(channel: &Channel, deliveries: Deliveries) -> Result<Consumer> {
    let prefetch = u16::try_from(deliveries.of_a_batch() * (IN_FLIGHT + 1))?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    Ok(channel.basic_consume(QUEUE.into(), "".into(), options, FieldTable::default()).await?)
}

/// Adds the deliveries that have already arrived, up to a full batch.
pub(crate) fn drain_ready(
    stream: &mut Consumer,
    batch: &mut Vec<Delivery>,
    deliveries: Deliveries,
) -> Result<()> {
    while batch.len() < deliveries.of_a_batch() {
        let Some(Some(delivery)) = stream.next().now_or_never() else { break };
        batch.push(delivery?);
    }
    Ok(())
}

/// The number of acknowledged messages; each change is printed to standard output.
pub(crate) struct Acknowledged {
    deliveries: Deliveries,
    messages: usize,
}

impl Acknowledged {
    pub(crate) fn of(deliveries: Deliveries) -> Self {
        Self { deliveries, messages: 0 }
    }

    /// Acknowledges all deliveries up to the last one of a batch.
    pub(crate) async fn up_to_last_of(&mut self, batch: &[Delivery]) -> Result<()> {
        if let Some(last) = batch.last() {
            last.acker.ack(BasicAckOptions { multiple: true }).await?;
            self.messages += batch.len() * self.deliveries.batch;
            writeln!(std::io::stdout(), "acknowledged {}", self.messages)?;
        }
        Ok(())
    }
}
