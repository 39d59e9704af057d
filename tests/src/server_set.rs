//! Servers with all workers running on them. The tests of a process can share one set: each test uses
//! its own tenant.

use testkit::fleet::Worker;
use tokio::sync::OnceCell;

use crate::{COLLECTOR, MIGRATION, SAVER, STATISTICS, Scenario};

/// The servers of a scenario, with two savers and one worker of each other kind.
pub struct ServerSet {
    /// The two message-save-workers.
    pub savers: [Worker; 2],
    /// The persistence-migration-worker.
    pub migration: Worker,
    /// The statistics-worker.
    pub statistics: Worker,
    /// The dead-letter-worker.
    pub collector: Worker,
    /// Their servers. Declared last, so that it is dropped last: a worker that a failed test drops prints
    /// the end of its log, which is in a directory of the scenario.
    pub scenario: Scenario,
}

impl ServerSet {
    /// A private set; all workers are ready.
    ///
    /// # Panics
    /// When a worker does not become ready.
    pub async fn own() -> Self {
        let scenario = Scenario::new().await;
        let (one, two, migration, statistics, collector) = tokio::join!(
            scenario.start(SAVER),
            scenario.start(SAVER),
            scenario.start(MIGRATION),
            scenario.start(STATISTICS),
            scenario.start(COLLECTOR),
        );
        Self { savers: [one, two], migration, statistics, collector, scenario }
    }

    /// The set that the tests of this process share. A guard process ends it after this process.
    ///
    /// # Panics
    /// When a worker does not become ready.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<ServerSet> = OnceCell::const_new();
        SHARED.get_or_init(Self::own).await
    }
}
