//! Every exchange, queue and binding of the fleet, as data, in one place.
//!
//! `verbatim setup` declares this topology and every process verifies it. The arguments prevent the loss of
//! messages:
//!
//! - *quorum* queues only, because a classic queue loses confirmed messages with its node;
//! - *reject-publish*, because `drop-head`, the default, drops confirmed messages, and because
//!   at-least-once dead-lettering needs it;
//! - an explicit delivery limit: without one RabbitMQ 3.10 to 3.13 has no limit, 4.0 and later drop a
//!   message after 20 redeliveries, and `-1` on 3.10.8 deletes messages at their first requeue.
//!
//! A work queue is a row of `work_queues!` in `domain/src/fleet.rs`, any other queue a line of `table.rs`; [`declare`], [`verify`] and [`crate::inspect`] follow.

mod difference;
mod setup;
mod table;

pub use difference::{Difference, Kind};
pub use domain::fleet::WorkQueue;
pub use setup::{TopologyError, declare, verify, verify_and_bind};
pub use table::{
    ACTIONS, Argument, Binding, EVENTS, EXCHANGES, Exchange, Purpose, Queue, REQUESTS, RetryQueue,
    Routing, UNROUTED, bindings, queue_of, queues,
};
