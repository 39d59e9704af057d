//! How soon every replica works again once a plain client could.
//!
//! The clock starts when a connection made by hand gets an answer to a read and a write from each of
//! the servers. A replica works when it says that it is ready and has done its own work since then: it
//! has settled a delivery otherwise than by giving it back, or has counted what the servers hold.

use std::fmt;
use std::time::Duration;

use broker::Endpoints;
use broker::inspect::Inspector;
use futures_util::future::join_all;
use testkit::fleet::Worker;
use testkit::servers::Kind;
use testkit::wait::{eventually, until};
use tokio::time::Instant;

use super::Ground;
use super::plan::{Fault, Role};
use super::replicas::Slot;
use crate::{Counts, LIMIT};

/// The promises of `docs/delivery.md`: after an outage, and after a silence.
const AFTER_AN_OUTAGE: Duration = Duration::from_secs(5);
const AFTER_A_SILENCE: Duration = Duration::from_secs(25);

/// How long one fault was felt.
#[derive(Debug, Clone)]
pub(super) struct Recovery {
    pub(super) fault: Fault,
    /// By the slowest replica; `None` when one did not work again at all.
    pub(super) took: Option<Duration>,
    /// Why not, or who was the slowest.
    said: String,
}

impl Recovery {
    pub(super) async fn measure(ground: &Ground, fault: Fault) -> Self {
        eventually("plain clients to be served", LIMIT, async || ground.serves().await).await;
        let returned = Instant::now();
        let slots = ground.replicas.slots();
        let (mut slowest, mut said) = (Duration::ZERO, String::new());
        // All at once: each is timed by itself.
        let works = join_all(slots.iter().map(|slot| works(slot, returned))).await;
        for (slot, worked) in slots.iter().zip(works) {
            match worked {
                Ok(took) if took >= slowest => {
                    (slowest, said) = (took, slot.replica.to_string());
                }
                Ok(_) => {}
                Err(said) => return Self { fault, took: None, said },
            }
        }
        Self { fault, took: Some(slowest), said }
    }

    pub(super) fn promised(&self) -> Duration {
        if self.fault.is_silent() { AFTER_A_SILENCE } else { AFTER_AN_OUTAGE }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.took.is_some_and(|took| took <= self.promised())
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let promised = self.promised().as_secs();
        match self.took {
            Some(took) => write!(
                f,
                "all work again after {:.2} s (promised {promised}; slowest: {})",
                took.as_secs_f64(),
                self.said
            ),
            None => write!(f, "NOT WORKING (promised {promised} s): {}", self.said),
        }
    }
}

impl Ground {
    /// Waits until every replica is ready, so that the next fault is alone.
    pub(super) async fn all_work(&self) {
        eventually("plain clients to be served", LIMIT, async || self.serves().await).await;
        for slot in self.replicas.slots() {
            let worker = slot.worker.lock().await;
            worker.ready(LIMIT).await.expect("a worker that is ready after a storm");
        }
    }

    /// Whether a plain client can read and write everywhere.
    async fn serves(&self) -> Result<(), String> {
        let endpoints = Endpoints::parse(&self.scenario.amqp_url, "plain").expect("a URL");
        let depths = Inspector::new(endpoints).depths().await.map_err(|e| e.to_string())?;
        if let Some((queue, _)) = depths.iter().find(|(_, depth)| depth.is_none()) {
            return Err(format!("{queue} is missing"));
        }
        let database = self.scenario.server(Kind::PostgreSql);
        // Wants a transaction id: an answer says that writing is possible.
        let write = database.psql("postgres", "SELECT txid_current()").await;
        write.map_err(|error| format!("{error:#}"))?;
        let redis = &self.scenario.redis().nodes()[0];
        match redis.redis(&["SET", "plain", "1"]).await {
            Ok(answer) if answer.starts_with("+OK") => Ok(()),
            // A node of a cluster that serves.
            Ok(answer) if answer.starts_with("-MOVED") => Ok(()),
            Ok(answer) => Err(answer),
            Err(error) => Err(format!("{error:#}")),
        }
    }
}

/// How long after `returned` the replica in this slot worked.
async fn works(slot: &Slot, returned: Instant) -> Result<Duration, String> {
    let worker = slot.worker.lock().await;
    let role = slot.replica.role;
    let look =
        until(format!("{} to answer", slot.replica), LIMIT, async || done(&worker, role).await);
    let before = look.await.map_err(|timed_out| timed_out.to_string())?;
    let works = until(format!("{} to work", slot.replica), LIMIT, async || {
        let ready = worker.get("/readyz").await.map_err(|error| format!("{error:#}"))?;
        if ready.status != 200 {
            return Err(ready.body);
        }
        let now = done(&worker, role).await?;
        let goes_on = now.iter().zip(&before).all(|(now, before)| now > before);
        if goes_on { Ok(()) } else { Err(format!("ready, and has done {now:?}")) }
    });
    works.await.map_err(|timed_out| timed_out.to_string())?;
    Ok(returned.elapsed())
}

/// What grows while a replica works.
async fn done(worker: &Worker, role: Role) -> Result<Vec<f64>, String> {
    let counts = Counts::look(worker).await?;
    let settled = |labels: &[_]| counts.sum("verbatim_deliveries_total", labels);
    let counted = |what| counts.sum("verbatim_counted_timestamp_seconds", &[("what", what)]);
    Ok(match role {
        Role::Saver | Role::Migration => {
            vec![settled(&[]) - settled(&[("outcome", "requeued")])]
        }
        // One of two may get no event for a while: conversations are closed by whoever sweeps.
        Role::Statistics => vec![counted("queues"), counted("rows")],
    })
}
