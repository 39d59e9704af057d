//! Support for the system tests: whole fleets of the product's own processes on real servers.
//!
//! A test starts a [`Scenario`], publishes as an [`Agent`], and looks at what came of it from
//! outside: as a reader with Redis and from PostgreSQL alone ([`TestReader`]), by SQL, by the events
//! that others would see ([`RabbitAdmin`]), and by the workers' own `/metrics` ([`Counts`]). A [`Ledger`]
//! reconciles what was confirmed with what there is: nothing lost, nothing doubled. [`chaos`] breaks
//! everything at random meanwhile.
//!
//! Invariant: nothing here waits without a limit or sleeps to let something happen; every wait ends
//! with the state that it is for, or says the last one it saw.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "test support: a failure here is the failure of the test"
)]

mod agent;
pub mod chaos;
mod counts;
mod ledger;
mod rabbit;
mod reader;
mod running;
mod scenario;

use std::time::Duration;

pub use agent::{Agent, at, closed, key, message, opened};
pub use counts::Counts;
pub use ledger::{Findings, Ledger};
pub use rabbit::RabbitAdmin;
pub use reader::TestReader;
pub use running::Running;
pub use scenario::{MIGRATION, SAVER, STATISTICS, Scenario};

/// Longer than anything here takes on two busy cores, short enough to notice a test that hangs.
pub const LIMIT: Duration = Duration::from_secs(90);
