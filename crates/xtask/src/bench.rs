//! `cargo xtask bench`: compares the fleet with baselines on the same machine in one run.
//!
//! Absolute numbers depend on the machine and its load. So the programs run in turn, round after round, on the
//! same servers with the same load, and the result is the ratio of their numbers within a round. The baselines
//! are `null` and `ideal` (`crates/xtask/peers`).
//!
//! | file | contents |
//! |---|---|
//! | [`environment`] | servers, release binaries, and resetting the servers before a run |
//! | [`program`] | the measured programs, and how many messages they have acknowledged |
//! | [`usage`] | CPU time and memory of processes |
//! | [`drain`] | one program that drains a full queue |
//! | [`instructions`] | instructions per message, which other processes on the machine do not affect |
//! | [`timeline`] | when each message of a steady load was confirmed, durable and hot |
//! | [`containers`] | what `docker-compose.yml` sets for the processes |
//! | [`archive`] | a large archive, written with SQL |
//! | [`api`], [`save`], [`latency`], [`close`], [`scale`], [`start`], [`memory`] | the benchmarks |
//! | [`report`] | medians, ratios, tables and JSON |

mod api;
mod archive;
mod close;
mod containers;
mod drain;
mod environment;
mod instructions;
mod latency;
mod memory;
mod program;
mod report;
mod save;
mod scale;
mod start;
mod timeline;
mod usage;

use anyhow::Result;
use clap::Subcommand;

/// The benchmarks.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Drain a full queue with the save worker and the baselines null and ideal: throughput, CPU, memory
    Save(save::Options),
    /// Time from a message's confirm until it is in PostgreSQL and in Redis, at several rates
    Latency(latency::Options),
    /// Close thousands of conversations at once, and measure how that slows down saving
    Close(close::Options),
    /// Cost of a message with more workers, longer or more conversations, a full database
    Scale(scale::Options),
    /// Time from the start of a worker to its first saved message; sizes of the binaries
    Start(start::Options),
    /// Times of requests to the API on a large archive, while the fleet saves
    Api(api::Options),
    /// Peak memory of every worker: idle, with small, large and the largest bodies, with large headers
    Memory(memory::Options),
}

pub(crate) async fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Save(options) => save::run(options).await,
        Bench::Latency(options) => latency::run(options).await,
        Bench::Close(options) => close::run(options).await,
        Bench::Scale(options) => scale::run(options).await,
        Bench::Start(options) => start::run(options).await,
        Bench::Api(options) => api::run(options).await,
        Bench::Memory(options) => memory::run(options).await,
    }
}
