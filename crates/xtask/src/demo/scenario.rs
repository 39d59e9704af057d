//! What the demo plays.

use anyhow::Result;

use crate::say;
use crate::stage::Stage;

/// Settings of every process in the demo.
pub(super) const SETTINGS: [(&str, &str); 0] = [];

/// Plays it.
pub(super) async fn play(stage: &mut Stage) -> Result<()> {
    stage
        .start(&[
            "message-save-worker",
            "message-save-worker",
            "persistence-migration-worker",
            "statistics-worker",
        ])
        .await?;
    say::heading("\nthe fleet's queues");
    say::line(&format!("{:#}", stage.ask(&["queues"]).await?));
    Ok(())
}
