//! One contestant emptying a full queue.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::contestant::{Contestant, Running};
use super::ground::{Ground, Load};
use super::usage;

/// How often a contestant is asked how far it is: a worker renders its whole page for that, some 0.3 ms.
const LOOK: Duration = Duration::from_millis(20);
/// Nobody takes as long.
const LIMIT: Duration = Duration::from_secs(300);

/// What a drain cost. Times are of CPU, in microseconds a message.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Drain {
    pub(crate) messages_per_second: f64,
    pub(crate) cpu: f64,
    pub(crate) rabbitmq_cpu: f64,
    pub(crate) redis_cpu: f64,
    pub(crate) postgresql_cpu: f64,
    /// Bytes that PostgreSQL wrote ahead, a message.
    pub(crate) wal_bytes: f64,
    /// Of the process that had the most, in megabytes.
    pub(crate) peak_memory_mb: f64,
}

impl Drain {
    /// What the columns of [`Self::cells`] mean.
    pub(crate) const LEGEND: &str =
        "CPU in µs and WAL in bytes a message; CPU of the contestant, then of the servers.";

    /// The titles of [`Self::cells`].
    pub(crate) const TITLES: [&str; 8] =
        ["", "messages/s", "CPU µs", "RabbitMQ", "Redis", "PostgreSQL", "WAL bytes", "peak MB"];

    /// A row of a table, from some value for every column.
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

/// Where everything stands at one moment.
struct Moment {
    at: Instant,
    acknowledged: u64,
    cpu: Duration,
    /// In the order of [`Ground::kinds`].
    servers: [Duration; 3],
}

/// Fills the queue, lets one or several replicas of a contestant drain it, and checks that everything
/// arrived. The stores keep what they had.
pub(crate) async fn drain(
    ground: &Ground,
    contestant: Contestant,
    replicas: usize,
    load: &Load,
) -> Result<Drain> {
    let before = stored(ground).await?;
    ground.preload(load).await?;
    ground.settle().await?;
    let wal = wal_position(ground).await?;
    let mut running = Vec::new();
    for _ in 0..replicas {
        running.push(contestant.start(ground)?);
    }
    // Starting costs the same for a few messages and for many, so it is over before the clock starts.
    let all_began = |each: &[u64]| each.iter().all(|count| *count > 0);
    let half_way = |each: &[u64]| each.iter().sum::<u64>() >= load.messages / 2;
    let first = reach(ground, &running, |each| all_began(each) || half_way(each)).await?;
    let last = reach(ground, &running, |each| each.iter().sum::<u64>() >= load.messages).await?;
    let wal = wal_position(ground).await? - wal;
    let mut peak_memory = 0;
    for one in &running {
        peak_memory = usage::peak_memory(one.pid())?.max(peak_memory);
    }
    for one in running {
        one.stop().await?;
    }
    if contestant.stores() {
        verify(ground, load, before).await?;
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

/// Waits until so many messages were acknowledged.
pub(crate) async fn acknowledged(
    ground: &Ground,
    running: &[Running],
    messages: u64,
) -> Result<()> {
    reach(ground, running, |each| each.iter().sum::<u64>() >= messages).await.map(drop)
}

/// The first moment at which enough messages were acknowledged by each.
async fn reach(
    ground: &Ground,
    running: &[Running],
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
            for (used, kind) in servers.iter_mut().zip(ground.kinds) {
                *used = ground.cpu(kind)?;
            }
            return Ok(Moment { at, acknowledged, cpu, servers });
        }
        if Instant::now() > deadline {
            let tails: String = running.iter().map(Running::log_tail).collect();
            bail!("only {acknowledged} were acknowledged after {LIMIT:?}\n{tails}");
        }
        sleep(LOOK).await;
    }
}

async fn wal_position(ground: &Ground) -> Result<f64> {
    let position = ground.sql("SELECT pg_current_wal_lsn() - '0/0'").await?;
    position.parse().with_context(|| format!("{position:?} is no position"))
}

/// How many messages PostgreSQL and Redis hold.
async fn stored(ground: &Ground) -> Result<[u64; 2]> {
    let rows = ground.sql("SELECT count(*) FROM message_rows").await?;
    let rows = rows.parse().with_context(|| format!("{rows:?} is no count"))?;
    Ok([rows, ground.hot_messages().await?])
}

/// A contestant that is fast because it loses messages has not won.
async fn verify(ground: &Ground, load: &Load, before: [u64; 2]) -> Result<()> {
    let after = stored(ground).await?;
    let [rows, hot] = std::array::from_fn(|n| after[n] - before[n]);
    if rows != load.messages || hot != load.messages {
        bail!("of {} messages {rows} are stored and {hot} are hot", load.messages);
    }
    Ok(())
}
