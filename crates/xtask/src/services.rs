//! `cargo xtask services`: only the servers, for running single processes by hand.

use anyhow::Result;

use crate::say;
use crate::servers::{LocalServers, ServerOptions};

/// Runs the servers until it is interrupted.
pub(crate) async fn run(options: ServerOptions) -> Result<()> {
    let servers = LocalServers::open(options).await?;
    say::heading("\nThe servers are ready. In another terminal:");
    say::line(&format!("export AMQP_URL='{}'", servers.amqp_url));
    say::line(&format!("export REDIS_URL='{}'", servers.redis_url));
    say::line(&format!("export DATABASE_URL='{}'", servers.database_url));
    for (name, value) in &servers.settings {
        say::line(&format!("export {name}={value}"));
    }
    say::aside("\nCtrl-C stops the servers and removes their data.");
    std::future::pending().await
}
