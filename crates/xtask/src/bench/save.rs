//! `bench save`: each program drains the same full queue in turn.

use anyhow::Result;
use serde::Serialize;

use super::drain::{Drain, drain};
use super::environment::{Environment, Load};
use super::instructions::{self, instructions};
use super::program::Program;
use super::report::{Goal, Table, goals, median};
use crate::{packages, say};

/// The options of `bench save`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    load: Load,
    /// Number of rounds; in each round every program runs once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Do not count instructions, which needs valgrind and takes two minutes
    #[arg(long)]
    no_instructions: bool,
    /// Use a Redis Cluster of three masters instead of a single Redis
    #[arg(long)]
    redis_cluster: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// The results of all rounds.
#[derive(Debug, Serialize)]
struct Summary {
    load: Load,
    rounds: Vec<Round>,
    /// Instructions per message, if they were counted.
    instructions: Option<Instructions>,
    goals: Vec<Goal>,
}

/// The limit of the ratio of instructions per message, worker to ideal: 5 % above the first measurement of the
/// save path (62 930 / 59 195). A ratio, because a new compiler or client changes both numbers.
const MAX_INSTRUCTIONS_RATIO: f64 = 1.116;

/// Instructions per message.
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
    let environment = if options.redis_cluster {
        Environment::open_with_cluster().await?
    } else {
        Environment::open().await?
    };
    if !options.no_instructions && !instructions::is_installed() {
        packages::ensure(&[instructions::PACKAGE]).await?;
    }
    let mut summary =
        Summary { load: *load, rounds: Vec::new(), instructions: None, goals: Vec::new() };
    for number in 1..=*rounds {
        let run = async |program| -> Result<Drain> {
            environment.clear().await?;
            let drain = drain(&environment, program, 1, load).await?;
            say::note(&format!(
                "round {number} of {rounds}: {program:<6} {:>6.0} messages/s, {:>5.1} µs CPU per message",
                drain.messages_per_second, drain.cpu
            ));
            Ok(drain)
        };
        summary.rounds.push(Round {
            null: run(Program::Null).await?,
            ideal: run(Program::Ideal).await?,
            worker: run(Program::Worker).await?,
        });
    }
    if !options.no_instructions {
        say::note("counting instructions");
        summary.instructions = Some(Instructions {
            ideal: instructions(&environment, Program::Ideal, load).await?,
            worker: instructions(&environment, Program::Worker, load).await?,
        });
    }
    summary.goals = summary.goals();
    if options.json {
        say::line(&serde_json::to_string_pretty(&summary)?);
    } else {
        summary.print();
    }
    Ok(())
}

impl Round {
    fn of(&self, program: Program) -> &Drain {
        match program {
            Program::Null => &self.null,
            Program::Ideal => &self.ideal,
            Program::Worker => &self.worker,
        }
    }
}

impl Summary {
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
            Goal::at_least("throughput, worker / ideal", throughput, 0.8),
            Goal::at_most("CPU, worker / ideal", cpu, 1.8),
        ];
        goals.extend(small.then(|| Goal::at_most("peak memory of the worker, MB", memory, 40.0)));
        let ratio = |it: Instructions| {
            Goal::at_most(
                "instructions, worker / ideal",
                it.worker / it.ideal,
                MAX_INSTRUCTIONS_RATIO,
            )
        };
        goals.extend(self.instructions.map(ratio));
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
        for program in [Program::Null, Program::Ideal, Program::Worker] {
            let median = |of: fn(&Drain) -> f64| self.median(|round| of(round.of(program)));
            table.row(Drain::cells(program.to_string(), median));
        }
        table.print();
        if let Some(Instructions { ideal, worker }) = self.instructions {
            say::line(&format!(
                "  instructions per message: ideal {ideal:.0}, worker {worker:.0} ({:.2} times as many)",
                worker / ideal
            ));
        }
        say::aside(Drain::LEGEND);
    }
}
