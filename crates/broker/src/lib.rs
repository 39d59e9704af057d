//! RabbitMQ: the topology as data, a publisher with confirms, and the supervised batch consumer.
//!
//! The guarantee of this crate: a delivery is acknowledged only after its handler returned an outcome
//! and after RabbitMQ confirmed the copy that the outcome asks for (a retry, a dead letter). A failure
//! before that leads to a redelivery. No message is lost.
//!
//! To consume one more queue: add its row to `work_queues!` in `domain::fleet`, from which [`topology`] follows
//! (actions also need their rows in `topology/table.rs`); implement [`Handler`], which names its [`Source`]; run a
//! [`Consumer`].
//!
//! This is the only crate that uses lapin. lapin's automatic recovery is off: the owner of a
//! connection replaces it. Every wait has a limit.

mod amqp_second;
mod backoff;
mod body_limit;
mod connection;
mod consumer;
mod dead_letter_id;
mod decoder;
mod delivery;
pub mod fleet_headers;
mod frames;
mod handler;
mod header_owner;
pub mod inspect;
mod lossless;
mod panics;
mod properties;
mod property_list;
mod publication;
mod publisher;
mod raw_message;
mod readable_stream;
mod replies;
mod reply;
mod requester;
mod sender_fields;
mod source;
mod stored;
pub mod topology;
mod wire;

pub use connection::{Endpoints, Error, InvalidAddress};
pub use consumer::{Consumer, ConsumerState, Settings};
pub use decoder::Decoder;
pub use delivery::{Death, Delivery};
pub use handler::{Handled, Handler, Part, Processed, ReplyBody};
pub use publication::{Publication, TooLong};
pub use publisher::{PublishError, Publisher};
pub use raw_message::RawMessage;
pub use replies::{ExpectedReply, Replies};
pub use requester::{RequestError, Requester};
pub use sender_fields::SenderFields;
pub use source::Source;
pub use stored::StoredDelivery;
