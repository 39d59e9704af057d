//! `bench save`: the same full queue drained by each contestant in turn.

use anyhow::Result;
use serde::Serialize;

use super::contestant::Contestant;
use super::drain::{Drain, drain};
use super::ground::{Ground, Load};
use super::instructions::{self, instructions};
use super::report::{Goal, Table, goals, median};
use crate::{packages, say};

/// The contest.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    load: Load,
    /// Rounds; in each every contestant runs once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Do not count instructions, which takes valgrind and two minutes
    #[arg(long)]
    no_instructions: bool,
    /// On a Redis Cluster of three masters instead of a single Redis
    #[arg(long)]
    redis_cluster: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Every round, and what it comes down to.
#[derive(Debug, Serialize)]
struct Contest {
    load: Load,
    rounds: Vec<Round>,
    /// Instructions a message, where they were counted.
    instructions: Option<Instructions>,
    goals: Vec<Goal>,
}

/// How many times the ideal's instructions the worker may need: 5 % more than when the save path was
/// measured first, 62 930 to 59 195. What makes both of them dearer is somebody else's.
const DEARER: f64 = 1.116;

/// Instructions a message.
#[derive(Debug, Clone, Copy, Serialize)]
struct Instructions {
    ideal: f64,
    worker: f64,
}

#[derive(Debug, Serialize)]
struct Round {
    null: Drain,
    ideal: Drain,
    worker: Drain,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let Options { load, rounds, .. } = options;
    let ground = if options.redis_cluster {
        Ground::open_with_cluster().await?
    } else {
        Ground::open().await?
    };
    if !options.no_instructions && !instructions::is_installed() {
        packages::ensure(&[instructions::PACKAGE]).await?;
    }
    let mut contest =
        Contest { load: *load, rounds: Vec::new(), instructions: None, goals: Vec::new() };
    for number in 1..=*rounds {
        let run = async |contestant| -> Result<Drain> {
            ground.clear().await?;
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
    if !options.no_instructions {
        say::note("counting instructions");
        contest.instructions = Some(Instructions {
            ideal: instructions(&ground, Contestant::Ideal, load).await?,
            worker: instructions(&ground, Contestant::Worker, load).await?,
        });
    }
    contest.goals = contest.goals();
    if options.json {
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
        let dearer = |it: Instructions| {
            Goal::at_most("instructions, worker to ideal", it.worker / it.ideal, DEARER)
        };
        goals.extend(self.instructions.map(dearer));
        goals
    }

    fn print(&self) {
        let Load { messages, conversations, body_bytes, .. } = self.load;
        say::heading(&format!(
            "{messages} messages of {body_bytes} bytes over {conversations} conversations, median of {} rounds",
            self.rounds.len()
        ));
        goals(&self.goals);
        let mut table = Table::new(Drain::TITLES);
        for contestant in [Contestant::Null, Contestant::Ideal, Contestant::Worker] {
            let median = |of: fn(&Drain) -> f64| self.median(|round| of(round.of(contestant)));
            table.row(Drain::cells(contestant.to_string(), median));
        }
        table.print();
        if let Some(Instructions { ideal, worker }) = self.instructions {
            say::line(&format!(
                "  instructions a message: ideal {ideal:.0}, worker {worker:.0} ({:.2} times as many)",
                worker / ideal
            ));
        }
        say::aside(Drain::LEGEND);
    }
}
