//! Sending an acknowledgement, and knowing whether it went out.
//!
//! lapin answers when it has written the acknowledgement, with an error when the channel had died
//! before, and perhaps not at all when the connection dies in between: what is handed over while its
//! task ends stays where it is (lapin 4.12.3, `frames.rs`). So the channel is watched beside it.

use std::time::Duration;

use lapin::options::BasicAckOptions;
use tokio::time::sleep;

use super::ledger::Tag;
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
            sent = channel.basic_ack(tag, options) => sent.map(|()| true),
            () = died => Ok(false),
        }
    };
    matches!(request("take an acknowledgement", sent).await, Ok(true))
}
