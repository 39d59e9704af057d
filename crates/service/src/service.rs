//! [`Service`]: the handle with which a process spawns its tasks and adds its HTTP routes.

use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use domain::clock::Clock;
use metrics::Metrics;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::readiness::{Check, Readiness};
use crate::tasks::{Stage, Tasks};
use domain::fleet::Process;

/// The running process. Clones refer to the same process.
#[derive(Clone)]
pub struct Service {
    pub(crate) process: Process,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    /// The routes that the process added to the built-in ones.
    pub(crate) routes: Arc<RwLock<Router>>,
}

impl Service {
    pub(crate) fn new(process: Process, metrics: Metrics) -> Self {
        Self {
            process,
            readiness: Readiness::new(metrics.clone()),
            clock: clock::system(),
            tasks: Tasks::new(metrics.clone()),
            routes: Arc::default(),
            metrics,
        }
    }

    /// Spawns the future that `factory` returns, and restarts it whenever it ends before the process
    /// stops. Panics are caught, counted and logged.
    ///
    /// The token is cancelled when the shutdown begins. The task then finishes its current work and
    /// returns; the process waits for it until the drain deadline.
    pub fn supervise<F, T>(&self, name: &'static str, factory: F)
    where
        F: Fn(CancellationToken) -> T + Send + Sync + 'static,
        T: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.tasks.spawn(Stage::Work, name, factory);
    }

    /// A token that is cancelled when the shutdown begins.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.tasks.stopping()
    }

    /// Like [`Self::supervise`], for tasks that other tasks depend on (a watcher, a publisher): the token
    /// is cancelled only after every task of [`Self::supervise`] has finished.
    pub fn support<F, T>(&self, name: &'static str, factory: F)
    where
        F: Fn(CancellationToken) -> T + Send + Sync + 'static,
        T: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.tasks.spawn(Stage::Support, name, factory);
    }

    /// For [`Self::supervise`] and [`Self::support`], the factory of a task that maintains a check of `/readyz`.
    /// Each run of the task has its own check, which is not ready when the run has ended.
    pub fn checked<F, T>(
        &self,
        check: &'static str,
        factory: F,
    ) -> impl Fn(CancellationToken) -> T + Send + Sync + use<F, T>
    where
        F: Fn(CancellationToken, Check) -> T + Send + Sync,
    {
        let readiness = self.readiness.clone();
        move |stopping| factory(stopping, readiness.check(check))
    }

    /// Serves these routes beside `/livez`, `/readyz` and `/metrics`, on the same address. They cannot replace
    /// those. Several calls add up. The drain waits for requests that are being answered.
    ///
    /// # Panics
    /// Two routes of the process have the same path and method.
    pub fn serve(&self, routes: Router) {
        let mut all = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        *all = std::mem::take(&mut *all).merge(routes);
    }

    /// The metrics of this process.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::TaskState;

    #[tokio::test(start_paused = true)]
    async fn the_check_of_a_task_that_panicked_is_not_ready_until_its_next_run_sets_it() {
        let service = Service::new(domain::fleet::MESSAGE_SAVE_WORKER, Metrics::new());
        let (report, mut reports) = tokio::sync::mpsc::unbounded_channel();
        let run = move |_, check: Check| {
            let report = report.clone();
            async move {
                check.ready();
                report.send(()).expect("the test listens");
                panic!("a bug");
            }
        };
        service.supervise("consumer", service.checked("queue", run));
        for failures in 1..=2 {
            reports.recv().await.expect("it runs");
            while service.tasks.states() != [("consumer", TaskState::Failed { failures })] {
                tokio::task::yield_now().await;
            }
            let state = &service.readiness.states()["queue"];
            assert_eq!(state.reason.as_deref(), Some("stopped"));
        }
    }
}
