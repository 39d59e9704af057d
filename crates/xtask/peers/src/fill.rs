//! Messages for one queue, of any size and with any headers: the load with which memory is measured.

use anyhow::{Result, bail};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::{BasicProperties, Channel};

use crate::body::Shape;
use crate::broker::connect;

/// Bytes of unconfirmed bodies and headers, unless one message alone has more.
const WINDOW_BYTES: usize = 32 << 20;
/// The most unconfirmed messages.
const WINDOW: usize = 1024;

/// Publishes messages to one queue, past the exchanges.
#[derive(Debug, clap::Args)]
pub(crate) struct Fill {
    /// Name of the queue
    #[arg(long)]
    queue: String,
    /// The action that the bodies name
    #[arg(long)]
    action_type: String,
    /// Number of messages
    #[arg(long)]
    count: u64,
    /// Number of the first message
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// The content of a body is an array of zeros instead of a text
    #[arg(long)]
    array: bool,
    /// Size of the headers in bytes: of every other message one text, of the others small values
    #[arg(long, default_value_t = 0)]
    header_bytes: usize,
    #[command(flatten)]
    shape: Shape,
}

pub(crate) async fn fill(amqp_url: &str, fill: &Fill) -> Result<()> {
    let (_connection, channel) = connect(amqp_url).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let window = WINDOW_BYTES / (fill.shape.body_bytes + fill.header_bytes);
    let mut confirms = FuturesUnordered::new();
    for n in fill.from..fill.from + fill.count {
        if confirms.len() >= window.clamp(1, WINDOW) {
            confirms.next().await.transpose()?;
        }
        confirms.push(fill.publish(&channel, n));
    }
    while confirms.next().await.transpose()?.is_some() {}
    Ok(())
}

impl Fill {
    async fn publish(&self, channel: &Channel, n: u64) -> Result<()> {
        const PERSISTENT: u8 = 2;
        let body = match self.array {
            true => self.shape.array(&self.action_type, n),
            false => self.shape.text(&self.action_type, n),
        };
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(PERSISTENT)
            .with_headers(self.headers(n));
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let queue = self.queue.as_str().into();
        let sent =
            channel.basic_publish("".into(), queue, options, body.as_bytes(), properties).await?;
        drop(body);
        let confirmation = sent.await?;
        let accepted = confirmation.is_ack();
        if !accepted || confirmation.take_message().is_some() {
            bail!("RabbitMQ refused or returned a message for {}", self.queue);
        }
        Ok(())
    }

    fn headers(&self, n: u64) -> FieldTable {
        let mut headers = FieldTable::default();
        if self.header_bytes > 0 {
            // A boolean needs two bytes.
            let value = match n.is_multiple_of(2) {
                true => AMQPValue::LongString(vec![b'x'; self.header_bytes].into()),
                false => AMQPValue::FieldArray(FieldArray::from(vec![
                    AMQPValue::Boolean(true);
                    self.header_bytes / 2
                ])),
            };
            headers.insert("x-large".into(), value);
        }
        headers
    }
}
