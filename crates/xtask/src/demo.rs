//! `cargo demo`: shows what Verbatim does, on real servers.
//!
//! This module starts and stops the system (servers, workers, command-line tool); [`scenario`] has the steps.

mod agents;
mod scenario;

use std::time::Instant;

use anyhow::{Context, Result};

use crate::local_system::LocalSystem;
use crate::say;
use crate::servers::ServerOptions;

/// Starts the system, runs the scenario, stops the system.
pub(crate) async fn run(options: ServerOptions) -> Result<()> {
    let mut system = LocalSystem::open(options, &scenario::SETTINGS).await?;
    let began = Instant::now();
    let result = scenario::run(&mut system).await;
    // The logs are removed with the system.
    result.with_context(|| {
        format!("the demo failed; the end of the workers' logs:\n{}", system.logs())
    })?;
    system.close().await?;
    say::aside(&format!(
        "\nThe demo took {:.0} s. All workers have shut down.",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}
