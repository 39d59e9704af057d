//! Hot copies: a Redis copy of each conversation's newest messages, fast to read and safe to lose.
//!
//! This is the only crate that uses the Redis client. PostgreSQL has all data. A hot copy contains
//! only committed rows. It is used only if a [`CompletenessMarker`] with the current [`Numbers`]
//! proves that it is complete. So eviction, expiry, an emptied server or a failover cost reads of
//! PostgreSQL and never a message.
//!
//! - Savers [append](HotStore::append_renewing) without reading first. If an append fails, the conversations
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
mod store;

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
pub use store::HotStore;
