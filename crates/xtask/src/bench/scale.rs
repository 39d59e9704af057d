//! `bench scale`: what a message costs with more workers, longer or more conversations, and a full archive.

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
    /// Messages of each run
    #[arg(long, default_value_t = 100_000)]
    messages: u64,
    /// Rounds; in each every scene is played once
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Also with two million messages in the archive
    #[arg(long)]
    deep: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Messages in the full archive.
const FULL: u64 = 2_000_000;

/// How far the cost of a message may move with the scale.
const MOST_CHANGE: f64 = 1.15;

/// Messages of a body's size in every scene, in bytes.
const BODY_BYTES: usize = 515;

/// One run: so many workers drain messages of so many conversations.
#[derive(Debug, Clone, Copy, Serialize)]
struct Scene {
    name: &'static str,
    workers: usize,
    conversations: u64,
    before: Before,
}

/// What is in the stores before a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Before {
    Nothing,
    /// One message of each conversation: all of them exist and are active.
    Conversations,
    /// Two million messages of other conversations.
    FullDatabase,
}

/// Scenes that differ in one thing, which is to change the worker's cost by 15 % at most.
#[derive(Debug, Clone, Serialize)]
struct Group {
    name: &'static str,
    scenes: Vec<Scene>,
}

#[derive(Debug, Serialize)]
struct Contest {
    groups: Vec<Group>,
    /// By round, group and scene.
    rounds: Vec<Vec<Vec<Drain>>>,
    goals: Vec<Goal>,
}

fn groups(messages: u64, deep: bool) -> Vec<Group> {
    let usual = Scene { name: "1", workers: 1, conversations: 500, before: Before::Nothing };
    let long = |name, length| Scene { name, conversations: messages / length, ..usual };
    let active =
        |name, conversations| Scene { name, conversations, before: Before::Conversations, ..usual };
    let mut groups = vec![
        Group {
            name: "workers",
            scenes: vec![
                usual,
                Scene { name: "2", workers: 2, ..usual },
                Scene { name: "4", workers: 4, ..usual },
            ],
        },
        Group {
            name: "messages of a conversation",
            scenes: vec![long("10", 10), long("1 000", 1000), long("100 000", messages)],
        },
        Group {
            name: "active conversations",
            scenes: vec![active("1", 1), active("1 000", 1000), active("100 000", 100_000)],
        },
    ];
    if deep {
        let full = Scene { name: "2 000 000", before: Before::FullDatabase, ..usual };
        let empty = Scene { name: "0", ..usual };
        groups.push(Group { name: "messages in the archive", scenes: vec![empty, full] });
    }
    groups
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let ground = Ground::open().await?;
    let groups = groups(options.messages, options.deep);
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        let mut round = Vec::new();
        for group in &groups {
            let mut drains = Vec::new();
            for scene in &group.scenes {
                let drain = play(&ground, scene, options.messages).await?;
                say::note(&format!(
                    "round {number} of {}  {}: {}  {:.0} messages/s  {:.1} µs",
                    options.rounds, group.name, scene.name, drain.messages_per_second, drain.cpu
                ));
                drains.push(drain);
            }
            round.push(drains);
        }
        rounds.push(round);
    }
    let mut contest = Contest { groups, rounds, goals: Vec::new() };
    contest.goals = contest.goals();
    if options.json {
        say::line(&serde_json::to_string_pretty(&contest)?);
    } else {
        contest.print(options.messages);
    }
    Ok(())
}

async fn play(ground: &Ground, scene: &Scene, messages: u64) -> Result<Drain> {
    let Scene { conversations, workers, before, .. } = *scene;
    ground.clear().await?;
    let mut load = Load { messages, conversations, body_bytes: BODY_BYTES, from: 0 };
    match before {
        Before::Nothing => {}
        Before::Conversations => {
            let first = Load { messages: conversations, ..load };
            drain(ground, Contestant::Worker, 1, &first).await?;
            load.from = conversations;
        }
        Before::FullDatabase => fill(ground).await?,
    }
    drain(ground, Contestant::Worker, workers, &load).await
}

/// Fills the archive, in parts that the queue and Redis hold with ease.
async fn fill(ground: &Ground) -> Result<()> {
    const PART: u64 = 250_000;
    /// Messages of a conversation.
    const LENGTH: u64 = 50;
    for part in 1..=FULL / PART {
        // Other numbers than those of the run that follows.
        let from = 1_000_000_000 + part * PART;
        let part =
            Load { messages: PART, conversations: FULL / LENGTH, body_bytes: BODY_BYTES, from };
        drain(ground, Contestant::Worker, 2, &part).await?;
    }
    Ok(())
}

impl Contest {
    fn median(&self, group: usize, scene: usize, of: impl Fn(&Drain) -> f64) -> f64 {
        median(self.rounds.iter().map(|round| of(&round[group][scene])))
    }

    /// How far the dearest scene of each group lies above the cheapest, by the worker's CPU.
    fn goals(&self) -> Vec<Goal> {
        let spread = |(n, group): (usize, &Group)| {
            let costs = |round: &Vec<Vec<Drain>>| {
                let costs = round[n].iter().map(|drain| drain.cpu);
                costs.clone().fold(f64::MIN, f64::max) / costs.fold(f64::MAX, f64::min)
            };
            let what = format!("worker's CPU, dearest to cheapest by {}", group.name);
            Goal::at_most(what, median(self.rounds.iter().map(costs)), MOST_CHANGE)
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
            for (m, scene) in group.scenes.iter().enumerate() {
                let median = |of: fn(&Drain) -> f64| self.median(n, m, of);
                table.row(Drain::cells(format!("{}: {}", group.name, scene.name), median));
            }
        }
        table.print();
        say::aside(Drain::LEGEND);
    }
}
