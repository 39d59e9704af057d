//! RabbitMQ: the topology as data, a publisher that means it, and the supervised batch consumer.
//!
//! The promise of this crate: a message that a queue of ours confirmed is acknowledged only after
//! its handler said what became of it, and after whatever must outlive it (a retry, a dead letter) is
//! confirmed itself. Everything that goes wrong in between costs time, never a message.
//!
//! To consume one more queue: add it to [`topology`], implement [`Handler`], and run a [`Consumer`]
//! with its [`Source`].
//!
//! The only crate that names lapin. Nothing here reconnects behind anybody's back, and nothing waits
//! without a limit.

mod backoff;
mod connection;
mod consumer;
mod dead_letter;
mod delivery;
pub mod fleet_headers;
mod handler;
pub mod inspect;
mod panics;
mod publication;
mod publisher;
mod reply;
pub mod topology;
mod wire;

pub use connection::{Endpoints, Error, InvalidAddress};
pub use consumer::{Consumer, ConsumerState, Settings, Source};
pub use dead_letter::StoredDeadLetter;
pub use delivery::{Death, Delivery};
pub use handler::Handler;
pub use publication::{Publication, TooLong};
pub use publisher::{PublishError, Publisher};
pub use reply::Replier;
