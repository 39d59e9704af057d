//! What the workers have in common beyond the process kit: opening the stores, and consuming a queue
//! under supervision.
//!
//! Protects two rules that no worker may forget: nothing is consumed before the schema and the
//! topology have been verified, and `/readyz` always tells what the stores and consumers say of
//! themselves.
//!
//! A new worker is a folder beside this one: settings that flatten
//! [`StoreSettings`](service::settings::StoreSettings) and
//! [`ConsumerSettings`](service::settings::ConsumerSettings), a [`broker::Handler`], and a `main`
//! that opens [`Stores`] and calls [`consume`].

mod actions;
mod consuming;
mod settings;
mod stores;

pub use actions::Decoder;
pub use consuming::consume;
pub use settings::{background, closing, pace};
pub use stores::Stores;
