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
    /// Messages in each action: `1` publishes `conversation.save_message`, more `conversation.save_messages`. Several
    /// numbers, separated by commas, are measured in turn
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u64).range(1..=100))]
    batch: Vec<u64>,
    /// Number of rounds; in each round every program runs once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Do not count instructions, which needs valgrind and takes two minutes for each number
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
    /// The results with each number of messages in an action.
    batches: Vec<BatchSummary>,
    goals: Vec<Goal>,
}

#[derive(Debug, Serialize)]
struct BatchSummary {
    load: Load,
    rounds: Vec<Round>,
    /// Instructions per message, if they were counted.
    instructions: Option<Instructions>,
}

/// The least ratio of throughput, worker to ideal, with several messages in each action.
const MIN_RATIO_OF_SEVERAL: f64 = 0.85;
/// The least ratio of the worker's throughput, with 8 messages in each action to one.
const MIN_GAIN_OF_EIGHT: f64 = 1.4;

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
    let Options { rounds, .. } = options;
    let environment = if options.redis_cluster {
        Environment::open_with_cluster().await?
    } else {
        Environment::open().await?
    };
    if !options.no_instructions && !instructions::is_installed() {
        packages::ensure(&[instructions::PACKAGE]).await?;
    }
    let load = |batch: &u64| Load {
        batch: *batch,
        messages: options.load.messages.next_multiple_of(*batch),
        ..options.load
    };
    let batches = options.batch.iter().map(load);
    let batches = batches.map(|load| BatchSummary { load, rounds: Vec::new(), instructions: None });
    let mut summary = Summary { batches: batches.collect(), goals: Vec::new() };
    for number in 1..=*rounds {
        for BatchSummary { load, rounds: done, .. } in &mut summary.batches {
            let run = async |program| -> Result<Drain> {
                environment.clear().await?;
                let drain = drain(&environment, program, 1, load).await?;
                say::note(&format!(
                    "round {number} of {rounds}, batch {}: {program:<6} {:>6.0} messages/s, {:>5.1} µs CPU per message",
                    load.batch, drain.messages_per_second, drain.cpu
                ));
                Ok(drain)
            };
            done.push(Round {
                null: run(Program::Null).await?,
                ideal: run(Program::Ideal).await?,
                worker: run(Program::Worker).await?,
            });
        }
    }
    if !options.no_instructions {
        for BatchSummary { load, instructions: counted, .. } in &mut summary.batches {
            say::note(&format!("counting instructions, batch {}", load.batch));
            *counted = Some(Instructions {
                ideal: instructions(&environment, Program::Ideal, load).await?,
                worker: instructions(&environment, Program::Worker, load).await?,
            });
        }
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

impl BatchSummary {
    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(of))
    }

    fn ratio(&self) -> f64 {
        self.median(|it| it.worker.messages_per_second / it.ideal.messages_per_second)
    }

    fn goals(&self) -> Vec<Goal> {
        let batch = self.load.batch;
        if batch > 1 {
            let what = format!("throughput with {batch} messages in an action, worker / ideal");
            return vec![Goal::at_least(what, self.ratio(), MIN_RATIO_OF_SEVERAL)];
        }
        let cpu = self.median(|it| it.worker.cpu / it.ideal.cpu);
        let memory = self.median(|it| it.worker.peak_memory_mb);
        let small = self.load.body_bytes <= 2048;
        let mut goals = vec![
            Goal::at_least("throughput, worker / ideal", self.ratio(), 0.8),
            Goal::at_most("CPU, worker / ideal", cpu, 1.8),
        ];
        goals.extend(small.then(|| Goal::at_most("peak memory of the worker, MB", memory, 40.0)));
        goals.extend(self.instructions.map(|it| {
            let (what, ratio) = ("instructions, worker / ideal", it.worker / it.ideal);
            Goal::at_most(what, ratio, MAX_INSTRUCTIONS_RATIO)
        }));
        goals
    }

    /// How many times as fast the worker is as with other actions. Both ran in each round.
    fn gain(&self, over: &Self) -> f64 {
        let both = self.rounds.iter().zip(&over.rounds);
        median(
            both.map(|(it, other)| {
                it.worker.messages_per_second / other.worker.messages_per_second
            }),
        )
    }

    fn print(&self) {
        let Load { messages, conversations, body_bytes, batch, .. } = self.load;
        let actions = match batch {
            1 => String::new(),
            _ => format!(", {batch} in an action"),
        };
        say::heading(&format!(
            "{messages} messages of {body_bytes} bytes{actions} over {conversations} conversations, median of {} rounds",
            self.rounds.len()
        ));
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
    }
}

impl Summary {
    fn goals(&self) -> Vec<Goal> {
        let mut all: Vec<Goal> = self.batches.iter().flat_map(BatchSummary::goals).collect();
        let of = |batch| self.batches.iter().find(|it| it.load.batch == batch);
        all.extend(of(8).zip(of(1)).map(|(eight, one)| {
            let what = "throughput of the worker, 8 messages in an action / 1";
            Goal::at_least(what, eight.gain(one), MIN_GAIN_OF_EIGHT)
        }));
        all
    }

    fn print(&self) {
        goals(&self.goals);
        self.batches.iter().for_each(BatchSummary::print);
        say::aside(Drain::LEGEND);
    }
}
