//! `bench close`: many conversations closing at once, and what the save path feels of it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use testkit::fleet::Worker;
use tokio::time::sleep;

use super::contestant::Contestant;
use super::drain::acknowledged;
use super::ground::{Ground, Load};
use super::report::{Goal, Table, goals, median};
use super::timeline::{Latency, Micros, Steady, Timeline, prepare};
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
const DISTURBED: Duration = Duration::from_secs(50);
/// How long it runs before the sessions end: its conversations are made, its plans are warm.
const WARM: Duration = Duration::from_secs(2);
/// How long a conversation waits for a reconnection: the sessions' ends, which all agents tell at once,
/// are over before the first conversation closes.
const GRACE: Duration = Duration::from_secs(3);
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
    undisturbed: Phase,
    /// While the sessions' ends arrive.
    ending: Phase,
    /// While the conversations close.
    closing: Phase,
    /// From the first session's end to the last conversation's.
    meanwhile: Phase,
}

/// A part of the load.
#[derive(Debug, Clone, Copy, Serialize)]
struct Phase {
    durable: Latency,
    hot: Latency,
}

/// One part of a round.
type Of = fn(&Round) -> Phase;

impl Phase {
    fn of(timeline: &Timeline) -> Self {
        Self { durable: timeline.durable(), hot: timeline.hot() }
    }
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
            round.meanwhile.durable.p99,
            round.undisturbed.durable.p99
        ));
        rounds.push(round);
    }
    let ratio =
        median(rounds.iter().map(|it| it.meanwhile.durable.p99 / it.undisturbed.durable.p99));
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
    let undisturbed = Phase::of(&quiet.finish(ground, LIMIT).await?.warm());

    let steady = load(rate * DISTURBED.as_secs(), 500);
    let steady = Steady::start(ground, "close000", rate, &steady).await?;
    sleep(WARM).await;
    let began = micros(ground, "clock_timestamp()").await?;
    ground.close_all(&spoken).await?;
    let due = began + i64::try_from(GRACE.as_micros())?;
    let timeline = steady.finish(ground, LIMIT).await?;
    let archived = "SELECT count(*) FROM conversations WHERE status = 'archived'";
    let archived: u64 = ground.sql(archived).await?.parse()?;
    let ended = micros(ground, "max(finalised_at) FROM conversations").await?;
    if archived < conversations || timeline.ended() < ended {
        bail!(
            "{archived} of {conversations} conversations were archived while messages were published \
             for {DISTURBED:?}; close fewer (--conversations)"
        );
    }
    let requested = micros(ground, "max(close_requested_at) FROM conversations").await?;
    if requested > due {
        bail!("the sessions' ends were still arriving when the first conversations were due");
    }
    let ending = Phase::of(&timeline.within(began..due));
    let closing = Phase::of(&timeline.within(due..ended));
    let meanwhile = Phase::of(&timeline.within(began..ended));

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
        let rate = median(self.rounds.iter().map(|it| it.conversations_per_second));
        say::line(&format!("  closed and archived: {rate:.0} conversations/s"));
        let mut table = Table::new(["", "durable p50", "p99", "p99.9", "hot p50", "p99", "p99.9"]);
        let phases: [(&str, Of); 4] = [
            ("undisturbed", |it| it.undisturbed),
            ("while sessions end", |it| it.ending),
            ("while conversations close", |it| it.closing),
            ("from first to last", |it| it.meanwhile),
        ];
        for (name, phase) in phases {
            let ms = |of: fn(Phase) -> f64| {
                format!("{:.2}", median(self.rounds.iter().map(|it| of(phase(it)))))
            };
            table.row([
                name.to_owned(),
                ms(|it| it.durable.p50),
                ms(|it| it.durable.p99),
                ms(|it| it.durable.p999),
                ms(|it| it.hot.p50),
                ms(|it| it.hot.p99),
                ms(|it| it.hot.p999),
            ]);
        }
        table.print();
        say::aside(&format!(
            "Milliseconds from the confirm. All sessions end at once; {} s later their conversations are due.",
            GRACE.as_secs()
        ));
    }
}
