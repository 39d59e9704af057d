//! The read replica: whether it may answer a request, and how stale the answer is.
//!
//! Two tasks ask the primary and the replica how far they are, every 250 ms, each on a connection of its own. What they
//! saw decides before a request whether the replica gets it. What each transaction of the request saw decides afterwards
//! whether the answer counts, so a server that was promoted or replaced in between is noticed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use database::{ApiDatabase, ApiReadReplica, Limits, ReplicaState, WalPosition};
use metrics::{Gauge, Metrics};
use service::Service;
use stores::{ApiDatabaseServer, ReadReplicaServer};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::lag::{Lag, Unusable};
use crate::settings::Settings;

/// How often both servers are asked how far they are.
const EVERY: Duration = Duration::from_millis(250);

/// How often the replica is asked while a request waits for a position.
const EVERY_WHILE_WAITED_FOR: Duration = Duration::from_millis(10);

/// How often a replica that cannot be used is verified.
const VERIFY_EVERY: Duration = Duration::from_secs(1);

/// Within which time the primary says how far it is.
const POSITION: Limits =
    Limits { time_out: Duration::from_secs(1), lock_time_out: Duration::from_secs(1) };

/// The read replica of one process of the API.
pub(crate) struct ReadReplica {
    server: ReadReplicaServer,
    /// One connection that no request takes.
    primary: ApiDatabase,
    /// How long a request waits for a position.
    wait: Duration,
    known: watch::Sender<Known>,
    /// Ends the pause of the task that asks the primary.
    ask_primary: Notify,
    /// Ends the pause of the task that asks the replica.
    ask_replica: Notify,
    /// How many requests wait for a position.
    waiting: AtomicUsize,
    metrics: Metrics,
}

/// What the tasks saw.
struct Known {
    lag: Lag,
    /// The state of the replica, or why it did not say it.
    replica: Result<ReplicaState, Arc<str>>,
}

/// Why the replica does not get a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// It cannot be used.
    Unusable,
    /// It has not replayed the position of the request.
    Behind,
}

impl Known {
    fn verdict(&self, now: Instant) -> Result<Duration, Reason> {
        let state = self.replica.as_ref().map_err(|text| Reason::Fault(Arc::clone(text)))?;
        self.lag.of(state, now).map_err(Reason::Unusable)
    }

    fn has_replayed(&self, after: WalPosition) -> bool {
        let state = self.replica.as_ref().ok();
        state.is_some_and(|it| it.history == after.history && it.replayed >= after.lsn)
    }
}

/// Why the replica cannot be used, for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Reason {
    #[error("{0}")]
    Unusable(Unusable),
    #[error("{0}")]
    Fault(Arc<str>),
}

impl ReadReplica {
    /// The replica that the settings name, if they name one.
    ///
    /// # Errors
    /// The URL is invalid, or both servers answer and are of different clusters.
    pub(crate) async fn open(
        service: &Service,
        settings: &Settings,
        primary: &ApiDatabaseServer,
    ) -> anyhow::Result<Option<Arc<Self>>> {
        let limits = settings.database();
        let server =
            ReadReplicaServer::of_service(service, &settings.access, &primary.secrets, limits)?;
        let Some(server) = server else { return Ok(None) };
        let known = Known {
            lag: Lag::new(settings.replica_max_lag),
            replica: Err("it was not asked yet".into()),
        };
        let replica = Arc::new(Self {
            server,
            primary: primary.database.apart(POSITION),
            wait: settings.replica_wait,
            known: watch::Sender::new(known),
            ask_primary: Notify::new(),
            ask_replica: Notify::new(),
            waiting: AtomicUsize::new(0),
            metrics: service.metrics().clone(),
        });
        replica.ask_primary().await;
        let is_verified = replica.ask_replica(false).await;
        if let Err(Reason::Unusable(fault @ Unusable::AnotherCluster)) = replica.verdict() {
            anyhow::bail!("the read replica (API_DATABASE_READ_URL): {fault}");
        }
        replica.spawn(service, is_verified);
        Ok(Some(replica))
    }

    fn spawn(self: &Arc<Self>, service: &Service, is_verified: bool) {
        let (primary, replica) = (Arc::clone(self), Arc::clone(self));
        service.support("primary-position", move |stopping| {
            let primary = Arc::clone(&primary);
            async move {
                stopping.run_until_cancelled(primary.keep_asking_primary()).await;
                Ok(())
            }
        });
        service.support("read-replica", move |stopping| {
            let replica = Arc::clone(&replica);
            async move {
                stopping.run_until_cancelled(replica.keep_asking_replica(is_verified)).await;
                Ok(())
            }
        });
    }

    /// Its connections for requests.
    pub(crate) fn connections(&self) -> ApiReadReplica {
        self.server.replica.clone()
    }

