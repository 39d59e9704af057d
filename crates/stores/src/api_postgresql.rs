//! PostgreSQL with the role of the conversation-api, with the address for error messages.

use std::time::Duration;

use access::Secrets;
use backon::Retryable as _;
use database::{ApiDatabase, ApiRole, SchemaError};
use domain::causes::with_causes;
use domain::failure::{Dependency, FailureClass};
use service::Service;
use service::settings::{ApiAccessSettings, ApiRoleSettings, Secret, ServerUrl};

use crate::fault::{Fault, Unavailable};
use crate::postgresql::COMMAND_TIMEOUT;
use crate::watch::{pauses, watch};

const URL: &str = "API_DATABASE_URL";

/// Limits of the connections of the API.
#[derive(Debug, Clone, Copy)]
pub struct ApiLimits {
    /// The most connections.
    pub connections: u32,
    /// Time limit of one transaction, the wait for a connection included.
    pub time_out: Duration,
}

/// PostgreSQL with the role of the API.
pub struct ApiDatabaseServer {
    /// Its connections.
    pub database: ApiDatabase,
    /// What signs tenants, cursors and ETags.
    pub secrets: Secrets,
    url: ServerUrl,
}

impl ApiDatabaseServer {
    /// For the API; does not connect.
    ///
    /// # Errors
    /// The URL is invalid.
    pub fn of_service(
        service: &Service,
        settings: &ApiAccessSettings,
        limits: ApiLimits,
    ) -> Result<Self, Fault> {
        Self::new(
            &settings.api_database_url,
            &settings.api_secret,
            service.process().name(),
            limits,
        )
    }

    /// For `verbatim setup`, with the role that it is to set up; `None` if neither URL nor secret is set.
    ///
    /// # Errors
    /// One of them is missing, the URL is invalid or names no user.
    pub fn of_setup(settings: &ApiRoleSettings) -> Result<Option<(Self, ApiRole)>, Fault> {
        let Some(url) = &settings.api_database_url else {
            return match settings.api_secret.is_empty() {
                true => Ok(None),
                false => Err(missing(URL, "API_SECRET")),
            };
        };
        if settings.api_secret.is_empty() {
            return Err(missing("API_SECRET", URL));
        }
        let Some((name, password)) = url.credentials() else {
            let reason =
                "it names no user, so there is no role to set up: write it before the host";
            return Err(Fault::Setting(format!("{URL}: {url}: {reason}")));
        };
        if password.as_ref().is_some_and(|password| !password.is_ascii()) {
            let reason = "its password has characters beyond ASCII, which clients normalise in different ways";
            return Err(Fault::Setting(format!("{URL}: {url}: {reason}")));
        }
        let limits = ApiLimits { connections: 1, time_out: COMMAND_TIMEOUT };
        let server = Self::new(url, &settings.api_secret, "verbatim", limits)?;
        Ok(Some((server, ApiRole { name, password })))
    }

    fn new(
        url: &ServerUrl,
        secrets: &[Secret],
        application: &str,
        limits: ApiLimits,
    ) -> Result<Self, Fault> {
        let secrets = Secrets::new(secrets.iter().map(Secret::expose))
            .ok_or_else(|| missing("API_SECRET", URL))?;
        match ApiDatabase::open(&settings(url, application, limits), secrets.signing_tenant_key()) {
            Ok(database) => Ok(Self { database, secrets, url: url.clone() }),
            Err(error) => Err(Fault::Setting(format!(
                "{URL}: {url} is not a valid PostgreSQL URL: {}",
                with_causes(&error)
            ))),
        }
    }

    /// Waits until PostgreSQL is available.
    ///
    /// # Errors
    /// The schema is missing or too old, or the role or the secret is not as `verbatim setup` sets them.
    pub async fn wait_until_verified(&self) -> Result<(), SchemaError> {
        let unavailable = |error: &SchemaError| matches!(error, SchemaError::Database(e) if e.class() == FailureClass::Unavailable);
        let verify = async || self.database.verify().await;
        verify
            .retry(pauses())
            .when(unavailable)
            .notify(|error, pause| {
                tracing::warn!(
                    error = with_causes(error),
                    "PostgreSQL ({URL}) unavailable at start; trying again in {} ms",
                    pause.as_millis()
                );
            })
            .await
    }

    /// Fails unless the role may do what the API needs and nothing else.
    ///
    /// # Errors
    /// It may not, or PostgreSQL failed.
    pub async fn verify(&self) -> Result<(), Fault> {
        self.database.verify().await.map_err(|error| match error {
            SchemaError::Database(error) => Fault::Unavailable(Unavailable {
                server: "PostgreSQL",
                setting: URL,
                address: self.url.to_string(),
                cause: with_causes(&error),
            }),
            error => Fault::Refused(format!("PostgreSQL at {}: {}", self.url, with_causes(&error))),
        })
    }

    /// Maintains the check `postgresql` until the process stops.
    pub fn watch(&self, service: &Service) {
        let database = self.database.clone();
        let probe = move || {
            let database = database.clone();
            async move { database.probe().await }
        };
        watch(service, "postgresql-check", "postgresql", Dependency::PostgreSql, probe);
    }
}

fn settings(url: &ServerUrl, application: &str, limits: ApiLimits) -> database::Settings {
    database::Settings {
        url: url.expose().to_owned(),
        application: application.to_owned(),
        connections: limits.connections,
        time_out: limits.time_out,
        // It locks no row for long.
        lock_time_out: limits.time_out.min(Duration::from_secs(2)),
    }
}

fn missing(name: &str, other: &str) -> Fault {
    Fault::Setting(format!("{name} is not set, but {other} is: the conversation-api needs both"))
}
