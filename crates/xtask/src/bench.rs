//! `cargo xtask bench`: the fleet against what is possible on this machine, in one run.
//!
//! Machines differ and are noisy, so a number alone says little: contestants take turns, round after
//! round, on the same servers with the same load, and what counts is their ratio within a round. The
//! `null` and `ideal` contestants are baselines (`crates/xtask/peers`).
//!
//! | file | what it is about |
//! |---|---|
//! | [`ground`] | servers, release binaries, and one state from which every run begins |
//! | [`contestant`] | who runs, and how much it has acknowledged |
//! | [`usage`] | CPU time and memory of processes |
//! | [`drain`] | one contestant emptying a full queue |
//! | [`instructions`] | instructions a message, which no neighbour can disturb |
//! | [`timeline`] | when each message of a steady load was confirmed, durable and hot |
//! | [`save`], [`latency`], [`close`], [`scale`], [`start`] | the contests |
//! | [`report`] | medians, ratios, tables and JSON |

mod close;
mod contestant;
mod drain;
mod ground;
mod instructions;
mod latency;
mod report;
mod save;
mod scale;
mod start;
mod timeline;
mod usage;

use anyhow::Result;
use clap::Subcommand;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// A full queue drained by null, ideal and the save worker: messages a second, CPU, memory
    Save(save::Options),
    /// From a message's confirm to durable and to hot, under steady loads and alone
    Latency(latency::Options),
    /// Thousands of conversations closing at once, and what the save path feels of it
    Close(close::Options),
    /// What a message costs with more workers, longer or more conversations, a full archive
    Scale(scale::Options),
    /// From the start of a worker to its first message saved; the sizes of the binaries
    Start(start::Options),
}

pub(crate) async fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Save(options) => save::run(options).await,
        Bench::Latency(options) => latency::run(options).await,
        Bench::Close(options) => close::run(options).await,
        Bench::Scale(options) => scale::run(options).await,
        Bench::Start(options) => start::run(options).await,
    }
}
