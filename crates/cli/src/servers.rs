//! The servers of a command: opened when it needs them, with errors that name the address.
//!
//! A command does not wait for an unreachable server: it fails within seconds and names it.

use std::fmt;
use std::time::Duration;

use broker::Endpoints;
use database::{Database, SchemaError};
use domain::causes::with_causes;
use domain::failure::FailureClass;
use domain::fleet;
use service::settings::{AmqpSettings, DatabaseSettings, ReadReplicaSettings, ServerUrl};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::exit::{Failure, Unavailable};

/// Time limit of one statement: longer than any list needs.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a statement waits for a row lock. Commands take few locks, and workers hold theirs for
/// milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// PostgreSQL, with the address for error messages.
pub(crate) struct DatabaseServer {
    pub(crate) database: Database,
    url: ServerUrl,
    setting: &'static str,
}

/// RabbitMQ, with the address for error messages.
pub(crate) struct Broker {
    pub(crate) endpoints: Endpoints,
    address: String,
}

impl DatabaseServer {
    /// Opens the database and verifies its schema.
    pub(crate) async fn open(settings: &DatabaseSettings) -> Result<Self, Failure> {
        let server = Self::at(&settings.database_url, "DATABASE_URL", DATABASE_TIMEOUT).await?;
        server.database.verify_schema().await.map_err(|error| server.schema_failure(&error))?;
        Ok(server)
    }

    /// For lists: opens the read replica where `DATABASE_READ_URL` names one, else the database itself.
    pub(crate) async fn open_for_lists(
        settings: &DatabaseSettings,
        replica: &ReadReplicaSettings,
    ) -> Result<Self, Failure> {
        let Some(url) = &replica.database_read_url else {
            return Self::open(settings).await;
        };
        let server = Self::at(url, "DATABASE_READ_URL", DATABASE_TIMEOUT).await?;
        server.database.verify_schema().await.map_err(|error| server.schema_failure(&error))?;
        Ok(server)
    }

    /// Opens a database without verifying its schema; `limit` is the time limit of a unit of work.
    pub(crate) async fn at(
        url: &ServerUrl,
        setting: &'static str,
        limit: Duration,
    ) -> Result<Self, Failure> {
        // A connection attempt fails at once; a statement would wait for its whole limit.
        if let Err(cause) = probe(url).await {
            let address = url.to_string();
            return Err(Failure::Unavailable(Unavailable {
                server: "PostgreSQL",
                setting,
                address,
                cause,
            }));
        }
        Self::unprobed_at(url, setting, limit)
    }

    /// One that may be unreachable, for a command that also checks other servers.
    pub(crate) fn unprobed(settings: &DatabaseSettings) -> Result<Self, Failure> {
        Self::unprobed_at(&settings.database_url, "DATABASE_URL", DATABASE_TIMEOUT)
    }

    fn unprobed_at(
        url: &ServerUrl,
        setting: &'static str,
        limit: Duration,
    ) -> Result<Self, Failure> {
        let database = Database::open(&database::Settings {
            url: url.expose().to_owned(),
            application: fleet::VERBATIM.name().to_owned(),
            connections: 2,
            time_out: limit,
            lock_time_out: LOCK_TIMEOUT,
        })
        .map_err(|_| Failure::Usage(format!("{setting}: {url} is not a valid PostgreSQL URL")))?;
        Ok(Self { database, url: url.clone(), setting })
    }

    /// The failure for a failed statement.
    pub(crate) fn failure(&self, error: &database::Error) -> Failure {
        let cause = with_causes(error);
        match error.class() {
            FailureClass::Unavailable | FailureClass::Transient => self.unavailable(cause),
            FailureClass::Data | FailureClass::Retryable => {
                Failure::plain(format!("PostgreSQL at {}: {cause}", self.url))
            }
        }
    }

    /// The failure for a schema that is missing or too old.
    pub(crate) fn schema_failure(&self, error: &SchemaError) -> Failure {
        match error {
            SchemaError::Database(error) => self.failure(error),
            error @ (SchemaError::Missing
            | SchemaError::TooOld { .. }
            | SchemaError::Migration(_)) => {
                Failure::plain(format!("PostgreSQL at {}: {}", self.url, with_causes(error)))
            }
        }
    }

    pub(crate) fn unavailable(&self, cause: String) -> Failure {
        let (setting, address) = (self.setting, self.url.to_string());
        Failure::Unavailable(Unavailable { server: "PostgreSQL", setting, address, cause })
    }
}

impl Broker {
    /// Parses the address; does not connect.
    pub(crate) fn of(settings: &AmqpSettings) -> Result<Self, Failure> {
        let endpoints = Endpoints::parse(&joined(&settings.amqp_url), fleet::VERBATIM.name())
            .map_err(|error| Failure::Usage(format!("AMQP_URL: {error}")))?;
        Ok(Self { endpoints, address: without_secrets(&settings.amqp_url) })
    }

    /// The failure for a failed request.
    pub(crate) fn failure(&self, error: &broker::Error) -> Failure {
        self.unavailable(match error {
            // Its text repeats the address, which the failure names already.
            broker::Error::Connect { source, .. } => with_causes(source),
            other => with_causes(other),
        })
    }

    fn unavailable(&self, cause: String) -> Failure {
        let (server, setting, address) = ("RabbitMQ", "AMQP_URL", self.address.clone());
        Failure::Unavailable(Unavailable { server, setting, address, cause })
    }
}

/// URLs with their secrets, separated by commas, for a client.
pub(crate) fn joined(urls: &[ServerUrl]) -> String {
    urls.iter().map(ServerUrl::expose).collect::<Vec<_>>().join(",")
}

/// URLs without their secrets, separated by commas, for a message.
pub(crate) fn without_secrets(urls: &[ServerUrl]) -> String {
    urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
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

impl fmt::Debug for DatabaseServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({})", self.url)
    }
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
