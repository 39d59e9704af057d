//! Support for the system tests: the product's own processes on real servers.
//!
//! A test starts a [`Scenario`], publishes as an [`Agent`], and checks the result from outside: as a
//! reader with Redis and from PostgreSQL alone ([`TestReader`]), by SQL, by published events and
//! queues ([`RabbitAdmin`]), and by the workers' `/metrics` ([`Counts`]). [`PublishedActions`] compares
//! what was confirmed with what is stored: nothing lost, nothing duplicated. [`chaos`] injects random
//! faults meanwhile.
//!
//! Invariant: every wait has a limit, ends with the state that it waits for, and reports the last
//! state when it fails. Nothing sleeps to let something happen.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "test support: a failure here is the failure of the test"
)]

mod agent;
mod agent_action;
mod api_server;
pub mod chaos;
mod counts;
mod dead_letter;
mod published_actions;
mod rabbit;
mod random;
mod reader;
mod scenario;
mod server_set;

pub use agent::Agent;
pub use agent_action::{AgentAction, AsAction, SentIdentity};
pub use api_server::ApiServer;
pub use counts::Counts;
pub use dead_letter::{anonymous, as_dead_letter, as_dead_letter_for};
pub use fixtures::{LIMIT, at, closed, deleted, feedback, key_of, message, opened};
pub use published_actions::{Discrepancies, PublishedActions};
pub use rabbit::RabbitAdmin;
pub use random::Random;
pub use reader::TestReader;
pub use scenario::{API, COLLECTOR, MIGRATION, SAVER, STATISTICS, Scenario};
pub use server_set::ServerSet;
