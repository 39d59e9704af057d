//! `bench latency`: the time from a message's confirm until it is durable, and until it is in Redis.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::drain::acknowledged;
use super::environment::{Environment, Load};
use super::program::Program;
use super::report::{Goal, Table, goals, median};
use super::timeline::{Latency, Steady, prepare};
use crate::say;

/// The options of `bench latency`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Steady rates, in messages per second
    #[arg(long, value_delimiter = ',', default_value = "1000,5000")]
    rates: Vec<u64>,
    /// Duration of each rate, in seconds
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Number of conversations that the messages are distributed over
    #[arg(long, default_value_t = 500)]
    conversations: u64,
    /// Size of a body in bytes
    #[arg(long, default_value_t = 515)]
    body_bytes: usize,
    /// Number of rounds; in each round every program runs once at each rate
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Messages of the warm-up, in which connections are opened and statements prepared.
const WARM_UP: u64 = 500;

/// A rate at which each message is handled by itself, in messages per second.
const IDLE_RATE: u64 = 20;

/// Additional time for the publisher to end.
const SLACK: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize)]
struct Summary {
    rounds: Vec<Vec<Pair>>,
    goals: Vec<Goal>,
}

/// Both programs at one rate, in milliseconds.
#[derive(Debug, Serialize)]
struct Pair {
    rate: u64,
    ideal: Measured,
    worker: Measured,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Measured {
    durable: Latency,
    hot: Latency,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let environment = Environment::open().await?;
    prepare(&environment).await?;
    let mut summary = Summary { rounds: Vec::new(), goals: Vec::new() };
    for number in 1..=options.rounds {
        let mut pairs = Vec::new();
        for &rate in [IDLE_RATE].iter().chain(&options.rates) {
            let ideal = measure(&environment, Program::Ideal, rate, options).await?;
            let worker = measure(&environment, Program::Worker, rate, options).await?;
            say::note(&format!(
                "round {number} of {}, {rate} messages/s: durable p50/p99 ideal {:.1}/{:.1} ms, worker {:.1}/{:.1} ms",
                options.rounds,
                ideal.durable.p50,
                ideal.durable.p99,
                worker.durable.p50,
                worker.durable.p99,
            ));
            pairs.push(Pair { rate, ideal, worker });
        }
        summary.rounds.push(pairs);
    }
    summary.goals = summary.goals(&options.rates);
    if options.json {
        say::line(&serde_json::to_string_pretty(&summary)?);
    } else {
        summary.print(&options.rates);
    }
    Ok(())
}

async fn measure(
    environment: &Environment,
    program: Program,
    rate: u64,
    options: &Options,
) -> Result<Measured> {
    let Options { seconds, conversations, body_bytes, .. } = *options;
    let load = |messages| Load { messages, conversations, body_bytes, from: 0, batch: 1 };
    environment.clear().await?;
    environment.settle().await?;
    let running = [program.start(environment, 1)?];
    environment.preload(&load(WARM_UP)).await?;
    acknowledged(environment, &running, WARM_UP).await?;
    let steady = Steady::start(environment, "steady00", rate, &load(rate * seconds)).await?;
    let timeline = steady.finish(environment, Duration::from_secs(seconds) + SLACK).await?.warm();
    for one in running {
        one.stop().await?;
    }
    Ok(Measured { durable: timeline.durable(), hot: timeline.hot() })
}

impl Summary {
    fn median(&self, rate: u64, of: impl Fn(&Pair) -> f64) -> f64 {
        median(self.rounds.iter().flatten().filter(|pair| pair.rate == rate).map(of))
    }

    fn goals(&self, rates: &[u64]) -> Vec<Goal> {
        let idle = self.median(IDLE_RATE, |it| it.worker.durable.p50 - it.ideal.durable.p50);
        let mut goals = vec![Goal::at_most(
            format!("durable p50 at {IDLE_RATE}/s, worker - ideal, ms"),
            idle,
            2.0,
        )];
        for &rate in rates {
            let durable = self.median(rate, |it| it.worker.durable.p99 / it.ideal.durable.p99);
            let hot = self.median(rate, |it| it.worker.hot.p99 / it.ideal.hot.p99);
            let at = |what| format!("{what} p99 at {rate}/s, worker / ideal");
            goals.push(Goal::at_most(at("durable"), durable, 1.5));
            goals.push(Goal::at_most(at("hot"), hot, 1.5));
        }
        goals
    }

    fn print(&self, rates: &[u64]) {
        say::heading(&format!(
            "time from confirm to durable and to hot, median of {} rounds",
            self.rounds.len()
        ));
        goals(&self.goals);
        let mut table = Table::new([
            "",
            "messages/s",
            "durable p50",
            "p99",
            "p99.9",
            "hot p50",
            "p99",
            "p99.9",
        ]);
        for &rate in [IDLE_RATE].iter().chain(rates) {
            for program in [Program::Ideal, Program::Worker] {
                let median = |value: fn(&Measured) -> f64| {
                    let of = |pair: &Pair| match program {
                        Program::Worker => value(&pair.worker),
                        _ => value(&pair.ideal),
                    };
                    format!("{:.2}", self.median(rate, of))
                };
                table.row([
                    program.to_string(),
                    rate.to_string(),
                    median(|it| it.durable.p50),
                    median(|it| it.durable.p99),
                    median(|it| it.durable.p999),
                    median(|it| it.hot.p50),
                    median(|it| it.hot.p99),
                    median(|it| it.hot.p999),
                ]);
            }
        }
        table.print();
        say::aside(
            "Milliseconds. Durable: PostgreSQL's commit time plus the mean flush of the WAL. Hot: Redis's time of the append.",
        );
    }
}
