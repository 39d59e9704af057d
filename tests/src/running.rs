//! A whole fleet that many tests of a process share, each with a tenant of its own.

use testkit::fleet::Worker;
use tokio::sync::OnceCell;

use crate::{MIGRATION, SAVER, STATISTICS, Scenario};

/// Two savers, one worker of each other kind.
pub struct Running {
    /// The two that save messages.
    pub savers: [Worker; 2],
    /// The one that archives conversations.
    pub migration: Worker,
    /// The one that computes statistics and keeps dead letters.
    pub statistics: Worker,
    /// Their servers. Last: a worker that is dropped by a failed test shows the end of its log, which
    /// goes away with these.
    pub scenario: Scenario,
}

impl Running {
    /// A fleet of a test's own, ready.
    ///
    /// # Panics
    /// When a worker does not become ready.
    pub async fn own() -> Self {
        let scenario = Scenario::new().await;
        let (one, two, migration, statistics) = tokio::join!(
            scenario.start(SAVER),
            scenario.start(SAVER),
            scenario.start(MIGRATION),
            scenario.start(STATISTICS),
        );
        Self { savers: [one, two], migration, statistics, scenario }
    }

    /// The fleet of this test process. It ends with the process, by its guard.
    ///
    /// # Panics
    /// When a worker does not become ready.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Running> = OnceCell::const_new();
        SHARED.get_or_init(Self::own).await
    }
}
