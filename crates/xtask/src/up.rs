//! `cargo xtask up`: the servers and a small fleet, to play with.

use anyhow::Result;

use crate::say;
use crate::stage::Stage;
use crate::stores::Named;

/// Two savers, because one would hide what replicas do to each other.
const WORKERS: [&str; 4] = [
    "message-save-worker",
    "message-save-worker",
    "persistence-migration-worker",
    "statistics-worker",
];

/// Keeps servers and fleet until it is interrupted.
pub(crate) async fn run(named: Named) -> Result<()> {
    let mut stage = Stage::open(named, &[]).await?;
    stage.start(&WORKERS).await?;
    say::heading("\nthe fleet is up");
    for worker in stage.workers() {
        let address = worker.address().await?;
        say::line(&format!("{:<32} http://{address}/metrics", worker.name()));
    }
    say::heading("\nfor another terminal:");
    say::line(&format!("export AMQP_URL='{}'", stage.stores.amqp_url));
    say::line(&format!("export REDIS_URL='{}'", stage.stores.redis_url));
    say::line(&format!("export DATABASE_URL='{}'", stage.stores.database_url));
    say::line(&format!("export PATH=\"{}:$PATH\"", testkit::place::profile_dir().display()));
    say::line("verbatim queues");
    say::aside("\nCtrl-C stops everything and removes the data of private servers.");
    stage.watch().await
}
