//! What a session asks itself every second, because a consumer can be dead while everything looks
//! alive: the channel that failed unnoticed, the connection that went silent, the queue that has
//! messages and delivers none.

use std::time::Duration;

use tokio::time::Instant;

use super::phase::{AfterCancel, Phase};
use super::{End, Session};
use crate::Handler;
use crate::inspect;

/// How often the session looks after itself.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

impl<H: Handler> Session<H> {
    pub(super) async fn check(&mut self) -> Result<(), End> {
        self.shared.observer.holds(self.unacked.len());
        if !self.channel.status().connected() || !self.connection.is_open() {
            return Err(End::ChannelDied);
        }
        let waits = self.hold.is_some() || matches!(self.phase, Phase::Stopped(_));
        if waits {
            self.last_progress = Instant::now();
            return Ok(());
        }
        self.check_progress().await?;
        self.look_for_suspects().await
    }

    /// Asks the queue when nothing has come for a while. On a connection that went silent there is
    /// no answer, and this notices it sooner than heartbeats do.
    async fn check_progress(&mut self) -> Result<(), End> {
        let limit = self.shared.settings.stall_limit;
        let has_room = self.unacked.len() < usize::from(self.prefetch.current());
        let idle = self.last_progress.elapsed();
        if !has_room || idle < limit / 2 || self.last_depth_request.elapsed() < limit / 2 {
            return Ok(());
        }
        let depth = inspect::depth(&self.connection, self.shared.source.queue).await?;
        self.last_depth_request = Instant::now();
        // What came while we asked proves that it delivers.
        self.drain_ready().await?;
        if depth.ready == 0 {
            self.last_progress = Instant::now();
        } else if self.last_progress.elapsed() >= limit {
            return Err(End::NoProgress);
        }
        Ok(())
    }

    async fn look_for_suspects(&mut self) -> Result<(), End> {
        let Some(queue) = self.shared.source.suspect() else { return Ok(()) };
        let interval = self.shared.settings.suspect_interval;
        if self.phase != Phase::Consuming || self.last_look_at_suspects.elapsed() < interval {
            return Ok(());
        }
        self.last_look_at_suspects = Instant::now();
        match inspect::depth(&self.connection, queue).await {
            Ok(depth) => {
                if depth.ready > 0 {
                    self.cancel_for(AfterCancel::TakeSuspects);
                }
                Ok(())
            }
            // The queue itself goes on without its suspects.
            Err(error) if error.reply().is_some() => {
                self.shared.observer.suspects_unreadable(queue, &error);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
