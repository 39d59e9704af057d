//! `bench save`: the same full queue drained by each contestant in turn.

use anyhow::Result;
use serde::Serialize;

use super::contestant::Contestant;
use super::drain::{Drain, drain};
use super::ground::{Ground, Load};
use super::report::{Goal, Table, goals, median};
use crate::say;

/// The contest.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    load: Load,
    /// Rounds; in each every contestant runs once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Every round, and what it comes down to.
#[derive(Debug, Serialize)]
struct Contest {
    load: Load,
    rounds: Vec<Round>,
    goals: Vec<Goal>,
}

#[derive(Debug, Serialize)]
struct Round {
    null: Drain,
    ideal: Drain,
    worker: Drain,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let Options { load, rounds, json } = options;
    let ground = Ground::open().await?;
    let mut contest = Contest { load: *load, rounds: Vec::new(), goals: Vec::new() };
    for number in 1..=*rounds {
        let run = async |contestant| -> Result<Drain> {
            let drain = drain(&ground, contestant, 1, load).await?;
            say::note(&format!(
                "round {number} of {rounds}  {contestant:<6}  {:>6.0} messages/s  {:>5.1} µs",
                drain.messages_per_second, drain.cpu
            ));
            Ok(drain)
        };
        contest.rounds.push(Round {
            null: run(Contestant::Null).await?,
            ideal: run(Contestant::Ideal).await?,
            worker: run(Contestant::Worker).await?,
        });
    }
    contest.goals = contest.goals();
    if *json {
        say::line(&serde_json::to_string_pretty(&contest)?);
    } else {
        contest.print();
    }
    Ok(())
}

impl Round {
    fn of(&self, contestant: Contestant) -> &Drain {
        match contestant {
            Contestant::Null => &self.null,
            Contestant::Ideal => &self.ideal,
            Contestant::Worker => &self.worker,
        }
    }
}

impl Contest {
    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(of))
    }

    fn goals(&self) -> Vec<Goal> {
        let throughput =
            self.median(|it| it.worker.messages_per_second / it.ideal.messages_per_second);
        let cpu = self.median(|it| it.worker.cpu / it.ideal.cpu);
        let memory = self.median(|it| it.worker.peak_memory_mb);
        let small = self.load.body_bytes <= 2048;
        let mut goals = vec![
            Goal::at_least("throughput, worker to ideal", throughput, 0.8),
            Goal::at_most("CPU, worker to ideal", cpu, 1.8),
        ];
        goals.extend(small.then(|| Goal::at_most("peak memory of the worker, MB", memory, 40.0)));
        goals
    }

    fn print(&self) {
        let Load { messages, conversations, body_bytes } = self.load;
        say::heading(&format!(
            "{messages} messages of {body_bytes} bytes over {conversations} conversations, median of {} rounds",
            self.rounds.len()
        ));
        goals(&self.goals);
        let mut table = Table::new([
            "",
            "messages/s",
            "CPU µs",
            "RabbitMQ",
            "Redis",
            "PostgreSQL",
            "WAL bytes",
            "peak MB",
        ]);
        for contestant in [Contestant::Null, Contestant::Ideal, Contestant::Worker] {
            let median =
                |value: fn(&Drain) -> f64| self.median(|round| value(round.of(contestant)));
            table.row([
                contestant.to_string(),
                format!("{:.0}", median(|it| it.messages_per_second)),
                format!("{:.1}", median(|it| it.cpu)),
                format!("{:.1}", median(|it| it.rabbitmq_cpu)),
                format!("{:.1}", median(|it| it.redis_cpu)),
                format!("{:.1}", median(|it| it.postgresql_cpu)),
                format!("{:.0}", median(|it| it.wal_bytes)),
                format!("{:.1}", median(|it| it.peak_memory_mb)),
            ]);
        }
        table.print();
        say::aside(
            "CPU in µs and WAL in bytes a message; CPU is the contestant's, then the servers'.",
        );
    }
}
