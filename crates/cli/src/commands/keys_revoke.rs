//! `verbatim keys revoke`: an API key is refused from now on.

use clap::Args;
use service::settings::DatabaseSettings;
use stores::DatabaseServer;

use super::keys_create::key_id;
use super::keys_rotate::unknown;
use crate::actor::ActorArgs;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Tone};

/// Revokes an API key: every replica of the conversation-api refuses it within 5 s
#[derive(Debug, Args)]
#[command(override_usage = "verbatim keys revoke <ID> [OPTIONS]")]
#[command(after_help = "\
Examples:
  verbatim keys revoke Ab3dEf9h --why 'leaked in a log'

It cannot be undone: create another key instead.")]
pub(crate) struct KeysRevoke {
    /// The id of the key: the 8 characters after vbt_
    #[arg(value_parser = key_id)]
    id: String,

    /// Why; recorded in the audit log
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,

    #[command(flatten)]
    actor: ActorArgs,
    #[command(flatten)]
    database: DatabaseSettings,
}

impl KeysRevoke {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let server = DatabaseServer::open(&self.database).await?;
        let actor = self.actor.actor();
        let revoked = server.database.revoke_api_key(&self.id, self.why.as_deref(), &actor).await;
        let Some(key) = revoked.map_err(|error| server.failure(&error))? else {
            return Err(unknown(&self.id));
        };
        output.show(&key, |out| {
            out.line(Tone::Plain, format!("revoked key {} ({})", key.id, key.name));
            out.line(Tone::Dim, "Every replica of the conversation-api refuses it within 5 s.");
        })?;
        Ok(Exit::Success)
    }
}
