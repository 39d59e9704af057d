//! How soon every replica works again after a fault.
//!
//! The clock starts when a new connection gets a response to a read and a write from each server. A
//! replica works when `/readyz` returns 200 and it has done work since then: a saver or a migration
//! worker has settled a delivery without a requeue; a statistics worker has refreshed the
//! statistics; a dead-letter worker has counted queues and rows; a conversation-api has answered a request that publishes
//! and one that reads.

use std::fmt;
use std::time::Duration;

use broker::Endpoints;
use broker::inspect::Inspector;
use futures_util::future::join_all;
use testkit::fleet::Worker;
use testkit::servers::Kind;
use testkit::wait::{eventually, until};
use tokio::time::Instant;

use super::environment::Environment;
use super::plan::{Fault, Role};
use super::replicas::Slot;
use crate::{Counts, LIMIT};

/// The time promised by `docs/delivery.md` after connections were closed.
const AFTER_AN_OUTAGE: Duration = Duration::from_secs(5);
/// The time promised by `docs/delivery.md` after connections stopped responding and stayed open.
const AFTER_SILENCE: Duration = Duration::from_secs(25);

/// How long it took until all replicas worked again after one fault.
#[derive(Debug, Clone)]
pub(super) struct Recovery {
    pub(super) fault: Fault,
    /// Of the slowest replica; `None` when one did not work again within [`LIMIT`].
    pub(super) took: Option<Duration>,
    /// The slowest replica, or the error.
    detail: String,
}

impl Recovery {
    pub(super) async fn measure(environment: &Environment, fault: Fault) -> Self {
        eventually("all servers to accept a read and a write", LIMIT, async || {
            environment.accept_requests().await
        })
        .await;
        let served = Instant::now();
        let slots = environment.replicas.slots();
        let (mut slowest, mut detail) = (Duration::ZERO, String::new());
        // Concurrently: each replica is timed by itself.
        let works = join_all(slots.iter().map(|slot| works(slot, served))).await;
        for (slot, worked) in slots.iter().zip(works) {
            match worked {
                Ok(took) if took >= slowest => {
                    (slowest, detail) = (took, slot.replica.to_string());
                }
                Ok(_) => {}
                Err(detail) => return Self { fault, took: None, detail },
            }
        }
        Self { fault, took: Some(slowest), detail }
    }

    pub(super) fn promised(&self) -> Duration {
        if self.fault.is_silent() { AFTER_SILENCE } else { AFTER_AN_OUTAGE }
    }

    pub(super) fn is_in_time(&self) -> bool {
        self.took.is_some_and(|took| took <= self.promised())
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let promised = self.promised().as_secs();
        match self.took {
            Some(took) => write!(
                f,
                "all replicas work again after {:.2} s (promised {promised} s; slowest: {})",
                took.as_secs_f64(),
                self.detail
            ),
            None => write!(f, "not recovered (promised {promised} s): {}", self.detail),
        }
    }
}

impl Environment {
    /// Waits until every replica is ready, so that the next fault is the only one.
    pub(super) async fn all_ready(&self) {
        eventually("all servers to accept a read and a write", LIMIT, async || {
            self.accept_requests().await
        })
        .await;
        for slot in self.replicas.slots() {
            let worker = slot.worker.lock().await;
            worker.ready(LIMIT).await.expect("a worker that is ready after overlapping faults");
        }
    }

    /// Whether a new connection can read and write on each server.
    async fn accept_requests(&self) -> Result<(), String> {
        let endpoints = Endpoints::parse(&self.scenario.amqp_url, "plain").expect("a URL");
        let depths = Inspector::new(endpoints).depths().await.map_err(|e| e.to_string())?;
        if let Some((queue, _)) = depths.iter().find(|(_, depth)| depth.is_none()) {
            return Err(format!("{queue} is missing"));
        }
        let database = self.scenario.server(Kind::PostgreSql);
        // Needs a transaction id: it succeeds only where writes are possible.
        let write = database.psql("postgres", "SELECT txid_current()").await;
        write.map_err(|error| format!("{error:#}"))?;
        let redis = &self.scenario.redis().nodes()[0];
        match redis.redis(&["SET", "plain", "1"]).await {
            Ok(answer) if answer.starts_with("+OK") => Ok(()),
            // From a node of a cluster that accepts requests.
            Ok(answer) if answer.starts_with("-MOVED") => Ok(()),
            Ok(answer) => Err(answer),
            Err(error) => Err(format!("{error:#}")),
        }
    }
}

/// How long after `served` the replica in this slot worked.
async fn works(slot: &Slot, served: Instant) -> Result<Duration, String> {
    let worker = slot.worker.lock().await;
    let role = slot.replica.role;
    let first = until(format!("/metrics of the {}", slot.replica), LIMIT, async || {
        work_done(&worker, role).await
    });
    let before = first.await.map_err(|timed_out| timed_out.to_string())?;
    let works = until(format!("the {} to work", slot.replica), LIMIT, async || {
        let ready = worker.get("/readyz").await.map_err(|error| format!("{error:#}"))?;
        if ready.status != 200 {
            return Err(ready.body);
        }
        let now = work_done(&worker, role).await?;
        let progressed = now.iter().zip(&before).all(|(now, before)| now > before);
        if progressed {
            Ok(())
        } else {
            Err(format!("ready, but no work since {before:?}: {now:?}"))
        }
    });
    works.await.map_err(|timed_out| timed_out.to_string())?;
    Ok(served.elapsed())
}

/// Counts and times that grow while a replica works.
async fn work_done(worker: &Worker, role: Role) -> Result<Vec<f64>, String> {
    let counts = Counts::try_of(worker).await?;
    let settled = |labels: &[_]| counts.sum("verbatim_deliveries_total", labels);
    let counted = |what| counts.sum("verbatim_counted_timestamp_seconds", &[("what", what)]);
    let answered = |endpoint| {
        let labels = [("endpoint", endpoint), ("status", "succeeded")];
        counts.sum("verbatim_http_requests_total", &labels)
    };
    Ok(match role {
        Role::Saver | Role::Migration => {
            vec![settled(&[]) - settled(&[("outcome", "requeued")])]
        }
        // One of two replicas may receive no events for a while, but both look for stale statistics.
        Role::Statistics => {
            vec![counts.sum("verbatim_statistics_refreshed_timestamp_seconds", &[])]
        }
        Role::Collector => vec![counted("queues"), counted("rows")],
        Role::Api => vec![answered("publish_actions"), answered("read_conversation")],
    })
}
