//! `verbatim keys rotate`: a new secret for an API key.

use std::time::Duration;

use access::ApiKey;
use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;
use service::settings::{DatabaseSettings, duration};
use stores::DatabaseServer;

use super::keys_create::{key_id, new_key, show_once};
use crate::actor::ActorArgs;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Tone, moment};
use crate::values::After;

/// Gives an API key a new secret; the old one stays valid for a while
#[derive(Debug, Args)]
#[command(override_usage = "verbatim keys rotate <ID> [OPTIONS]")]
#[command(after_help = "\
Examples:
  verbatim keys rotate Ab3dEf9h
  verbatim keys rotate Ab3dEf9h --keep-old 7d
  verbatim keys rotate Ab3dEf9h --keep-old 0s     # the old secret stops within 5 s

A key has at most two valid secrets: rotating again ends the one before.")]
pub(crate) struct KeysRotate {
    /// The id of the key: the 8 characters after vbt_
    #[arg(value_parser = key_id)]
    id: String,

    /// How long the old secret stays valid
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    keep_old: Duration,

    #[command(flatten)]
    actor: ActorArgs,
    #[command(flatten)]
    database: DatabaseSettings,
}

#[derive(Debug, Serialize)]
struct Rotated<'a> {
    id: &'a str,
    key: &'a str,
    old_secret_until: DateTime<Utc>,
}

impl KeysRotate {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let server = DatabaseServer::open(&self.database).await?;
        let key = new_key(ApiKey::with_secret(&self.id))?;
        let until: DateTime<Utc> = After::In(self.keep_old).from(output.now).into();
        let (hash, actor) = (key.secret_hash(), self.actor.actor());
        let rotated = server.database.rotate_api_key(&self.id, hash, until, &actor).await;
        if rotated.map_err(|error| server.failure(&error))?.is_none() {
            return Err(unknown(&self.id));
        }
        let rotated = Rotated { id: &self.id, key: key.expose(), old_secret_until: until };
        output.show(&rotated, |out| {
            out.line(Tone::Plain, format!("rotated key {}", self.id));
            out.field("old secret", Tone::Plain, format!("valid until {}", moment(until)));
            show_once(out, key.expose());
        })?;
        Ok(Exit::Success)
    }
}

/// No key that is not revoked has this id.
pub(crate) fn unknown(id: &str) -> Failure {
    Failure::problem(
        format!("no key has the id {id:?}, or it is revoked"),
        "`verbatim keys list` shows the ids",
    )
}
