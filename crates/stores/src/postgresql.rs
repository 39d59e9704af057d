//! PostgreSQL, with the address for error messages.

use std::time::Duration;

use backon::Retryable as _;
use database::{Database, RequiredDurability, SchemaError};
use domain::causes::with_causes;
use domain::failure::{Dependency, FailureClass};
use domain::fleet;
use service::Service;
use service::settings::{
    DatabaseSettings, DurabilitySettings, ReadReplicaSettings, ServerUrl, StoreSettings,
};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::fault::{Fault, Unavailable};
use crate::watch::{pauses, watch};

/// Time limit of one statement of a command: longer than any list needs.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a statement of a command waits for a row lock. Commands take few locks, and workers hold theirs for
/// milliseconds.
const COMMAND_LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may take to accept a connection of a command.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

const DATABASE_URL: &str = "DATABASE_URL";

/// PostgreSQL, with the address for error messages.
pub struct DatabaseServer {
    /// Its connections.
    pub database: Database,
    url: ServerUrl,
    setting: &'static str,
}

impl DatabaseServer {
    /// For a service; does not connect. Fails only on an invalid URL.
    pub(crate) fn of_service(service: &Service, settings: &StoreSettings) -> Result<Self, Fault> {
        let url = &settings.connections.database.database_url;
        let limits = database::Settings {
            url: url.expose().to_owned(),
            application: service.process().name().to_owned(),
            connections: settings.database_connections,
            time_out: settings.database_timeout,
            lock_time_out: settings.database_lock_timeout,
        };
        Self::new(url, DATABASE_URL, &limits)
    }

    /// For a command; does not connect. `limit` is the time limit of a statement. Fails only on an invalid URL.
    pub fn of_command(settings: &DatabaseSettings, limit: Duration) -> Result<Self, Fault> {
        Self::of_command_at(&settings.database_url, DATABASE_URL, limit)
    }

    /// For a command: fails if PostgreSQL is unreachable, or its schema missing or too old.
    pub async fn open(settings: &DatabaseSettings) -> Result<Self, Fault> {
        Self::of_command(settings, COMMAND_TIMEOUT)?.reachable().await?.verified().await
    }

    /// As [`Self::open`], for a command that lists: reads the replica where `DATABASE_READ_URL` names one.
    pub async fn open_for_lists(
        settings: &DatabaseSettings,
        replica: &ReadReplicaSettings,
    ) -> Result<Self, Fault> {
        let Some(url) = &replica.database_read_url else { return Self::open(settings).await };
        let server = Self::of_command_at(url, "DATABASE_READ_URL", COMMAND_TIMEOUT)?;
        server.reachable().await?.verified().await
    }

    fn of_command_at(
        url: &ServerUrl,
        setting: &'static str,
        limit: Duration,
    ) -> Result<Self, Fault> {
        let limits = database::Settings {
            url: url.expose().to_owned(),
            application: fleet::VERBATIM.name().to_owned(),
            connections: 2,
            time_out: limit,
            lock_time_out: COMMAND_LOCK_TIMEOUT,
        };
        Self::new(url, setting, &limits)
    }

    fn new(
        url: &ServerUrl,
        setting: &'static str,
        limits: &database::Settings,
    ) -> Result<Self, Fault> {
        match Database::open(limits) {
            Ok(database) => Ok(Self { database, url: url.clone(), setting }),
            // The causes of a URL that cannot be parsed hold no credentials.
            Err(error) => Err(Fault::Setting(format!(
                "{setting}: {url} is not a valid PostgreSQL URL: {}",
                with_causes(&error)
            ))),
        }
    }

