//! [`Service`]: the handle with which a process spawns its tasks and adds its HTTP routes.

use std::future::Future;
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
    pub(crate) routes: Routes,
}

impl Service {
    pub(crate) fn new(process: Process, metrics: Metrics) -> Self {
        Self {
            process,
            readiness: Readiness::new(metrics.clone()),
            clock: clock::system(),
            tasks: Tasks::new(metrics.clone()),
            routes: Routes::default(),
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

    /// Like [`Self::supervise`], for tasks that other tasks depend on (a watcher, a publisher): the token
    /// is cancelled only after every task of [`Self::supervise`] has finished.
    pub fn support<F, T>(&self, name: &'static str, factory: F)
    where
        F: Fn(CancellationToken) -> T + Send + Sync + 'static,
        T: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.tasks.spawn(Stage::Support, name, factory);
    }

    /// Registers a check of `/readyz`. Keep the handle: a dropped check becomes not ready.
    pub fn check(&self, name: &'static str) -> Check {
        self.readiness.check(name)
    }

    /// Serves these routes beside `/livez`, `/readyz` and `/metrics`, on the same address. They cannot replace
    /// those. Several calls add up. The drain waits for requests that are being answered.
    ///
    /// # Panics
    /// Two routes of the process have the same path and method.
    pub fn serve(&self, routes: Router) {
        self.routes.add(routes);
    }

    /// A token that is cancelled when the shutdown begins.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.tasks.stopping(Stage::Work)
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

/// The routes that a process added to the built-in ones. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Routes(Arc<RwLock<Router>>);

impl Routes {
    pub(crate) fn add(&self, routes: Router) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *all = std::mem::take(&mut *all).merge(routes);
    }

    pub(crate) fn all(&self) -> Router {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
