//! Instructions per message, counted by `valgrind --tool=callgrind`. The count does not depend on the load of
//! the machine, so it shows regressions that are too small for time measurements.
//!
//! The difference of two runs of different length is used, which excludes the cost of start and end.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use testkit::process::Process;
use testkit::wait::until;

use super::environment::{Environment, Load};
use super::program::{Program, RunningProgram};

/// Its path on Debian.
const VALGRIND: &str = "/usr/bin/valgrind";
/// Its package.
pub(crate) const PACKAGE: &str = "valgrind";

/// Numbers of messages in the two runs.
const RUNS: [u64; 2] = [5_000, 25_000];
/// Timeout: valgrind makes a program some fifty times slower.
const LIMIT: Duration = Duration::from_secs(240);

/// Whether valgrind is installed.
pub(crate) fn is_installed() -> bool {
    fs::exists(VALGRIND).unwrap_or(false)
}

/// The instructions that a program executes per message of a load.
pub(crate) async fn instructions(
    environment: &Environment,
    program: Program,
    load: &Load,
) -> Result<f64> {
    let mut counted = Vec::new();
    for messages in RUNS {
        let load = Load { messages: messages.next_multiple_of(load.batch), ..*load };
        environment.clear().await?;
        environment.preload(&load).await?;
        counted.push(count(environment, program, &load).await?);
    }
    Ok((counted[1] - counted[0]) / f64_of(RUNS[1] - RUNS[0]))
}

async fn count(environment: &Environment, program: Program, load: &Load) -> Result<f64> {
    let out = environment.fleet.dir().join(format!("{program}.callgrind"));
    let log = environment.fleet.dir().join(format!("{program}-callgrind.log"));
    // A run before has written to the same file.
    fs::remove_file(&log).ok();
    let mut command = environment.fleet.command(VALGRIND);
    command.args(["--tool=callgrind", "--quiet"]);
    command.arg(format!("--callgrind-out-file={}", out.display()));
    let [binary, role] = match program {
        Program::Worker => ["message-save-worker", ""],
        Program::Null | Program::Ideal => ["bench-peers", program.as_str()],
    };
    command.arg(environment.fleet.program(binary));
    if !role.is_empty() {
        command.args([role, "--batch", &load.batch.to_string()]);
    }
    command.env("VERBATIM_LISTEN", "127.0.0.1:0");
    let process = Process::spawn("callgrind", &mut command, &log)?;
    let running = RunningProgram::Baseline(process);
    let all = load.messages.to_string();
    let done = until("all messages to be stored", LIMIT, async || {
        let stored = environment.sql("SELECT count(*) FROM message_rows").await;
        let stored = stored.map_err(|error| error.to_string())?;
        // A worker acknowledges during its shutdown. A baseline does not: wait for its acknowledgements,
        // so that nothing is redelivered to the next run.
        let acknowledged = match program {
            Program::Worker => load.messages,
            _ => running.acknowledged().await.map_err(|error| format!("{error:#}"))?,
        };
        let done = stored == all && acknowledged == load.messages;
        if done {
            Ok(())
        } else {
            Err(format!("{stored} stored, {acknowledged} acknowledged of {all}"))
        }
    });
    done.await.with_context(|| running.log_tail())?;
    running.stop().await?;
    let profile = fs::read_to_string(&out).context("callgrind has written no file")?;
    let totals = profile.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(totals.context("the file of callgrind has no totals")?.trim().parse()?)
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn f64_of(count: u64) -> f64 {
    count as f64
}
