//! The store: its connections, its health, and the calls that need no file of their own.

use std::error::Error as StdError;

use domain::ids::ConversationKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::connection::{Connections, Health};
use crate::error::Error;
use crate::keys;
use crate::server_identity::ServerIdentity;
use crate::settings::Settings;

/// The hot copies of all conversations. Clones share one connection.
#[derive(Clone)]
pub struct HotStore {
    pub(crate) connections: Connections,
}

impl HotStore {
    /// Makes a store that connects at the first call, so that a process can start while Redis is
    /// unavailable.
    ///
    /// `check_server` compares a server identity with the recorded one and, if they differ, records
    /// the new one together with a new epoch. It runs before the first use of a connection and
    /// every [`Settings::watch_every`] after that. After an error a new connection is not used. An
    /// existing connection can still be read; it cannot be written to once the last successful
    /// check is two intervals old.
    #[must_use]
    pub fn open<F, Fut, E>(settings: Settings, check_server: F) -> Self
    where
        F: Fn(ServerIdentity) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        Self { connections: Connections::new(settings, check_server) }
    }

    /// Checks the server identity at every interval and reconnects after an outage, until
    /// `shutdown`. A process that uses the store runs this once, supervised.
    pub async fn watch(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.connections.watch()).await;
    }

    /// Whether the connection was lost or the last attempt to connect failed. Then a saver gives
    /// its conversations new generations within its own transaction and does not append.
    #[must_use]
    pub fn is_known_down(&self) -> bool {
        *self.connections.health().borrow() == Health::Down
    }

    /// The last known state of Redis and its changes, for readiness and metrics.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Health> {
        self.connections.health()
    }

    /// Sends PING to every server.
    pub async fn probe(&self) -> Result<(), Error> {
        let connection = self.connections.get().await?;
        let mut ping = redis::pipe();
        ping.cmd("PING");
        for link in connection.links() {
            link.run(&ping).await?.iter().try_for_each(|reply| link.check(reply))?;
        }
        Ok(())
    }

    /// Removes the copies of conversations, with their markers and load tokens.
    ///
    /// # Errors
    /// Some of the copies may still exist.
    pub async fn drop_copies(&self, keys: &[ConversationKey]) -> Result<(), Error> {
        /// The number of keys in one write: about 100 KiB at most.
        const KEYS: usize = 200;
        let connection = self.connections.get().await?;
        let mut fault = None;
        for share in connection.shares(keys.iter().map(|key| (keys::messages(key), ()))) {
            for keys in share.items.chunks(KEYS) {
                let mut pipeline = redis::pipe();
                for (key, ()) in keys {
                    pipeline.cmd("UNLINK").arg(key);
                }
                for reply in share.link.run(&pipeline).await? {
                    // A failed command does not prevent the others.
                    fault = fault.or(share.link.check(&reply).err());
                }
            }
        }
        fault.map_or(Ok(()), Err)
    }
}
