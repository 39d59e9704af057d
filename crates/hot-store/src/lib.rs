//! Hot copies: a Redis copy of each conversation's newest messages, fast to read and safe to lose.
//!
//! This is the only crate that uses the Redis client. PostgreSQL has all data. A hot copy contains
//! only committed rows. It is used only if a [`CompletenessMarker`] with the current [`Numbers`]
//! proves that it is complete. So eviction, expiry, an emptied server or a failover cost reads of
//! PostgreSQL and never a message.
//!
//! - Savers [append](HotStore::append) without reading first. If an append fails, the conversations
//!   of its [error](AppendError) must get a new generation before the messages are acknowledged.
//! - Readers [read](HotStore::read) a window and call [`HotCopy::usable`]. On a [`Miss`] they read
//!   PostgreSQL and may load the copy: [`HotStore::begin_load`], then numbers and rows in one
//!   snapshot, then [`HotStore::finish_load`].
//! - One connection is one server process. Before its first use its [`ServerIdentity`] is compared
//!   with the recorded one. See `connection.rs`.
//! - A Redis Cluster has one server process for each master. Each conversation is one key, and no
//!   call needs two keys at once. See `servers.rs`.
//!
//! Requires Redis 6.2 (`ZRANGE … BYSCORE REV`).
//!
//! To store another kind of data: add its key to `keys.rs`, its format with a version byte and
//! golden fixtures beside `encoding.rs`, and its calls in a new file.

mod address;
mod append;
mod connection;
mod copy;
mod encoding;
mod error;
#[cfg(test)]
mod fixtures;
mod json;
mod keys;
mod load;
mod marker;
mod members;
mod node;
mod read;
mod scan;
mod server_identity;
mod servers;
mod settings;
mod slots;

use std::error::Error as StdError;

use domain::ids::ConversationKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use address::{Address, InvalidAddress};
pub use connection::Health;
pub use copy::{Extent, HotCopy, Miss, Window};
pub use encoding::DecodeError;
pub use error::{AppendError, Error};
pub use load::{LoadToken, Loaded};
pub use marker::{CompleteFrom, CompletenessMarker, Numbers};
pub use read::Reading;
pub use scan::{ScanCursor, ScanPage};
pub use server_identity::ServerIdentity;
pub use settings::Settings;

use connection::Connections;

/// The hot copies of all conversations. Clones share one connection.
#[derive(Clone)]
pub struct HotStore {
    connections: Connections,
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

    /// The last known state of Redis.
    #[must_use]
    pub fn health(&self) -> Health {
        *self.connections.health().borrow()
    }

    /// Whether there is a checked connection.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.health() == Health::Up
    }

    /// Whether the connection was lost or the last attempt to connect failed. Then a saver gives
    /// its conversations new generations within its own transaction and does not append.
    #[must_use]
    pub fn is_known_down(&self) -> bool {
        self.health() == Health::Down
    }

    /// The changes of [`HotStore::health`], for readiness and metrics.
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