    /// Fails if nothing listens at its address. A socket directory is not checked.
    pub async fn reachable(self) -> Result<Self, Fault> {
        let Some((host, port)) = self.database.address() else { return Ok(self) };
        let cause = match timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port))).await {
            Ok(Ok(_)) => return Ok(self),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
        };
        Err(self.unavailable(cause))
    }

    async fn verified(self) -> Result<Self, Fault> {
        match self.database.verify_schema().await {
            Ok(()) => Ok(self),
            Err(error) => Err(self.schema_failure(&error)),
        }
    }

    /// Waits until PostgreSQL is available; fails if it would lose commits, or if its schema is missing or too old.
    /// Advances sequences that lag behind their tables.
    pub(crate) async fn wait_for_schema(
        &self,
        settings: &DurabilitySettings,
    ) -> Result<(), SchemaError> {
        let unavailable = |error: &SchemaError| matches!(error, SchemaError::Database(e) if e.class() == FailureClass::Unavailable);
        let verify = async || {
            self.database.verify_server(required_durability(settings)).await?;
            self.database.verify_schema().await?;
            Ok(self.database.advance_sequences().await?)
        };
        let advanced = verify
            .retry(pauses())
            .when(unavailable)
            .notify(|error, pause| {
                tracing::warn!(
                    error = with_causes(error),
                    "PostgreSQL ({}) unavailable at start; trying again in {} ms",
                    self.setting,
                    pause.as_millis()
                );
            })
            .await?;
        for sequence in advanced {
            tracing::warn!(
                "PostgreSQL: {sequence}: it lagged behind its table, as after a logical restore"
            );
        }
        Ok(())
    }

    /// Maintains the check `postgresql` until the process stops.
    pub(crate) fn watch(&self, service: &Service) {
        let database = self.database.clone();
        let probe = move || {
            let database = database.clone();
            async move { database.probe().await }
        };
        watch(service, "postgresql-check", "postgresql", Dependency::PostgreSql, probe);
    }

    /// Fails if PostgreSQL would lose commits, or cannot store every text.
    pub async fn verify_server(&self, settings: &DurabilitySettings) -> Result<(), Fault> {
        let verified = self.database.verify_server(required_durability(settings)).await;
        verified.map_err(|error| self.schema_failure(&error))
    }

    /// The fault for a failed statement.
    #[must_use]
    pub fn failure(&self, error: &database::Error) -> Fault {
        let cause = with_causes(error);
        match error.class() {
            FailureClass::Unavailable | FailureClass::Transient => self.unavailable(cause),
            FailureClass::Data | FailureClass::Retryable => self.refused(&cause),
        }
    }

    /// The fault for a schema that is missing or too old.
    #[must_use]
    pub fn schema_failure(&self, error: &SchemaError) -> Fault {
        match error {
            SchemaError::Database(error) => self.failure(error),
            SchemaError::Encoding(_)
            | SchemaError::NotDurable(_)
            | SchemaError::Missing
            | SchemaError::TooOld { .. }
            | SchemaError::RowSecurity(_)
            | SchemaError::ApiRole { .. }
            | SchemaError::Pooler(_)
            | SchemaError::TenantKey
            | SchemaError::NotPermitted { .. }
            | SchemaError::Migration(_) => self.refused(&with_causes(error)),
        }
    }

    fn refused(&self, cause: &str) -> Fault {
        Fault::Refused(format!("PostgreSQL at {}: {cause}", self.url))
    }

    fn unavailable(&self, cause: String) -> Fault {
        let (setting, address) = (self.setting, self.url.to_string());
        Fault::Unavailable(Unavailable { server: "PostgreSQL", setting, address, cause })
    }
}

fn required_durability(settings: &DurabilitySettings) -> RequiredDurability {
    if settings.allow_fsync_off { RequiredDurability::Any } else { RequiredDurability::Durable }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_url_is_refused_with_its_cause_and_without_its_password() {
        let database_url = ServerUrl::postgresql("postgres://u:s3cret%FF@db/v").unwrap();
        let settings = DatabaseSettings { database_url };
        let refused = DatabaseServer::of_command(&settings, COMMAND_TIMEOUT).err().unwrap();
        let text = refused.to_string();
        assert!(text.starts_with("DATABASE_URL: postgres://***@db"), "{text}");
        assert!(text.contains("invalid utf-8 sequence") && !text.contains("s3cret"), "{text}");
    }
}
