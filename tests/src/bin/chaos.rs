//! `cargo xtask chaos`: breaks everything at random, and shows that nothing was lost.

#![expect(clippy::expect_used, reason = "as in the tests: what cannot be had ends the run")]

use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Parser;
use system_tests::chaos::{self, Plan, Size, Tell};
use uuid::Uuid;

const AFTER: &str = "\
Starts its own RabbitMQ, Redis and PostgreSQL on this machine, and two replicas of each worker.

Exit codes: 0 nothing was lost or doubled, and everything worked again in time; 1 something was, or
did not.";

/// Kills, freezes and cuts everything at random under load, then compares every message
#[derive(Debug, Parser)]
#[command(name = "cargo xtask chaos", bin_name = "cargo xtask chaos", after_help = AFTER)]
struct Options {
    /// At least so many messages are published
    #[arg(long, default_value_t = 40_000)]
    messages: usize,
    /// About so long do things break; servers that must come back take more
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Decides what breaks, and in which order; without it, another one each time
    #[arg(long)]
    seed: Option<u64>,
    /// Print what would break, and end
    #[arg(long)]
    dry_run: bool,
    /// Answer with one JSON document; what goes on is told on standard error
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let Options { messages, minutes, seed, dry_run, json } = Options::parse();
    // Short enough to be typed again.
    let seed = seed.unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0 >> 44);
    let Ok(lasts) = Duration::try_from_secs_f64(minutes * 60.0) else {
        eprintln!("--minutes {minutes}: wanted is a number of at least 0");
        return ExitCode::from(2);
    };
    let plan = Plan::new(seed, Size { messages, lasts });
    eprintln!(
        "seed {seed}: {} faults, {messages} messages; the same again: \
         cargo xtask chaos --messages {messages} --minutes {minutes} --seed {seed}",
        plan.faults()
    );
    if dry_run {
        print!("{plan}");
        return ExitCode::SUCCESS;
    }
    let tell: Tell = Rc::new(|line| eprintln!("{line}"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let report = runtime.block_on(chaos::run(&plan, &tell));
    if json {
        println!("{:#}", report.to_json());
    } else {
        println!("\n{report}");
    }
    if report.damage().is_empty() && report.late().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
