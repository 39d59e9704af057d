//! Sending acknowledgements, and finding out whether they were sent.
//!
//! lapin's future completes when the acknowledgement is written, and fails when the channel was closed
//! before. When the connection fails in between, the future may never complete (lapin 4.12.3,
//! `frames.rs`). So the channel's status is polled beside it.

use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use tokio::time::sleep;

use super::unacked::Tag;
use crate::connection::request;

/// How often the channel's status is polled while an acknowledgement is being sent. Sending normally
/// takes less than a millisecond.
const CHANNEL_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Sends an acknowledgement. `false`: it was not sent, or this is unknown. The channel must not be
/// used any more.
pub(super) async fn acknowledge(
    channel: &lapin::Channel,
    tag: Tag,
    options: BasicAckOptions,
) -> bool {
    is_sent(channel, channel.basic_ack(tag, options)).await
}

/// Requeues a delivery. `false` means the same as in [`acknowledge`].
pub(super) async fn requeue(channel: &lapin::Channel, tag: Tag) -> bool {
    let options = BasicNackOptions { requeue: true, ..Default::default() };
    is_sent(channel, channel.basic_nack(tag, options)).await
}

/// Has RabbitMQ dead-letter a delivery. `false` means the same as in [`acknowledge`].
pub(super) async fn reject(channel: &lapin::Channel, tag: Tag) -> bool {
    let options = BasicRejectOptions { requeue: false };
    is_sent(channel, channel.basic_reject(tag, options)).await
}

async fn is_sent(
    channel: &lapin::Channel,
    sending: impl Future<Output = lapin::Result<()>>,
) -> bool {
    let closed = async {
        while channel.status().connected() {
            sleep(CHANNEL_POLL_INTERVAL).await;
        }
        // A result that lapin still has is delivered within this time.
        sleep(CHANNEL_POLL_INTERVAL).await;
    };
    let sent = async {
        tokio::select! {
            biased;
            sent = sending => sent.map(|()| true),
            () = closed => Ok(false),
        }
    };
    matches!(request("send an acknowledgement", sent).await, Ok(true))
}
