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
pub(crate) const BATCH: usize = 500;

/// Maximum number of batches in flight, as the worker's default.
pub(crate) const IN_FLIGHT: usize = 4;

pub(crate) async fn connect(url: &str) -> Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

/// Starts a consumer with a prefetch of one batch more than are in flight.
pub(crate) async fn consume(channel: &Channel) -> Result<Consumer> {
    let prefetch = u16::try_from(BATCH * (IN_FLIGHT + 1))?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    Ok(channel.basic_consume(QUEUE.into(), "".into(), options, FieldTable::default()).await?)
}

/// Adds the deliveries that have already arrived, up to a full batch.
pub(crate) fn drain_ready(stream: &mut Consumer, batch: &mut Vec<Delivery>) -> Result<()> {
    while batch.len() < BATCH {
        let Some(Some(delivery)) = stream.next().now_or_never() else { break };
        batch.push(delivery?);
    }
    Ok(())
}

/// The number of acknowledged messages; each change is printed to standard output.
#[derive(Default)]
pub(crate) struct Acknowledged(u64);

impl Acknowledged {
    /// Acknowledges all deliveries up to the last one of a batch.
    pub(crate) async fn up_to_last_of(&mut self, batch: &[Delivery]) -> Result<()> {
        if let Some(last) = batch.last() {
            last.acker.ack(BasicAckOptions { multiple: true }).await?;
            self.0 += batch.len() as u64;
            writeln!(std::io::stdout(), "acknowledged {}", self.0)?;
        }
        Ok(())
    }
}
