//! The types of everything that the fleet sends, stores and decides: ids, actions, messages,
//! outcomes.
//!
//! Pure: nothing here does I/O, reads a clock or generates a random number. These are arguments, so
//! that the same bytes give the same result on every replica.

pub mod action;
pub mod amqp_users;
pub mod causes;
pub mod clock;
pub mod decode;
pub mod envelope;
pub mod event;
pub mod excerpt;
pub mod failure;
pub mod failure_policy;
pub mod fleet;
pub mod ids;
pub mod json;
pub mod message;
mod named;
pub mod repeated;
pub mod reply;
pub mod session_event;
pub mod status;
pub mod sync;
pub mod time;
pub mod wire;
pub mod words;
