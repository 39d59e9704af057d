//! The checks of a session, once a second. They find failures that cause no event: a closed channel or
//! connection, a connection without traffic, a queue that has messages and delivers none.

use std::time::Duration;

use tokio::time::Instant;

use super::phase::{AfterCancel, Phase};
use super::state::Session;
use crate::Handler;
use crate::consumer::end::End;
use crate::inspect;

pub(super) const INTERVAL: Duration = Duration::from_secs(1);

impl<H: Handler> Session<H> {
    pub(super) async fn check(&mut self) -> Result<(), End> {
        self.shared.observer.unacknowledged(self.unacked.len());
        if !self.channel.status().connected() || !self.connection.is_open() {
            return Err(End::ChannelClosed);
        }
        self.requeue_what_waits_for_memory().await?;
        let paused = self.hold.is_some() || matches!(self.phase, Phase::Stopped(_));
        if paused {
            self.last_progress = Instant::now();
            return Ok(());
        }
        self.check_progress().await?;
        self.disconnect_if_empty();
        self.check_suspects().await
    }

    /// Ends the session of a slow queue that had no delivery for two intervals. If it has a message nevertheless, the
    /// next session gets it.
    fn disconnect_if_empty(&mut self) {
        let limit = 2 * self.shared.settings.depth_interval;
        let is_idle = self.unacked.is_empty() && self.last_progress.elapsed() >= limit;
        if self.shared.source.is_slow() && self.phase == Phase::Consuming && is_idle {
            self.cancel_for(AfterCancel::Disconnect);
        }
    }

    /// Requests the depth of the queue when there was no delivery for half of `stall_limit`. On a
    /// connection without traffic the request times out, which is sooner than the heartbeat timeout.
    async fn check_progress(&mut self) -> Result<(), End> {
        let limit = self.shared.settings.stall_limit;
        let has_room = self.unacked.len() < usize::from(self.prefetch.current());
        let idle = self.last_progress.elapsed();
        if !has_room || idle < limit / 2 || self.last_depth_request.elapsed() < limit / 2 {
            return Ok(());
        }
        let depth = inspect::depth(&self.connection, self.shared.source.queue()).await?;
        self.last_depth_request = Instant::now();
        // A delivery received meanwhile proves that the consumer works.
        self.receive_ready().await?;
        if depth.ready == 0 {
            self.last_progress = Instant::now();
        } else if self.last_progress.elapsed() >= limit {
            return Err(End::NoProgress);
        }
        Ok(())
    }

    async fn check_suspects(&mut self) -> Result<(), End> {
        let Some(queue) = self.shared.source.suspect() else { return Ok(()) };
        let interval = self.shared.settings.depth_interval;
        if self.phase != Phase::Consuming || self.last_suspect_check.elapsed() < interval {
            return Ok(());
        }
        self.last_suspect_check = Instant::now();
        match inspect::depth(&self.connection, queue).await {
            Ok(depth) => {
                if depth.ready > 0 {
                    self.cancel_for(AfterCancel::HandleSuspects);
                }
                Ok(())
            }
            // The work queue is still consumed when its suspect queue cannot be read.
            Err(error) if error.reply().is_some() => {
                self.shared.observer.suspects_unreadable(queue, &error);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
