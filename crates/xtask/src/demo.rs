//! `cargo demo`: what Verbatim does, told by running it on real servers.
//!
//! The stage (servers, fleet, command line) is set and struck here; what is played on it is the
//! [`scenario`]'s.

mod agents;
mod scenario;

use std::time::Instant;

use anyhow::{Context, Result};

use crate::say;
use crate::stage::Stage;
use crate::stores::Named;

/// Sets the stage, plays the scenario, strikes the stage.
pub(crate) async fn run(named: Named) -> Result<()> {
    let mut stage = Stage::open(named, &scenario::SETTINGS).await?;
    let began = Instant::now();
    let played = scenario::play(&mut stage).await;
    // Outside of the stage nobody could see why.
    played
        .with_context(|| format!("the demo failed; the workers' last words:\n{}", stage.logs()))?;
    stage.close().await?;
    say::aside(&format!(
        "\nThe whole demo took {:.0} s. Every process has drained and ended; nothing is left running.",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}
