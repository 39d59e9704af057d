//! `cargo xtask chaos`: injects random faults under load and shows that no message was lost.

#![expect(clippy::expect_used, reason = "as in the tests: a failure to start ends the run")]

use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Parser;
use system_tests::chaos::{self, OnProgress, Plan, Size};
use uuid::Uuid;

const AFTER: &str = "\
Starts a private RabbitMQ, Redis and PostgreSQL on this machine, and two replicas of each worker and of the API.

Exit codes: 0 no message was lost or duplicated, and every replica recovered in time; 1 a message
was, or a replica did not; 2 an option is wrong.";

/// Injects random faults under load, then checks that every message is stored once
#[derive(Debug, Parser)]
#[command(name = "cargo xtask chaos", bin_name = "cargo xtask chaos", after_help = AFTER)]
struct Options {
    /// Messages to publish, at least
    #[arg(long, default_value_t = 40_000)]
    messages: usize,
    /// Minutes of faults, about; slow restarts of servers add to it
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Seed of the faults and their order; random by default
    #[arg(long)]
    seed: Option<u64>,
    /// Print the planned faults and exit
    #[arg(long)]
    dry_run: bool,
    /// Print the report as one JSON document; progress goes to standard error
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let Options { messages, minutes, seed, dry_run, json } = Options::parse();
    // 20 bits: short enough to be typed again.
    let seed = seed.unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0 >> 44);
    let Ok(lasts) = Duration::try_from_secs_f64(minutes * 60.0) else {
        eprintln!("--minutes {minutes}: not a number of at least 0");
        return ExitCode::from(2);
    };
    let plan = Plan::new(seed, Size { messages, lasts });
    eprintln!(
        "seed {seed}: {} faults, {messages} messages; to repeat this run: \
         cargo xtask chaos --messages {messages} --minutes {minutes} --seed {seed}",
        plan.faults()
    );
    if dry_run {
        print!("{plan}");
        return ExitCode::SUCCESS;
    }
    let on_progress: OnProgress = Rc::new(|line| eprintln!("{line}"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let report = runtime.block_on(chaos::run(&plan, &on_progress));
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
