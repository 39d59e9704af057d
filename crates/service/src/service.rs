//! What a worker gets from the kit: the handle that it builds itself with.

use std::future::Future;

use domain::clock::Clock;
use metrics::Metrics;
use tokio_util::sync::CancellationToken;

use crate::process::Process;
use crate::readiness::{Check, Readiness};
use crate::tasks::{Stage, Tasks};

/// The running process. Clones are the same one.
#[derive(Clone)]
pub struct Service {
    pub(crate) process: Process,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
}

impl Service {
    /// Runs what `factory` makes until the process stops, and again whenever it ends before that: a
    /// panic is contained, counted and logged.
    ///
    /// The token is cancelled when the process begins to stop. The task then finishes what it has
    /// begun and returns; the drain deadline waits for it.
    pub fn supervise<F, T>(&self, name: &'static str, factory: F)
    where
        F: Fn(CancellationToken) -> T + Send + Sync + 'static,
        T: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.tasks.spawn(Stage::Work, name, factory);
    }

    /// Like [`Self::supervise`], for what the others lean on (a watcher, a publisher): its token is
    /// cancelled only when everything under [`Self::supervise`] has finished.
    pub fn support<F, T>(&self, name: &'static str, factory: F)
    where
        F: Fn(CancellationToken) -> T + Send + Sync + 'static,
        T: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.tasks.spawn(Stage::Support, name, factory);
    }

    /// Registers a check of `/readyz`. Its owner keeps the handle: a dropped check is not ready.
    pub fn check(&self, name: &'static str) -> Check {
        self.readiness.check(name)
    }

    /// Cancelled when the process begins to stop.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.tasks.stopping(Stage::Work)
    }

    /// Where this process counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The system's clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Which process this is.
    #[must_use]
    pub fn process(&self) -> Process {
        self.process
    }
}
