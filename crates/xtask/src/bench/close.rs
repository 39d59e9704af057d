//! `bench close`: many conversations close at once, and how that slows down saving.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use domain::fleet;
use serde::Serialize;
use testkit::fleet::Worker;
use tokio::time::sleep;

use super::drain::acknowledged;
use super::environment::{Environment, Load};
use super::program::Program;
use super::report::{Goal, Table, goals, median};
use super::timeline::{Latency, Micros, Steady, Timeline, prepare};
use crate::say;

/// The options of `bench close`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Number of conversations that close at once
    #[arg(long, default_value_t = 5000)]
    conversations: u64,
    /// Messages per conversation
    #[arg(long, default_value_t = 20)]
    messages: u64,
    /// Messages per second for other conversations at the same time
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Number of rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// How long the save path is measured without closing.
const UNDISTURBED: Duration = Duration::from_secs(8);
/// How long it is measured with closing. Ending the sessions and closing takes a part of this time.
const DISTURBED: Duration = Duration::from_secs(50);
/// Warm-up before the sessions end, in which conversations are created and plans are cached.
const WARM: Duration = Duration::from_secs(2);
/// The grace period: long enough for all session ends to arrive before the first conversation closes.
const GRACE: Duration = Duration::from_secs(3);
/// Timeout of each step.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Serialize)]
struct Summary {
    rounds: Vec<Round>,
    goals: Vec<Goal>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Round {
    conversations_per_second: f64,
    undisturbed: Phase,
    /// While the session ends arrive.
    ending: Phase,
    /// While the conversations close.
    closing: Phase,
    /// From the first session end to the last close.
    disturbed: Phase,
}

/// The latencies in one part of a round.
#[derive(Debug, Clone, Copy, Serialize)]
struct Phase {
    durable: Latency,
    hot: Latency,
}

/// Selects a part of a round.
type Of = fn(&Round) -> Phase;

impl Phase {
    fn of(timeline: &Timeline) -> Self {
        Self { durable: timeline.durable(), hot: timeline.hot() }
    }
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let environment = Environment::open().await?;
    prepare(&environment).await?;
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        let round = run_round(&environment, options).await?;
        say::note(&format!(
            "round {number} of {}: {:.0} conversations/s closed; save p99 {:.1} ms, without closing {:.1} ms",
            options.rounds,
            round.conversations_per_second,
            round.disturbed.durable.p99,
            round.undisturbed.durable.p99
        ));
        rounds.push(round);
    }
    let ratio =
        median(rounds.iter().map(|it| it.disturbed.durable.p99 / it.undisturbed.durable.p99));
    let goals =
        vec![Goal::at_most("durable p99, both phases together / without closing", ratio, 2.0)];
    let summary = Summary { rounds, goals };
    if options.json {
        say::line(&serde_json::to_string_pretty(&summary)?);
    } else {
        summary.print(options);
    }
    Ok(())
}

async fn run_round(environment: &Environment, options: &Options) -> Result<Round> {
    let Options { conversations, messages, rate, .. } = *options;
    let load = |messages, conversations| Load {
        messages,
        conversations,
        body_bytes: 515,
        from: 0,
        batch: 1,
    };
    let closed_load = load(conversations * messages, conversations);
    environment.clear().await?;
    let save_workers = [Program::Worker.start(environment, 1)?];
    environment.preload(&closed_load).await?;
    acknowledged(environment, &save_workers, closed_load.messages).await?;
    let grace = format!("{}s", GRACE.as_secs());
    let others: Vec<Worker> = [fleet::PERSISTENCE_MIGRATION_WORKER, fleet::STATISTICS_WORKER]
        .into_iter()
        .map(|it| environment.fleet.start_with(it.name(), &[("VERBATIM_CLOSE_GRACE", &grace)]))
        .collect::<Result<_>>()?;
    for worker in &others {
        worker.ready(LIMIT).await?;
    }
    environment.settle().await?;

    let undisturbed_load = load(rate * UNDISTURBED.as_secs(), 500);
    let steady = Steady::start(environment, "quiet000", rate, &undisturbed_load).await?;
    let undisturbed = Phase::of(&steady.finish(environment, LIMIT).await?.warm());

    let steady = load(rate * DISTURBED.as_secs(), 500);
    let steady = Steady::start(environment, "close000", rate, &steady).await?;
    sleep(WARM).await;
    let began = micros(environment, "clock_timestamp()").await?;
    environment.close_all(&closed_load).await?;
    let due = began + i64::try_from(GRACE.as_micros())?;
    let timeline = steady.finish(environment, LIMIT).await?;
    let archived = "SELECT count(*) FROM conversations WHERE status = 'archived'";
    let archived: u64 = environment.sql(archived).await?.parse()?;
    let ended = micros(environment, "max(finalised_at) FROM conversations").await?;
    if archived < conversations || timeline.ended() < ended {
        bail!(
            "{archived} of {conversations} conversations were archived while messages were published \
             for {DISTURBED:?}; reduce --conversations"
        );
    }
    let requested = micros(environment, "max(close_requested_at) FROM conversations").await?;
    if requested > due {
        bail!(
            "session ends still arrived when the first conversations were due; reduce --conversations"
        );
    }
    let ending = Phase::of(&timeline.within(began..due));
    let closing = Phase::of(&timeline.within(due..ended));
    let disturbed = Phase::of(&timeline.within(began..ended));

    for one in save_workers {
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
    Ok(Round { conversations_per_second, undisturbed, ending, closing, disturbed })
}

/// The value of an SQL expression that returns a time.
async fn micros(environment: &Environment, time: &str) -> Result<Micros> {
    let sql =
        format!("SELECT (extract(epoch FROM at) * 1000000)::bigint FROM (SELECT {time}) AS t (at)");
    let micros = environment.sql(&sql).await?;
    micros.parse().with_context(|| format!("{micros:?} is not a time"))
}

impl Summary {
    fn print(&self, options: &Options) {
        let Options { conversations, messages, rate, .. } = options;
        say::heading(&format!(
            "{conversations} conversations of {messages} messages close at once while {rate} messages/s \
             are saved; median of {} rounds",
            self.rounds.len()
        ));
        goals(&self.goals);
        let rate = median(self.rounds.iter().map(|it| it.conversations_per_second));
        say::line(&format!("  closed and archived: {rate:.0} conversations/s"));
        let mut table = Table::new(["", "durable p50", "p99", "p99.9", "hot p50", "p99", "p99.9"]);
        let phases: [(&str, Of); 4] = [
            ("without closing", |it| it.undisturbed),
            ("while sessions end", |it| it.ending),
            ("while conversations close", |it| it.closing),
            ("both phases together", |it| it.disturbed),
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
            "Milliseconds from the confirm. All sessions end at once; their conversations are due to close {} s later.",
            GRACE.as_secs()
        ));
    }
}
