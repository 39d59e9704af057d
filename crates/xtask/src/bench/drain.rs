//! One program drains a full queue.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::environment::{Environment, Load};
use super::program::{Program, RunningProgram};
use super::usage;

/// How often the progress is read. A worker needs some 0.3 ms to render its metrics for that.
const POLL: Duration = Duration::from_millis(20);
/// Timeout of a drain.
const LIMIT: Duration = Duration::from_secs(300);

/// The cost of a drain. CPU times are in microseconds per message.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Drain {
    pub(crate) messages_per_second: f64,
    pub(crate) cpu: f64,
    pub(crate) rabbitmq_cpu: f64,
    pub(crate) redis_cpu: f64,
    pub(crate) postgresql_cpu: f64,
    /// Bytes of PostgreSQL's WAL per message.
    pub(crate) wal_bytes: f64,
    /// Peak memory of the replica that used the most, in megabytes.
    pub(crate) peak_memory_mb: f64,
}

impl Drain {
    /// The legend of the columns of [`Self::cells`].
    pub(crate) const LEGEND: &str =
        "CPU in µs and WAL in bytes per message. CPU of the program, then of each server.";

    /// The headings of [`Self::cells`].
    pub(crate) const TITLES: [&str; 8] =
        ["", "messages/s", "CPU µs", "RabbitMQ", "Redis", "PostgreSQL", "WAL bytes", "peak MB"];

    /// A row of a table; `value` gives the number of each column.
    pub(crate) fn cells(name: String, value: impl Fn(fn(&Self) -> f64) -> f64) -> [String; 8] {
        [
            name,
            format!("{:.0}", value(|it| it.messages_per_second)),
            format!("{:.1}", value(|it| it.cpu)),
            format!("{:.1}", value(|it| it.rabbitmq_cpu)),
            format!("{:.1}", value(|it| it.redis_cpu)),
            format!("{:.1}", value(|it| it.postgresql_cpu)),
            format!("{:.0}", value(|it| it.wal_bytes)),
            format!("{:.1}", value(|it| it.peak_memory_mb)),
        ]
    }
}

/// Progress and CPU times at one moment.
struct Moment {
    at: Instant,
    acknowledged: u64,
    cpu: Duration,
    /// In the order of [`Environment::kinds`].
    servers: [Duration; 3],
}

/// Fills the queue, drains it with one or more replicas of a program, and checks that every message was
/// stored. Existing data is kept.
pub(crate) async fn drain(
    environment: &Environment,
    program: Program,
    replicas: usize,
    load: &Load,
) -> Result<Drain> {
    let before = stored(environment).await?;
    environment.preload(load).await?;
    environment.settle().await?;
    let wal = wal_position(environment).await?;
    let mut running = Vec::new();
    for _ in 0..replicas {
        running.push(program.start(environment, load.batch)?);
    }
    // The measurement begins after the start, whose cost does not depend on the number of messages.
    let all_began = |each: &[u64]| each.iter().all(|count| *count > 0);
    let half_way = |each: &[u64]| each.iter().sum::<u64>() >= load.messages / 2;
    let first = reach(environment, &running, |each| all_began(each) || half_way(each)).await?;
    let last =
        reach(environment, &running, |each| each.iter().sum::<u64>() >= load.messages).await?;
    let wal = wal_position(environment).await? - wal;
    let mut peak_memory = 0;
    for one in &running {
        peak_memory = usage::peak_memory(one.pid())?.max(peak_memory);
    }
    for one in running {
        one.stop().await?;
    }
    if program.stores() {
        verify(environment, load, before).await?;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let [between, all, peak_memory] =
        [last.acknowledged - first.acknowledged, load.messages, peak_memory].map(|n| n as f64);
    let per_message = |later: Duration, earlier: Duration| {
        later.saturating_sub(earlier).as_secs_f64() * 1e6 / between
    };
    let [rabbitmq_cpu, redis_cpu, postgresql_cpu] =
        std::array::from_fn(|n| per_message(last.servers[n], first.servers[n]));
    Ok(Drain {
        messages_per_second: between / (last.at - first.at).as_secs_f64(),
        cpu: per_message(last.cpu, first.cpu),
        rabbitmq_cpu,
        redis_cpu,
        postgresql_cpu,
        wal_bytes: wal / all,
        peak_memory_mb: peak_memory / 1e6,
    })
}

/// Waits until this many messages are acknowledged.
pub(crate) async fn acknowledged(
    environment: &Environment,
    running: &[RunningProgram],
    messages: u64,
) -> Result<()> {
    reach(environment, running, |each| each.iter().sum::<u64>() >= messages).await.map(drop)
}

/// The first moment at which `enough` accepts the counts of the replicas.
async fn reach(
    environment: &Environment,
    running: &[RunningProgram],
    enough: impl Fn(&[u64]) -> bool,
) -> Result<Moment> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut each = Vec::with_capacity(running.len());
        for one in running {
            each.push(one.acknowledged().await?);
        }
        let acknowledged = each.iter().sum();
        if enough(&each) {
            let mut cpu = Duration::ZERO;
            for one in running {
                cpu += usage::cpu(one.pid())?;
            }
            let at = Instant::now();
            let mut servers = [Duration::ZERO; 3];
            for (used, kind) in servers.iter_mut().zip(environment.kinds) {
                *used = environment.cpu(kind)?;
            }
            return Ok(Moment { at, acknowledged, cpu, servers });
        }
        if Instant::now() > deadline {
            let tails: String = running.iter().map(RunningProgram::log_tail).collect();
            bail!("only {acknowledged} messages were acknowledged within {LIMIT:?}\n{tails}");
        }
        sleep(POLL).await;
    }
}

async fn wal_position(environment: &Environment) -> Result<f64> {
    let position = environment.sql("SELECT pg_current_wal_lsn() - '0/0'").await?;
    position.parse().with_context(|| format!("{position:?} is not a WAL position"))
}

/// The number of messages in PostgreSQL and in Redis.
async fn stored(environment: &Environment) -> Result<[u64; 2]> {
    let rows = environment.sql("SELECT count(*) FROM message_rows").await?;
    let rows = rows.parse().with_context(|| format!("{rows:?} is not a count"))?;
    Ok([rows, environment.hot_messages().await?])
}

/// Checks that the program has stored every message.
async fn verify(environment: &Environment, load: &Load, before: [u64; 2]) -> Result<()> {
    let after = stored(environment).await?;
    let [rows, hot] = std::array::from_fn(|n| after[n] - before[n]);
    if rows != load.messages || hot != load.messages {
        bail!("of {} messages {rows} are in PostgreSQL and {hot} in Redis", load.messages);
    }
    Ok(())
}
