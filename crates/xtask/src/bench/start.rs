//! `bench start`: the time from the start of a save worker to its first saved message; the sizes of the binaries.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use domain::fleet;
use serde::Serialize;

use super::drain::acknowledged;
use super::environment::{Environment, Load};
use super::program::Program;
use super::report::{Goal, Table, goals, median};
use super::timeline::{Micros, prepare};
use crate::say;

/// The options of `bench start`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Number of starts
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Measured {
    /// From the start of the process to the commit of a message that was in the queue.
    milliseconds: Vec<f64>,
    /// Name and size in bytes of each release binary.
    binaries: Vec<(&'static str, u64)>,
    goals: Vec<Goal>,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let environment = Environment::open().await?;
    prepare(&environment).await?;
    let mut milliseconds = Vec::new();
    for number in 1..=options.rounds {
        milliseconds.push(first_message(&environment).await?);
        let last = milliseconds.last().copied().unwrap_or_default();
        say::note(&format!("start {number} of {}: {last:.0} ms", options.rounds));
    }
    let mut binaries = Vec::new();
    for process in fleet::processes() {
        let name = process.name();
        binaries.push((name, std::fs::metadata(environment.fleet.program(name))?.len()));
    }
    let median = median(milliseconds.iter().copied());
    let goals = vec![Goal::at_most("start to first saved message, ms", median, 500.0)];
    let measured = Measured { milliseconds, binaries, goals };
    if options.json {
        say::line(&serde_json::to_string_pretty(&measured)?);
    } else {
        measured.print();
    }
    Ok(())
}

async fn first_message(environment: &Environment) -> Result<f64> {
    environment.clear().await?;
    let one = Load { messages: 1, conversations: 1, body_bytes: 515, from: 0, batch: 1 };
    environment.preload(&one).await?;
    environment.settle().await?;
    let started = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let running = [Program::Worker.start(environment, 1)?];
    acknowledged(environment, &running, 1).await?;
    let committed: Micros = environment
        .sql(
            "SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint
             FROM message_rows",
        )
        .await?
        .parse()?;
    for one in running {
        one.stop().await?;
    }
    let committed = Duration::from_micros(u64::try_from(committed)?);
    Ok(committed.saturating_sub(started).as_secs_f64() * 1000.0)
}

impl Measured {
    fn print(&self) {
        say::heading(&format!("median of {} starts", self.milliseconds.len()));
        goals(&self.goals);
        let mut table = Table::new(["release binary", "MB"]);
        for (name, bytes) in &self.binaries {
            #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
            let megabytes = *bytes as f64 / 1e6;
            table.row([(*name).to_owned(), format!("{megabytes:.1}")]);
        }
        table.print();
    }
}
