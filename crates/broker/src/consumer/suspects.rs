//! Suspects: messages that came back to their queue too often, tried one at a time.
//!
//! A message that crashes the process takes the count of everything under way up with its own. Alone
//! it can only incriminate itself: so suspects are taken one by one, with `basic.get`, while nothing
//! else of this consumer is under way and its stores are well. One that keeps coming back from here
//! is given up.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicGetOptions};
use tokio::time::Instant;

use super::Shared;
use super::acknowledgement::acknowledge;
use super::batch::{Batch, Lane, Received};
use super::session::End;
use crate::connection::{Connection, request};
use crate::{Delivery, Handler};

/// How long suspects may keep the queue itself waiting at a time.
const TURN: Duration = Duration::from_secs(2);

/// Takes suspects until there is none, the turn is over, or a store is away.
pub(super) async fn take_turn<H: Handler>(
    shared: &Arc<Shared<H>>,
    connection: &Connection,
) -> Result<(), End> {
    let Some(queue) = shared.source.suspect() else { return Ok(()) };
    let channel = connection.channel().await?;
    let began = Instant::now();
    while began.elapsed() < TURN && shared.handler.probe().await.is_ok() {
        let get = channel.basic_get(queue.into(), BasicGetOptions::default());
        let Some(message) = request("give a suspect", get).await? else { break };
        let acker = message.delivery.acker.clone();
        let received = Received {
            tag: message.delivery.delivery_tag,
            delivery: Delivery::from_amqp(message.delivery, shared.clock.now()),
        };
        match Batch::new(vec![received], Lane::Suspects).work(shared).await {
            Ok(finished) => {
                shared.observer.settled(&finished.tally);
                if !acknowledge(&channel, &acker, BasicAckOptions::default()).await {
                    shared.observer.acks_lost(1);
                    return Err(End::ChannelDied);
                }
            }
            // It goes back with the channel. That counts against it, but five outages would have
            // to begin within its few milliseconds.
            Err((_, unavailable)) => {
                shared.observer.held(&unavailable);
                break;
            }
        }
    }
    Ok(())
}
