//! What the workers share beyond the crates `service` and `stores`: consuming a queue under supervision.
//!
//! A queue is consumed with [`Stores`], so nothing is consumed before schema and topology have been verified.
//! `/readyz` always shows the state of the consumers.
//!
//! A new worker is a folder beside this one: settings that flatten
//! [`StoreSettings`](service::settings::StoreSettings) and
//! [`ConsumerSettings`](service::settings::ConsumerSettings), a [`broker::Handler`] that decodes actions with [`decoder`],
//! and a `main` that opens [`Stores`] and calls [`consume`].

mod consuming;

pub use consuming::{consume, decoder, in_background};
pub use stores::Stores;
