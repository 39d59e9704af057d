//! What the workers share beyond the crate `service`: connecting to the servers, and consuming a queue under
//! supervision.
//!
//! It enforces two rules for every worker: nothing is consumed before schema and topology have been verified,
//! and `/readyz` always shows the state of the servers and consumers.
//!
//! A new worker is a folder beside this one: settings that flatten
//! [`StoreSettings`](service::settings::StoreSettings) and
//! [`ConsumerSettings`](service::settings::ConsumerSettings), a [`broker::Handler`], and a `main`
//! that opens [`Stores`] and calls [`consume`].

mod consuming;
mod settings;
mod stores;

pub use consuming::consume;
pub use settings::{background, closing, consumer_settings};
pub use stores::Stores;
