//! Instructions a message, counted by `valgrind --tool=callgrind`: the same on a busy machine as on a
//! quiet one, so that a regression shows that no clock would.
//!
//! Two runs of different length are compared: what both need to start and to end cancels out.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use testkit::process::Process;
use testkit::wait::until;

use super::contestant::{Contestant, Running};
use super::ground::{Ground, Load};

/// Where Debian puts it.
const VALGRIND: &str = "/usr/bin/valgrind";
/// Its package.
pub(crate) const PACKAGE: &str = "valgrind";

/// Messages of the two runs.
const RUNS: [u64; 2] = [5_000, 25_000];
/// Some fifty times slower than without it.
const LIMIT: Duration = Duration::from_secs(240);

/// Whether it is installed.
pub(crate) fn is_installed() -> bool {
    fs::exists(VALGRIND).unwrap_or(false)
}

/// The instructions that a contestant executes for a message of a load.
pub(crate) async fn instructions(
    ground: &Ground,
    contestant: Contestant,
    load: &Load,
) -> Result<f64> {
    let mut counted = Vec::new();
    for messages in RUNS {
        let load = Load { messages, ..*load };
        ground.clear().await?;
        ground.preload(&load).await?;
        counted.push(count(ground, contestant, &load).await?);
    }
    Ok((counted[1] - counted[0]) / f64_of(RUNS[1] - RUNS[0]))
}

async fn count(ground: &Ground, contestant: Contestant, load: &Load) -> Result<f64> {
    let out = ground.fleet.dir().join(format!("{contestant}.callgrind"));
    let log = ground.fleet.dir().join(format!("{contestant}-callgrind.log"));
    let mut command = ground.fleet.command(VALGRIND);
    command.args(["--tool=callgrind", "--quiet"]);
    command.arg(format!("--callgrind-out-file={}", out.display()));
    let [program, role] = match contestant {
        Contestant::Worker => ["message-save-worker", ""],
        Contestant::Null | Contestant::Ideal => ["bench-peers", contestant.as_str()],
    };
    command.arg(ground.fleet.program(program)).args(Some(role).filter(|role| !role.is_empty()));
    command.env("VERBATIM_LISTEN", "127.0.0.1:0");
    let process = Process::spawn("callgrind", &mut command, &log)?;
    let running = Running::Peer(process);
    let all = load.messages.to_string();
    let done = until("all messages to be stored", LIMIT, async || {
        let stored = ground.sql("SELECT count(*) FROM message_rows").await;
        let stored = stored.map_err(|error| error.to_string())?;
        // A worker drains when it is told to end; a peer ends, and what it had not acknowledged comes
        // again, to whoever is next.
        let acknowledged = match contestant {
            Contestant::Worker => load.messages,
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
    let profile = fs::read_to_string(&out).context("callgrind wrote nothing")?;
    let totals = profile.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(totals.context("callgrind counted nothing")?.trim().parse()?)
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn f64_of(count: u64) -> f64 {
    count as f64
}
