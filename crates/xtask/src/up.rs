//! `cargo xtask up`: the servers and a small fleet, for trying out.

use anyhow::Result;

use crate::local_system::LocalSystem;
use crate::say;
use crate::servers::ServerOptions;

/// Runs servers and fleet until it is interrupted.
pub(crate) async fn run(options: ServerOptions) -> Result<()> {
    let mut system = LocalSystem::open(options, &[]).await?;
    system.start_fleet().await?;
    say::heading("\nThe fleet is running:");
    for worker in system.workers() {
        let address = worker.address().await?;
        say::line(&format!("{:<32} http://{address}/metrics", worker.name()));
    }
    say::heading("\nIn another terminal:");
    say::line(&format!("export AMQP_URL='{}'", system.servers.amqp_url));
    say::line(&format!("export REDIS_URL='{}'", system.servers.redis_url));
    say::line(&format!("export DATABASE_URL='{}'", system.servers.database_url));
    for (name, value) in &system.servers.settings {
        say::line(&format!("export {name}={value}"));
    }
    for (name, value) in &system.api_settings {
        say::line(&format!("export {name}='{value}'"));
    }
    say::line(&format!("export PATH=\"{}:$PATH\"", testkit::place::profile_dir().display()));
    say::line("verbatim queues");
    match system.api_address() {
        Some(address) => {
            say::line(&format!("export api=http://{address}"));
            say::line("verbatim keys create --tenant demo --name mine --scope read");
            say::line("curl -H 'Authorization: Bearer vbt_…' \"$api/api/conversations/list/demo\"");
        }
        None => say::aside("No API: set API_DATABASE_URL to a role for it on your PostgreSQL."),
    }
    say::aside("\nCtrl-C stops all processes and removes the data of private servers.");
    system.watch().await
}
