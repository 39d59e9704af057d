//! `bench close`: many conversations closing at once, and what the save path feels of it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use testkit::fleet::Worker;
use tokio::time::{Instant, sleep};

use super::contestant::Contestant;
use super::drain::acknowledged;
use super::ground::{Ground, Load};
use super::report::{Goal, Table, goals, median};
use super::timeline::{Latency, Micros, Steady, prepare};
use crate::say;

/// The load.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Conversations that close at once
    #[arg(long, default_value_t = 5000)]
    conversations: u64,
    /// Messages of each
    #[arg(long, default_value_t = 20)]
    messages: u64,
    /// Messages a second of other conversations meanwhile
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// How long the save path is watched undisturbed.
const UNDISTURBED: Duration = Duration::from_secs(8);
/// How long it is watched while sessions end and conversations close: they take a part of this.
const DISTURBED: Duration = Duration::from_secs(45);
/// How long a conversation waits for a reconnection: the sessions' ends, which all agents tell at once,
/// are over before the first conversation closes.
const GRACE: Duration = Duration::from_secs(3);
/// How often the archived conversations are counted, after the load that is measured.
const LOOK: Duration = Duration::from_secs(1);
/// Nothing takes as long.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Serialize)]
struct Contest {
    rounds: Vec<Round>,
    goals: Vec<Goal>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Round {
    conversations_per_second: f64,
    undisturbed: Latency,
    /// While the sessions' ends arrive.
    ending: Latency,
    /// While the conversations close.
    closing: Latency,
    /// From the first session's end to the last conversation's.
    meanwhile: Latency,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let ground = Ground::open().await?;
    prepare(&ground).await?;
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        let round = play(&ground, options).await?;
        say::note(&format!(
            "round {number} of {}  {:.0} conversations/s  save p99 {:.1} ms, undisturbed {:.1} ms",
            options.rounds,
            round.conversations_per_second,
            round.meanwhile.p99,
            round.undisturbed.p99
        ));
        rounds.push(round);
    }
    let ratio = median(rounds.iter().map(|it| it.meanwhile.p99 / it.undisturbed.p99));
    let goals = vec![Goal::at_most("durable p99 meanwhile, to undisturbed", ratio, 2.0)];
    let contest = Contest { rounds, goals };
    if options.json {
        say::line(&serde_json::to_string_pretty(&contest)?);
    } else {
        contest.print(options);
    }
    Ok(())
}

async fn play(ground: &Ground, options: &Options) -> Result<Round> {
    let Options { conversations, messages, rate, .. } = *options;
    let load = |messages, conversations| Load { messages, conversations, body_bytes: 515, from: 0 };
    let spoken = load(conversations * messages, conversations);
    ground.clear().await?;
    let savers = [Contestant::Worker.start(ground)?];
    ground.preload(&spoken).await?;
    acknowledged(ground, &savers, spoken.messages).await?;
    let grace = format!("{}s", GRACE.as_secs());
    let others: Vec<Worker> = ["persistence-migration-worker", "statistics-worker"]
        .into_iter()
        .map(|program| ground.fleet.start_with(program, &[("VERBATIM_CLOSE_GRACE", &grace)]))
        .collect::<Result<_>>()?;
    for worker in &others {
        worker.ready(LIMIT).await?;
    }
    ground.settle().await?;

    let quiet = load(rate * UNDISTURBED.as_secs(), 500);
    let quiet = Steady::start(ground, "quiet000", rate, &quiet).await?;
    let undisturbed = quiet.finish(ground, LIMIT).await?.warm().durable();

    let steady = load(rate * DISTURBED.as_secs(), 500);
    let steady = Steady::start(ground, "close000", rate, &steady).await?;
    let began = micros(ground, "clock_timestamp()").await?;
    ground.close_all(&spoken).await?;
    let due = began + i64::try_from(GRACE.as_micros())?;
    let timeline = steady.finish(ground, LIMIT).await?;
    archived(ground, conversations).await?;
    let ended = micros(ground, "max(finalised_at) FROM conversations").await?;
    if timeline.ended() < ended {
        bail!("the conversations closed for longer than {DISTURBED:?}; close fewer");
    }
    let ending = timeline.within(began..due).durable();
    let closing = timeline.within(due..ended).durable();
    let meanwhile = timeline.within(began..ended).durable();

    for one in savers {
        one.stop().await?;
    }
    for worker in others {
        let status = worker.stop(LIMIT).await?;
        if !status.success() {
            bail!("{} ended with {status}", worker.name());
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let conversations_per_second = conversations as f64 / ((ended - due) as f64 / 1e6);
    Ok(Round { conversations_per_second, undisturbed, ending, closing, meanwhile })
}

/// Waits until so many conversations are archived.
async fn archived(ground: &Ground, conversations: u64) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let archived: u64 = ground
            .sql("SELECT count(*) FROM conversations WHERE status = 'archived'")
            .await?
            .parse()?;
        if archived >= conversations {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{archived} of {conversations} conversations are archived after {LIMIT:?}");
        }
        sleep(LOOK).await;
    }
}

/// A time of PostgreSQL.
async fn micros(ground: &Ground, time: &str) -> Result<Micros> {
    let sql =
        format!("SELECT (extract(epoch FROM at) * 1000000)::bigint FROM (SELECT {time}) AS t (at)");
    let micros = ground.sql(&sql).await?;
    micros.parse().with_context(|| format!("{micros:?} is no time"))
}

impl Contest {
    fn print(&self, options: &Options) {
        let Options { conversations, messages, rate, .. } = options;
        say::heading(&format!(
            "{conversations} conversations of {messages} messages closing at once, {rate} messages/s \
             meanwhile, median of {} rounds",
            self.rounds.len()
        ));
        goals(&self.goals);
        let median = |of: fn(&Round) -> f64| median(self.rounds.iter().map(of));
        let rate = median(|it| it.conversations_per_second);
        say::line(&format!("  closed and archived: {rate:.0} conversations/s"));
        let mut table = Table::new(["confirm to durable", "p50", "p99", "p99.9"]);
        let ms = |of: fn(&Round) -> f64| format!("{:.2}", median(of));
        table.row([
            "undisturbed".to_owned(),
            ms(|it| it.undisturbed.p50),
            ms(|it| it.undisturbed.p99),
            ms(|it| it.undisturbed.p999),
        ]);
        table.row([
            "while sessions end".to_owned(),
            ms(|it| it.ending.p50),
            ms(|it| it.ending.p99),
            ms(|it| it.ending.p999),
        ]);
        table.row([
            "while conversations close".to_owned(),
            ms(|it| it.closing.p50),
            ms(|it| it.closing.p99),
            ms(|it| it.closing.p999),
        ]);
        table.row([
            "from first to last".to_owned(),
            ms(|it| it.meanwhile.p50),
            ms(|it| it.meanwhile.p99),
            ms(|it| it.meanwhile.p999),
        ]);
        table.print();
        say::aside(&format!(
            "Milliseconds. All sessions end at once; {} s later their conversations are due.",
            GRACE.as_secs()
        ));
    }
}
