//! Sending acknowledgements, and knowing whether they went out.
//!
//! lapin answers when it has written the acknowledgement, with an error when the channel had died
//! before, and perhaps not at all when the connection dies in between: what is handed over while its
//! task ends stays where it is (lapin 4.12.3, `frames.rs`). So the channel is watched beside it.

use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicNackOptions};
use tokio::time::sleep;

use super::unacked::Tag;
use crate::connection::request;

/// How often the channel is looked at while its acknowledgement is on the way, which takes less
/// than a millisecond when all is well.
const LOOK: Duration = Duration::from_millis(100);

/// Sends an acknowledgement. `false`: it did not go out, or nobody knows; the channel is useless.
pub(super) async fn acknowledge(
    channel: &lapin::Channel,
    tag: Tag,
    options: BasicAckOptions,
) -> bool {
    goes_out(channel, channel.basic_ack(tag, options)).await
}

/// Gives a delivery back to its queue. `false` means the same as in [`acknowledge`].
pub(super) async fn requeue(channel: &lapin::Channel, tag: Tag) -> bool {
    let options = BasicNackOptions { requeue: true, ..Default::default() };
    goes_out(channel, channel.basic_nack(tag, options)).await
}

async fn goes_out(
    channel: &lapin::Channel,
    sending: impl Future<Output = lapin::Result<()>>,
) -> bool {
    let died = async {
        while channel.status().connected() {
            sleep(LOOK).await;
        }
        // Whatever lapin still has to say about it comes at once.
        sleep(LOOK).await;
    };
    let sent = async {
        tokio::select! {
            biased;
            sent = sending => sent.map(|()| true),
            () = died => Ok(false),
        }
    };
    matches!(request("take an acknowledgement", sent).await, Ok(true))
}
