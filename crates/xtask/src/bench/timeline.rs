//! When each message of a steady load was confirmed, durable, and in Redis, by the clock of one machine.
//!
//! The measurement does not poll, so it does not slow down the servers:
//!
//! | time | source |
//! |---|---|
//! | confirmed | the publisher records the time of each confirm |
//! | durable | PostgreSQL's `track_commit_timestamp`, taken just before the flush of the WAL, plus the mean time of a flush; at most the hot time, because the worker appends to Redis after the commit |
//! | hot | Redis's `MONITOR` |

use std::collections::HashMap;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use testkit::process::Process;
use testkit::servers::Kind;
use testkit::wait::until;

use super::environment::{Environment, Load};
use super::report::quantile;

/// Microseconds since 1970.
pub(crate) type Micros = i64;

/// Timeout for the last messages after the publisher has ended.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// The commit time of each message's transaction.
const COMMITTED: &str = "SELECT id || E'\\t' || \
     (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM message_rows";

/// A steady load that is being published and measured.
#[derive(Debug)]
pub(crate) struct Steady {
    publisher: Process,
    watcher: Process,
    confirms: PathBuf,
    appends: PathBuf,
}

/// The times of each message of a steady load, in the order of the confirms.
#[derive(Debug)]
pub(crate) struct Timeline {
    messages: Vec<Moments>,
    /// The mean flush of PostgreSQL's WAL, in microseconds.
    flush: f64,
}

/// When a message was confirmed, committed, and appended to its hot copy in Redis.
#[derive(Debug, Clone, Copy)]
struct Moments {
    confirmed: Micros,
    committed: Micros,
    hot: Micros,
}

/// Quantiles of the time from the confirm to an event, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

/// Configures PostgreSQL to record commit and flush times, and restarts it.
pub(crate) async fn prepare(environment: &Environment) -> Result<()> {
    environment.sql("ALTER SYSTEM SET track_commit_timestamp = on").await?;
    environment.sql("ALTER SYSTEM SET track_wal_io_timing = on").await?;
    let postgresql = environment.server(Kind::PostgreSql);
    postgresql.stop().await?;
    postgresql.start().await
}

impl Steady {
    /// Starts to publish a load at `rate` messages per second. The ids of its messages contain `run`.
    pub(crate) async fn start(
        environment: &Environment,
        run: &str,
        rate: u64,
        load: &Load,
    ) -> Result<Self> {
        environment.sql("SELECT pg_stat_reset_shared('wal')").await?;
        let file = |what: &str| environment.fleet.dir().join(format!("{run}.{what}"));
        let (confirms, appends) = (file("confirms"), file("appends"));
        let count = load.messages.to_string();
        let watcher = environment.peer("watch", |command| {
            command.args(["--run", run, "--count", &count, "--out"]).arg(&appends);
        })?;
        until("the watcher of Redis", SETTLE_LIMIT, async || {
            if watcher.log().contains("watching") { Ok(()) } else { Err(watcher.log_tail()) }
        })
        .await?;
        let publisher = environment.peer("steady", |command| {
            command.args(["--rate", &rate.to_string(), "--count", &count, "--run", run]);
            command.args(load.shape()).arg("--out").arg(&confirms);
        })?;
        Ok(Self { publisher, watcher, confirms, appends })
    }

    /// Waits until every message is published, stored and appended.
    pub(crate) async fn finish(
        self,
        environment: &Environment,
        limit: Duration,
    ) -> Result<Timeline> {
        ended(&self.publisher, limit).await?;
        ended(&self.watcher, SETTLE_LIMIT).await?;
        let flush = environment
            .sql("SELECT coalesce(wal_sync_time * 1000 / nullif(wal_sync, 0), 0) FROM pg_stat_wal")
            .await?
            .parse()?;
        let committed = environment.sql(COMMITTED).await?;
        let committed = times(&committed)?;
        let appends = read(&self.appends)?;
        let hot = times(&appends)?;
        let mut messages = Vec::new();
        for line in read(&self.confirms)?.lines() {
            let (id, confirmed) = entry(line)?;
            messages.push(Moments {
                confirmed,
                committed: *committed
                    .get(id)
                    .with_context(|| format!("message {id} is not in PostgreSQL"))?,
                hot: *hot
                    .get(id)
                    .with_context(|| format!("message {id} was not appended in Redis"))?,
            });
        }
        messages.sort_unstable_by_key(|message| message.confirmed);
        Ok(Timeline { messages, flush })
    }
}

impl Timeline {
    /// The messages that were confirmed within these times.
    pub(crate) fn within(&self, moments: impl RangeBounds<Micros>) -> Self {
        let within = |message: &&Moments| moments.contains(&message.confirmed);
        let messages = self.messages.iter().filter(within).copied().collect();
        Self { messages, flush: self.flush }
    }

    /// When the last message was confirmed.
    pub(crate) fn ended(&self) -> Micros {
        self.messages.last().map_or(0, |message| message.confirmed)
    }

    /// The messages after the first second, which is the warm-up of connections and plans.
    pub(crate) fn warm(&self) -> Self {
        let began = self.messages.first().map_or(0, |message| message.confirmed);
        self.within(began + 1_000_000..)
    }

    /// From the confirm to the commit, including the flush.
    pub(crate) fn durable(&self) -> Latency {
        self.latency(|it| {
            let flushed = micros(it.committed - it.confirmed) + self.flush;
            flushed.min(micros(it.hot - it.confirmed))
        })
    }

    /// From the confirm to the append to the hot copy.
    pub(crate) fn hot(&self) -> Latency {
        self.latency(|it| micros(it.hot - it.confirmed))
    }

    fn latency(&self, of: impl Fn(&Moments) -> f64) -> Latency {
        let mut all: Vec<f64> = self.messages.iter().map(|it| of(it) / 1000.0).collect();
        let mut at = |share| quantile(&mut all, share);
        Latency { p50: at(0.5), p99: at(0.99), p999: at(0.999) }
    }
}

async fn ended(process: &Process, limit: Duration) -> Result<()> {
    let status = process.wait(limit).await.with_context(|| process.log_tail())?;
    if !status.success() {
        bail!("{} ended with {status}:\n{}", process.name(), process.log_tail());
    }
    Ok(())
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| file.display().to_string())
}

fn times(text: &str) -> Result<HashMap<&str, Micros>> {
    text.lines().map(entry).collect()
}

fn entry(line: &str) -> Result<(&str, Micros)> {
    let (id, at) =
        line.split_once('\t').with_context(|| format!("the line {line:?} has no time"))?;
    Ok((id, at.parse()?))
}

#[expect(clippy::cast_precision_loss, reason = "differences far below 2^52")]
fn micros(difference: Micros) -> f64 {
    difference as f64
}
