//! Redis: a copy of each conversation's newest messages, fast to read and safe to lose.
//!
//! The only crate that names redis. PostgreSQL holds the truth; a hot copy is filled from committed
//! rows alone and believed only where a [`CompletenessMarker`] of the current [`Numbers`] vouches for it. So
//! eviction, expiry, a wiped server or a failover cost reads of PostgreSQL and never a message.
//!
//! - Savers [append](HotStore::append) without looking. If that fails, the conversations that the
//!   [error](AppendError) names need a new generation before anything is acknowledged.
//! - Readers [read](HotStore::read) a window and ask [`HotCopy::usable`]. On a [`Miss`] they read
//!   PostgreSQL and may fill the copy: [`HotStore::begin_load`], then numbers and rows in one
//!   snapshot, then [`HotStore::finish_load`].
//! - One connection is one server process. Each is admitted before first use: whoever opened the
//!   store compares its [`ServerIdentity`] with the one on record. See `connection.rs`.
//!
//! - A Redis Cluster is the same with a process for each master: everything about a conversation is
//!   one key, and no call needs two keys at once. See `servers.rs`.
//!
//! Needs Redis 6.2 (`ZRANGE … BYSCORE REV`).
//!
//! To store another kind of thing: its key in `keys.rs`, its format with a version byte and golden
//! fixtures beside `encoding.rs`, its calls in a file of their own.

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
    /// Describes the store; connects at the first call, so that a process can start while Redis is
    /// away.
    ///
    /// `check_server` compares the server identity of a server with the one on record and, if they differ, records
    /// this one together with a fresh epoch. It runs before a connection is first used and every
    /// [`Settings::watch_every`] after that. Its error keeps a new connection from being used; an
    /// admitted one may still be read, but not be written to once the last success is two
    /// intervals old.
    #[must_use]
    pub fn open<F, Fut, E>(settings: Settings, check_server: F) -> Self
    where
        F: Fn(ServerIdentity) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        Self { connections: Connections::new(settings, check_server) }
    }

    /// Keeps the connection alive and its server identity compared, until told to stop. A process that uses
    /// the store runs this once, supervised: it is also what finds Redis again after an outage.
    pub async fn watch(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.connections.watch()).await;
    }

    /// Whether Redis was there when it was last asked.
    #[must_use]
    pub fn health(&self) -> Health {
        *self.connections.health().borrow()
    }

    /// Whether there is an admitted connection.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.health() == Health::Up
    }

    /// Whether the last use of Redis, or the last attempt to reach it, failed. A saver then gives
    /// its conversations new generations within its own transaction and need not append.
    #[must_use]
    pub fn is_known_down(&self) -> bool {
        self.health() == Health::Down
    }

    /// Follows [`HotStore::health`], for readiness and metrics.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Health> {
        self.connections.health()
    }

    /// Asks every server whether it serves.
    pub async fn probe(&self) -> Result<(), Error> {
        let connection = self.connections.get().await?;
        let mut ping = redis::pipe();
        ping.cmd("PING");
        for link in connection.links() {
            link.run(&ping).await?.iter().try_for_each(|reply| link.check(reply))?;
        }
        Ok(())
    }

    /// Removes the copies of conversations, with their marks and intents. An error says that some may
    /// be left.
    pub async fn drop_copies(&self, keys: &[ConversationKey]) -> Result<(), Error> {
        /// Keys to a write: some 100 KiB at most.
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
                    // One that is refused does not keep the others.
                    fault = fault.or(share.link.check(&reply).err());
                }
            }
        }
        fault.map_or(Ok(()), Err)
    }
}
