//! The servers of a command: opened when it needs them, with errors that say where they were looked
//! for.
//!
//! A command line does not wait for servers that are away: a person would rather be told.

use std::fmt;
use std::time::Duration;

use broker::Endpoints;
use database::{Database, SchemaError};
use domain::causes::with_causes;
use domain::failure::FailureClass;
use service::Process;
use service::settings::{AmqpSettings, DatabaseSettings, ReadReplicaSettings, ServerUrl};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::exit::{Away, Failure};

/// For one statement: longer than any list takes, shorter than a person's patience.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a statement waits for a row lock. Commands that change rows take few, and workers hold theirs
/// for milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// For a server to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// PostgreSQL, and where it is.
pub(crate) struct DatabaseServer {
    pub(crate) database: Database,
    url: ServerUrl,
    setting: &'static str,
}

/// RabbitMQ, and where it is.
pub(crate) struct Broker {
    pub(crate) endpoints: Endpoints,
    address: String,
}

impl DatabaseServer {
    /// Opens the database for reading and makes sure that its schema is there.
    pub(crate) async fn open(settings: &DatabaseSettings) -> Result<Self, Failure> {
        let server = Self::at(&settings.database_url, "DATABASE_URL", DATABASE_TIMEOUT).await?;
        server.database.verify_schema().await.map_err(|error| server.schema_failure(&error))?;
        Ok(server)
    }

    /// Opens the read replica, where there is one, else the database itself. For lists.
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

    /// Opens a database whose schema may not be there; one unit of work may take `limit`.
    pub(crate) async fn at(
        url: &ServerUrl,
        setting: &'static str,
        limit: Duration,
    ) -> Result<Self, Failure> {
        // Whether anybody is there shows at once; a statement would wait for its whole limit.
        if let Err(cause) = reach(url).await {
            let address = url.to_string();
            return Err(Failure::Away(Away { server: "PostgreSQL", setting, address, cause }));
        }
        Self::made(url, setting, limit)
    }

    /// One that may not be there: for whoever has something else to look at.
    pub(crate) fn unreached(settings: &DatabaseSettings) -> Result<Self, Failure> {
        Self::made(&settings.database_url, "DATABASE_URL", DATABASE_TIMEOUT)
    }

    fn made(url: &ServerUrl, setting: &'static str, limit: Duration) -> Result<Self, Failure> {
        let database = Database::open(&database::Settings {
            url: url.expose().to_owned(),
            application: Process::Verbatim.name().to_owned(),
            connections: 2,
            time_out: limit,
            lock_time_out: LOCK_TIMEOUT,
        })
        .map_err(|_| Failure::Usage(format!("{setting}: {url} cannot be used as an address")))?;
        Ok(Self { database, url: url.clone(), setting })
    }

    /// What a failed statement means to the user.
    pub(crate) fn failure(&self, error: &database::Error) -> Failure {
        let cause = with_causes(error);
        match error.class() {
            FailureClass::Unavailable | FailureClass::Transient => self.away(cause),
            FailureClass::Data | FailureClass::Retryable => {
                Failure::plain(format!("PostgreSQL at {}: {cause}", self.url))
            }
        }
    }

    /// What a schema that is not there means to the user.
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

    pub(crate) fn away(&self, cause: String) -> Failure {
        let (setting, address) = (self.setting, self.url.to_string());
        Failure::Away(Away { server: "PostgreSQL", setting, address, cause })
    }
}

impl Broker {
    /// Knows where RabbitMQ is; nothing is connected yet.
    pub(crate) fn of(settings: &AmqpSettings) -> Result<Self, Failure> {
        let endpoints = Endpoints::parse(&joined(&settings.amqp_url), Process::Verbatim.name())
            .map_err(|error| Failure::Usage(format!("AMQP_URL: {error}")))?;
        Ok(Self { endpoints, address: shown(&settings.amqp_url) })
    }

    /// What a failed request means to the user.
    pub(crate) fn failure(&self, error: &broker::Error) -> Failure {
        self.away(match error {
            // It names the address, which is said anyway.
            broker::Error::Connect { source, .. } => with_causes(source),
            other => with_causes(other),
        })
    }

    fn away(&self, cause: String) -> Failure {
        let (server, setting, address) = ("RabbitMQ", "AMQP_URL", self.address.clone());
        Failure::Away(Away { server, setting, address, cause })
    }
}

/// Addresses as their client takes them.
pub(crate) fn joined(urls: &[ServerUrl]) -> String {
    urls.iter().map(ServerUrl::expose).collect::<Vec<_>>().join(",")
}

/// Addresses as they may be shown.
pub(crate) fn shown(urls: &[ServerUrl]) -> String {
    urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Whether anybody listens at an address. One that names a socket directory is left to its client.
async fn reach(url: &ServerUrl) -> Result<(), String> {
    /// PostgreSQL's own port (IANA).
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
    // libpq lets the query name another host.
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
