//! `cargo xtask services`: the servers alone, for working on one process by hand.

use anyhow::Result;

use crate::say;
use crate::stores::{Named, Stores};

/// Keeps the servers until it is interrupted.
pub(crate) async fn run(named: Named) -> Result<()> {
    let stores = Stores::open(named).await?;
    say::heading("\nready; for another terminal:");
    say::line(&format!("export AMQP_URL='{}'", stores.amqp_url));
    say::line(&format!("export REDIS_URL='{}'", stores.redis_url));
    say::line(&format!("export DATABASE_URL='{}'", stores.database_url));
    say::aside("\nCtrl-C stops the servers and removes their data.");
    std::future::pending().await
}