    /// Whether the replica gets a request that wants to see what was written up to a position; waits for that.
    ///
    /// # Errors
    /// The primary has to answer.
    pub(crate) async fn admits(&self, after: Option<WalPosition>) -> Result<(), NotAdmitted> {
        if self.verdict().is_err() {
            return Err(NotAdmitted::Unusable);
        }
        let Some(after) = after else { return Ok(()) };
        let mut known = self.known.subscribe();
        if known.borrow().has_replayed(after) {
            return Ok(());
        }
        if known.borrow().lag.history() != Some(after.history) {
            return Err(NotAdmitted::Behind);
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        self.ask_replica.notify_one();
        match timeout(self.wait, known.wait_for(|known| known.has_replayed(after))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(NotAdmitted::Behind),
        }
    }

    /// How stale an answer may be whose transactions saw these states; `None`: it does not count, because it was not read
    /// from the replica, or the replica may not answer, or an answer after this position was wanted.
    pub(crate) fn lag_of(
        &self,
        states: &[ReplicaState],
        after: Option<WalPosition>,
    ) -> Option<Duration> {
        let (known, now) = (self.known.borrow(), Instant::now());
        let lag = |state: &ReplicaState| {
            let is_after =
                |it: WalPosition| it.history == state.history && it.lsn <= state.replayed;
            if after.is_none_or(is_after) { known.lag.of(state, now).ok() } else { None }
        };
        let lags: Option<Vec<Duration>> = states.iter().map(lag).collect();
        lags?.into_iter().max()
    }

    /// Returns when the replica no longer answers: then a request need not wait for it.
    pub(crate) async fn lost(&self) {
        let mut known = self.known.subscribe();
        // An error means that the process ends.
        known.wait_for(|known| known.replica.is_err()).await.ok();
    }

    /// A position of the primary from after this call: what was committed before is there or before. All that call at the
    /// same time share one question. `None`: the primary did not answer in time.
    pub(crate) async fn position(&self) -> Option<WalPosition> {
        let called = Instant::now();
        let is_later = |known: &Known| known.lag.newest().is_some_and(|(asked, _)| asked >= called);
        let mut known = self.known.subscribe();
        self.ask_primary.notify_one();
        let known = timeout(POSITION.time_out, known.wait_for(is_later)).await.ok()?.ok()?;
        known.lag.newest().map(|(_, position)| position)
    }

    fn verdict(&self) -> Result<Duration, Reason> {
        self.known.borrow().verdict(Instant::now())
    }

    async fn keep_asking_primary(&self) {
        loop {
            self.ask_primary().await;
            pause(EVERY, &self.ask_primary).await;
        }
    }

    async fn ask_primary(&self) {
        let before = self.known.borrow().replica.clone();
        let asked = Instant::now();
        // While it does not answer, answers of the replica become older. The check `postgresql` reports that.
        if let Ok(position) = self.primary.wal_position().await {
            self.known.send_modify(|known| {
                known.lag.asked(asked, position);
                if let Ok(before) = &before {
                    known.lag.compare(before);
                }
            });
        }
    }

    async fn keep_asking_replica(&self, mut is_verified: bool) {
        let mut reported = Err(Reason::Unusable(Unusable::Unknown));
        loop {
            is_verified = self.ask_replica(is_verified).await;
            self.report(&mut reported);
            if is_verified {
                let is_waited_for = self.waiting.load(Ordering::Relaxed) > 0;
                let every = if is_waited_for { EVERY_WHILE_WAITED_FOR } else { EVERY };
                pause(every, &self.ask_replica).await;
            } else {
                sleep(VERIFY_EVERY).await;
            }
        }
    }

    /// Asks the replica for its state. If it was not verified yet, checks that the role may do there what it needs and
    /// nothing else; a server of another cluster need not have the role. Returns whether it is verified.
    async fn ask_replica(&self, is_verified: bool) -> bool {
        let state = async {
            let state = self.server.state().await?;
            let primary = self.known.borrow().lag.history();
            let is_ours = primary.is_none_or(|it| it.system == state.history.system);
            if !is_verified && is_ours {
                self.server.verify().await?;
            }
            Ok(state)
        };
        let state = state.await.map_err(|fault: stores::Fault| Arc::from(fault.to_string()));
        let is_verified = state.is_ok();
        self.known.send_modify(|known| {
            match &state {
                Ok(state) => known.lag.replayed(state),
                Err(_) => known.lag.lost(),
            }
            known.replica = state;
        });
        is_verified
    }

    /// Sets the metrics. Logs whether the replica is used when that changed.
    fn report(&self, reported: &mut Result<(), Reason>) {
        let now = Instant::now();
        let lag = self.known.borrow().lag.of_replayed(now);
        let verdict = self.verdict().map(drop);
        let seconds = lag.map_or(f64::INFINITY, |it| it.as_secs_f64());
        self.metrics.set(Gauge::ReadReplicaLag, seconds);
        self.metrics.set(Gauge::ReadReplicaUsed, if verdict.is_ok() { 1.0 } else { 0.0 });
        if verdict == *reported {
            return;
        }
        match &verdict {
            Ok(()) => tracing::info!("the read replica (API_DATABASE_READ_URL) is used"),
            Err(reason) => tracing::warn!(
                error = %reason,
                "the read replica (API_DATABASE_READ_URL) is not used; the primary answers instead"
            ),
        }
        *reported = verdict;
    }
}

/// Waits this long, or until someone wants an answer at once.
async fn pause(length: Duration, wanted: &Notify) {
    timeout(length, wanted.notified()).await.ok();
}

/// A request that waits; counted until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
