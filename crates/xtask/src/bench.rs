//! `cargo xtask bench`: the fleet against what is possible on this machine, in one run.
//!
//! Machines differ and are noisy, so a number alone says little: contestants take turns, round after
//! round, on the same servers with the same load, and what counts is their ratio within a round. The
//! `null` and `ideal` contestants are yardsticks (`crates/xtask/peers`).
//!
//! | file | what it is about |
//! |---|---|
//! | [`ground`] | servers, release binaries, and one state from which every run begins |
//! | [`contestant`] | who runs, and how much it has acknowledged |
//! | [`usage`] | CPU time and memory of processes |
//! | [`drain`] | one contestant emptying a full queue |
//! | [`save`] | `bench save`: throughput and cost of the save path |
//! | [`report`] | medians, ratios, tables and JSON |

mod contestant;
mod drain;
mod ground;
mod report;
mod save;
mod usage;

use anyhow::Result;
use clap::Subcommand;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// A full queue drained by null, ideal and the save worker: messages a second, CPU, memory
    Save(save::Options),
}

pub(crate) async fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Save(options) => save::run(options).await,
    }
}
