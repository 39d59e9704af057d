//! PostgreSQL, with the address for error messages.

use std::fmt;
use std::time::Duration;

use backon::Retryable as _;
use database::{Database, SchemaError};
use domain::causes::with_causes;
use domain::failure::{Dependency, FailureClass};
use domain::fleet;
use service::Service;
use service::settings::{DatabaseSettings, ReadReplicaSettings, ServerUrl, StoreSettings};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::fault::{Fault, Unavailable};
use crate::watch::{pauses, watch};

/// Time limit of one statement of a command: longer than any list needs.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
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
    /// For a service. It may be unavailable: [`Self::wait_for_schema`] waits for it.
    ///
    /// # Errors
    /// The URL is invalid.
    pub fn of_service(service: &Service, settings: &StoreSettings) -> Result<Self, Fault> {
        let url = &settings.connections.database.database_url;
        Self::with(url, DATABASE_URL, |url| database::Settings {
            url,
            application: service.process().name().to_owned(),
            connections: settings.database_connections,
            time_out: settings.database_timeout,
            lock_time_out: settings.database_lock_timeout,
        })
    }

    /// For a command: fails if PostgreSQL is unreachable, or its schema missing or too old.
    ///
    /// # Errors
    /// PostgreSQL cannot be used.
    pub async fn open(settings: &DatabaseSettings) -> Result<Self, Fault> {
        Self::at(&settings.database_url, DATABASE_URL, COMMAND_TIMEOUT).await?.verified().await
    }

    /// For a command that lists: the read replica where `DATABASE_READ_URL` names one, else as [`Self::open`].
    ///
    /// # Errors
    /// PostgreSQL cannot be used.
    pub async fn open_for_lists(
        settings: &DatabaseSettings,
        replica: &ReadReplicaSettings,
    ) -> Result<Self, Fault> {
        match &replica.database_read_url {
            Some(url) => {
                Self::at(url, "DATABASE_READ_URL", COMMAND_TIMEOUT).await?.verified().await
            }
            None => Self::open(settings).await,
        }
    }

    /// For a command that changes the schema: does not verify it. `limit` is the time limit of a statement.
    ///
    /// # Errors
    /// PostgreSQL is unreachable.
    pub async fn open_without_schema(
        settings: &DatabaseSettings,
        limit: Duration,
    ) -> Result<Self, Fault> {
        Self::at(&settings.database_url, DATABASE_URL, limit).await
    }

    /// For a command that also checks other servers: PostgreSQL may be unreachable.
    ///
    /// # Errors
    /// The URL is invalid.
    pub fn unprobed(settings: &DatabaseSettings) -> Result<Self, Fault> {
        Self::of_command(&settings.database_url, DATABASE_URL, COMMAND_TIMEOUT)
    }

    async fn at(url: &ServerUrl, setting: &'static str, limit: Duration) -> Result<Self, Fault> {
        let server = Self::of_command(url, setting, limit)?;
        // A connection attempt fails at once; a statement would wait for its whole limit.
        match probe(url).await {
            Ok(()) => Ok(server),
            Err(cause) => Err(server.unavailable(cause)),
        }
    }

    fn of_command(url: &ServerUrl, setting: &'static str, limit: Duration) -> Result<Self, Fault> {
        Self::with(url, setting, |url| database::Settings {
            url,
            application: fleet::VERBATIM.name().to_owned(),
            connections: 2,
            time_out: limit,
            lock_time_out: COMMAND_LOCK_TIMEOUT,
        })
    }

    fn with(
        url: &ServerUrl,
        setting: &'static str,
        settings: impl FnOnce(String) -> database::Settings,
    ) -> Result<Self, Fault> {
        let database = Database::open(&settings(url.expose().to_owned())).map_err(|_| {
            Fault::Setting(format!("{setting}: {url} is not a valid PostgreSQL URL"))
        })?;
        Ok(Self { database, url: url.clone(), setting })
    }

    async fn verified(self) -> Result<Self, Fault> {
        match self.database.verify_schema().await {
            Ok(()) => Ok(self),
            Err(error) => Err(self.schema_failure(&error)),
        }
    }

    /// Waits until PostgreSQL is available, and verifies the schema.
    ///
    /// # Errors
    /// The schema is missing or too old.
    pub async fn wait_for_schema(&self) -> Result<(), SchemaError> {
        let unavailable = |error: &SchemaError| matches!(error, SchemaError::Database(e) if e.class() == FailureClass::Unavailable);
        (|| self.database.verify_schema())
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
            .await
    }

    /// Maintains the check `postgresql` until the process stops.
    pub fn watch(&self, service: &Service) {
        let (check, database) = (service.check("postgresql"), self.database.clone());
        let probe = move || {
            let database = database.clone();
            async move { database.probe().await }
        };
        watch(service, "postgresql-check", check, Dependency::PostgreSql, probe);
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
            SchemaError::Missing | SchemaError::TooOld { .. } | SchemaError::Migration(_) => {
                self.refused(&with_causes(error))
            }
        }
    }

    fn refused(&self, cause: &str) -> Fault {
        Fault::Refused(format!("PostgreSQL at {}: {cause}", self.url))
    }

    /// The fault for a server that does not answer.
    #[must_use]
    pub fn unavailable(&self, cause: String) -> Fault {
        let (setting, address) = (self.setting, self.url.to_string());
        Fault::Unavailable(Unavailable { server: "PostgreSQL", setting, address, cause })
    }
}

impl fmt::Debug for DatabaseServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseServer({})", self.url)
    }
}

/// Checks that a server listens at an address. A socket directory is not checked.
async fn probe(url: &ServerUrl) -> Result<(), String> {
    /// PostgreSQL's port (IANA).
    const POSTGRESQL: u16 = 5432;
    let Some((host, port)) = host_and_port(url, POSTGRESQL) else {
        return Ok(());
    };
    match timeout(CONNECT_TIMEOUT, TcpStream::connect((host.as_str(), port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())),
    }
}

fn host_and_port(url: &ServerUrl, default: u16) -> Option<(String, u16)> {
    // As in libpq, the query may name the host.
    if url.expose().contains("host=") {
        return None;
    }
    let text = url.to_string();
    let rest = text.split_once("://")?.1;
    let authority = rest.split('/').next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (host, default),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_in_each_of_its_forms() {
        for (url, expected) in [
            ("postgres://u:p@db:6543/v?sslmode=require", Some(("db", 6543))),
            ("postgres://db", Some(("db", 5432))),
            ("postgres://u@[::1]:6543/v", Some(("::1", 6543))),
            ("postgres://[::1]/v", Some(("::1", 5432))),
            ("postgres:///v?host=/run/postgresql", None),
        ] {
            let found = host_and_port(&ServerUrl::postgresql(url).unwrap(), 5432);
            assert_eq!(found, expected.map(|(host, port)| (host.to_owned(), port)), "{url}");
        }
    }
}
