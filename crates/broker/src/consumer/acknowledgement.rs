//! Sending an acknowledgement, and knowing whether it went out.
//!
//! lapin's `ack()` says `Ok(false)` when the channel had died before the call, and never ends when it
//! dies in between: its internal task drops the request of a channel that is not connected without
//! an answer (lapin 4.12.3, `internal_rpc.rs`, `BasicAck`). So the channel is watched beside it.

use std::time::Duration;

use lapin::Acker;
use lapin::options::BasicAckOptions;
use tokio::time::sleep;

use crate::connection::request;

/// How often the channel is looked at while its acknowledgement is on the way, which takes less
/// than a millisecond when all is well.
const LOOK: Duration = Duration::from_millis(100);

/// Sends an acknowledgement. `false`: it did not go out, or nobody knows; the channel is useless.
pub(super) async fn acknowledge(
    channel: &lapin::Channel,
    acker: &Acker,
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
            sent = acker.ack(options) => sent,
            () = died => Ok(false),
        }
    };
    matches!(request("take an acknowledgement", sent).await, Ok(true))
}
