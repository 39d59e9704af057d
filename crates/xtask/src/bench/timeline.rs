//! When each message of a steady load was confirmed, durable and readable hot, by one machine's clock.
//!
//! Nobody polls, so nothing that is measured is slowed down by it. The publisher writes down when its
//! confirms came. Redis says what it executes and when (`MONITOR`). PostgreSQL remembers when each
//! transaction committed (`track_commit_timestamp`); it takes that time just before the flush of the
//! log, so the mean time of a flush is added, up to the moment at which Redis got the message: by then
//! it was durable.

use std::collections::HashMap;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use testkit::process::Process;
use testkit::servers::Kind;
use testkit::wait::until;

use super::ground::{Ground, Load};
use super::report::quantile;

/// Microseconds since 1970.
pub(crate) type Micros = i64;

/// How long the last messages may take after the publisher has ended.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// When the transaction of each message committed.
const COMMITTED: &str = "SELECT id || E'\\t' || \
     (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM message_rows";

/// A steady load that is being published and watched.
#[derive(Debug)]
pub(crate) struct Steady {
    publisher: Process,
    watcher: Process,
    confirms: PathBuf,
    appends: PathBuf,
}

/// What became of a steady load, message by message, in the order of the confirms.
#[derive(Debug)]
pub(crate) struct Timeline {
    messages: Vec<Moments>,
    /// The mean flush of PostgreSQL's log, in microseconds.
    flush: f64,
}

/// When a message was confirmed, committed, and appended to its hot copy.
#[derive(Debug, Clone, Copy)]
struct Moments {
    confirmed: Micros,
    committed: Micros,
    hot: Micros,
}

/// Times from a confirm to an event, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

/// Makes PostgreSQL remember what a timeline needs. That takes a restart, so it comes first.
pub(crate) async fn prepare(ground: &Ground) -> Result<()> {
    ground.sql("ALTER SYSTEM SET track_commit_timestamp = on").await?;
    ground.sql("ALTER SYSTEM SET track_wal_io_timing = on").await?;
    let postgresql = ground.server(Kind::PostgreSql);
    postgresql.stop().await?;
    postgresql.start().await
}

impl Steady {
    /// Starts to publish a load at so many messages a second, under a name of its own.
    pub(crate) async fn start(ground: &Ground, run: &str, rate: u64, load: &Load) -> Result<Self> {
        ground.sql("SELECT pg_stat_reset_shared('wal')").await?;
        let file = |what: &str| ground.fleet.dir().join(format!("{run}.{what}"));
        let (confirms, appends) = (file("confirms"), file("appends"));
        let count = load.messages.to_string();
        let watcher = ground.peer("watch", |command| {
            command.args(["--run", run, "--count", &count, "--out"]).arg(&appends);
        })?;
        until("the watcher of Redis", SETTLE_LIMIT, async || {
            if watcher.log().contains("watching") { Ok(()) } else { Err(watcher.log_tail()) }
        })
        .await?;
        let publisher = ground.peer("steady", |command| {
            command.args(["--rate", &rate.to_string(), "--count", &count, "--run", run]);
            command.args(load.shape()).arg("--out").arg(&confirms);
        })?;
        Ok(Self { publisher, watcher, confirms, appends })
    }

    /// Waits until all is published and has arrived.
    pub(crate) async fn finish(self, ground: &Ground, limit: Duration) -> Result<Timeline> {
        ended(&self.publisher, limit).await?;
        ended(&self.watcher, SETTLE_LIMIT).await?;
        let flush = ground
            .sql("SELECT coalesce(wal_sync_time * 1000 / nullif(wal_sync, 0), 0) FROM pg_stat_wal")
            .await?
            .parse()?;
        let committed = ground.sql(COMMITTED).await?;
        let committed = times(&committed)?;
        let appends = read(&self.appends)?;
        let hot = times(&appends)?;
        let mut messages = Vec::new();
        for line in read(&self.confirms)?.lines() {
            let (id, confirmed) = entry(line)?;
            messages.push(Moments {
                confirmed,
                committed: *committed.get(id).with_context(|| format!("{id} was not stored"))?,
                hot: *hot.get(id).with_context(|| format!("{id} was not appended"))?,
            });
        }
        messages.sort_unstable_by_key(|message| message.confirmed);
        Ok(Timeline { messages, flush })
    }
}

impl Timeline {
    /// The messages that were confirmed at certain moments.
    pub(crate) fn within(&self, moments: impl RangeBounds<Micros>) -> Self {
        let within = |message: &&Moments| moments.contains(&message.confirmed);
        let messages = self.messages.iter().filter(within).copied().collect();
        Self { messages, flush: self.flush }
    }

    /// When the last message was confirmed.
    pub(crate) fn ended(&self) -> Micros {
        self.messages.last().map_or(0, |message| message.confirmed)
    }

    /// The messages after the first second, in which connections and plans warm up.
    pub(crate) fn warm(&self) -> Self {
        let began = self.messages.first().map_or(0, |message| message.confirmed);
        self.within(began + 1_000_000..)
    }

    /// From the publisher's confirm to the commit, its flush included.
    pub(crate) fn durable(&self) -> Latency {
        self.latency(|it| {
            let flushed = micros(it.committed - it.confirmed) + self.flush;
            flushed.min(micros(it.hot - it.confirmed))
        })
    }

    /// From the publisher's confirm to the append to the hot copy.
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
    let (id, at) = line.split_once('\t').with_context(|| format!("no time in {line:?}"))?;
    Ok((id, at.parse()?))
}

#[expect(clippy::cast_precision_loss, reason = "differences far below 2^52")]
fn micros(difference: Micros) -> f64 {
    difference as f64
}
