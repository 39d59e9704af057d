//! `bench scale`: the cost of a message with more workers, longer or more conversations, and a full database.

use anyhow::Result;
use serde::Serialize;

use super::drain::{Drain, drain};
use super::environment::{Environment, Load};
use super::program::Program;
use super::report::{Goal, Table, goals, median};
use crate::say;

/// The options of `bench scale`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Number of messages of each run
    #[arg(long, default_value_t = 100_000)]
    messages: u64,
    /// Number of rounds; in each round every case runs once
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Also measure with two million messages in the database
    #[arg(long)]
    deep: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Messages in the full database.
const FULL: u64 = 2_000_000;

/// The limit of the ratio of the highest to the lowest cost of a message within a group.
const MAX_RATIO: f64 = 1.15;

/// Size of a body in every case, in bytes.
const BODY_BYTES: usize = 515;

/// One run: the number of workers, the number of conversations, and the data before the run.
#[derive(Debug, Clone, Copy, Serialize)]
struct Case {
    name: &'static str,
    workers: usize,
    conversations: u64,
    before: Before,
}

/// The data in PostgreSQL and Redis before a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Before {
    Nothing,
    /// One message of each conversation: all conversations exist and are active.
    Conversations,
    /// Two million messages of other conversations.
    FullDatabase,
}

/// Cases that differ in one parameter, which may change the worker's cost by 15 % at most.
#[derive(Debug, Clone, Serialize)]
struct Group {
    name: &'static str,
    cases: Vec<Case>,
}

#[derive(Debug, Serialize)]
struct Summary {
    groups: Vec<Group>,
    /// By round, group and case.
    rounds: Vec<Vec<Vec<Drain>>>,
    goals: Vec<Goal>,
}

fn groups(messages: u64, deep: bool) -> Vec<Group> {
    let usual = Case { name: "1", workers: 1, conversations: 500, before: Before::Nothing };
    let long = |name, length| Case { name, conversations: messages / length, ..usual };
    let active =
        |name, conversations| Case { name, conversations, before: Before::Conversations, ..usual };
    let mut groups = vec![
        Group {
            name: "workers",
            cases: vec![
                usual,
                Case { name: "2", workers: 2, ..usual },
                Case { name: "4", workers: 4, ..usual },
            ],
        },
        Group {
            name: "messages per conversation",
            cases: vec![long("10", 10), long("1 000", 1000), long("100 000", messages)],
        },
        Group {
            name: "active conversations",
            cases: vec![active("1", 1), active("1 000", 1000), active("100 000", 100_000)],
        },
    ];
    if deep {
        let full = Case { name: "2 000 000", before: Before::FullDatabase, ..usual };
        let empty = Case { name: "0", ..usual };
        groups.push(Group { name: "messages in the database", cases: vec![empty, full] });
    }
    groups
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let environment = Environment::open().await?;
    let groups = groups(options.messages, options.deep);
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        let mut round = Vec::new();
        for group in &groups {
            let mut drains = Vec::new();
            for case in &group.cases {
                let drain = run_case(&environment, case, options.messages).await?;
                say::note(&format!(
                    "round {number} of {}: {} = {}: {:.0} messages/s, {:.1} µs CPU per message",
                    options.rounds, group.name, case.name, drain.messages_per_second, drain.cpu
                ));
                drains.push(drain);
            }
            round.push(drains);
        }
        rounds.push(round);
    }
    let mut summary = Summary { groups, rounds, goals: Vec::new() };
    summary.goals = summary.goals();
    if options.json {
        say::line(&serde_json::to_string_pretty(&summary)?);
    } else {
        summary.print(options.messages);
    }
    Ok(())
}

async fn run_case(environment: &Environment, case: &Case, messages: u64) -> Result<Drain> {
    let Case { conversations, workers, before, .. } = *case;
    environment.clear().await?;
    let mut load = Load { messages, conversations, body_bytes: BODY_BYTES, from: 0, batch: 1 };
    match before {
        Before::Nothing => {}
        Before::Conversations => {
            let first = Load { messages: conversations, ..load };
            drain(environment, Program::Worker, 1, &first).await?;
            load.from = conversations;
        }
        Before::FullDatabase => fill(environment).await?,
    }
    drain(environment, Program::Worker, workers, &load).await
}

/// Fills the database, in parts that fit into the queue and into Redis.
async fn fill(environment: &Environment) -> Result<()> {
    const PART: u64 = 250_000;
    /// Messages per conversation.
    const LENGTH: u64 = 50;
    for part in 1..=FULL / PART {
        // Message numbers that the measured run does not use.
        let from = 1_000_000_000 + part * PART;
        let part = Load {
            messages: PART,
            conversations: FULL / LENGTH,
            body_bytes: BODY_BYTES,
            from,
            batch: 1,
        };
        drain(environment, Program::Worker, 2, &part).await?;
    }
    Ok(())
}

impl Summary {
    fn median(&self, group: usize, case: usize, of: impl Fn(&Drain) -> f64) -> f64 {
        median(self.rounds.iter().map(|round| of(&round[group][case])))
    }

    /// A goal per group: the ratio of the highest to the lowest CPU time of its cases.
    fn goals(&self) -> Vec<Goal> {
        let spread = |(n, group): (usize, &Group)| {
            let costs = |round: &Vec<Vec<Drain>>| {
                let costs = round[n].iter().map(|drain| drain.cpu);
                costs.clone().fold(f64::MIN, f64::max) / costs.fold(f64::MAX, f64::min)
            };
            let what = format!("worker CPU, highest / lowest by {}", group.name);
            Goal::at_most(what, median(self.rounds.iter().map(costs)), MAX_RATIO)
        };
        self.groups.iter().enumerate().map(spread).collect()
    }

    fn print(&self, messages: u64) {
        say::heading(&format!(
            "{messages} messages of {BODY_BYTES} bytes, median of {} rounds",
            self.rounds.len()
        ));
        goals(&self.goals);
        let mut table = Table::new(Drain::TITLES);
        for (n, group) in self.groups.iter().enumerate() {
            for (m, case) in group.cases.iter().enumerate() {
                let median = |of: fn(&Drain) -> f64| self.median(n, m, of);
                table.row(Drain::cells(format!("{}: {}", group.name, case.name), median));
            }
        }
        table.print();
        say::aside(Drain::LEGEND);
    }
}
