//! PostgreSQL with the roles of the conversation-api, with the addresses for error messages.

use std::time::Duration;

use access::Secrets;
use backon::Retryable as _;
use database::{ApiDatabase, ApiRole, ApiRoleKind, OperatorDatabase, SchemaError, Statements};
use domain::causes::with_causes;
use domain::failure::{Dependency, FailureClass};
use service::Service;
use service::settings::{ApiAccessSettings, ApiRoleSettings, Secret, ServerUrl};

use crate::fault::{Fault, Unavailable};
use crate::postgresql::COMMAND_TIMEOUT;
use crate::watch::{pauses, watch};

/// Limits of the connections of the API.
#[derive(Debug, Clone, Copy)]
pub struct ApiLimits {
    /// The most connections.
    pub connections: u32,
    /// Time limit of one transaction, the wait for a connection included.
    pub time_out: Duration,
    /// How statements are sent.
    pub statements: Statements,
}

/// The most connections for operators.
const OPERATOR_CONNECTIONS: u32 = 4;

/// PostgreSQL with the roles of the API.
pub struct ApiDatabaseServer {
    /// Its connections.
    pub database: ApiDatabase,
    /// Those for operators; `None`: `API_OPERATOR_DATABASE_URL` is not set.
    pub operators: Option<OperatorDatabase>,
    /// What signs tenants, cursors and ETags.
    pub secrets: Secrets,
    urls: Urls,
}

/// The URLs of the two roles.
struct Urls {
    tenants: ServerUrl,
    operators: Option<ServerUrl>,
}

impl ApiDatabaseServer {
    /// For the API; does not connect.
    ///
    /// # Errors
    /// A URL is invalid.
    pub fn of_service(
        service: &Service,
        settings: &ApiAccessSettings,
        limits: ApiLimits,
    ) -> Result<Self, Fault> {
        let urls = Urls {
            tenants: settings.api_database_url.clone(),
            operators: settings.api_operator_database_url.clone(),
        };
        Self::new(urls, &settings.api_secret, service.process().name(), limits)
    }

    /// For `verbatim setup`, with the roles that it is to set up; `None` if neither URL nor secret is set.
    ///
    /// # Errors
    /// One of them is missing, a URL is invalid or names no user, or both name the same.
    pub fn of_setup(settings: &ApiRoleSettings) -> Result<Option<(Self, Vec<ApiRole>)>, Fault> {
        let kinds = [ApiRoleKind::Tenants, ApiRoleKind::Operators];
        let [tenants, operators] = kinds.map(ApiRoleKind::setting);
        let Some(url) = settings.api_database_url.clone() else {
            return match (&settings.api_operator_database_url, settings.api_secret.is_empty()) {
                (None, true) => Ok(None),
                (Some(_), _) => Err(missing(tenants, operators)),
                (None, false) => Err(missing(tenants, "API_SECRET")),
            };
        };
        if settings.api_secret.is_empty() {
            return Err(missing("API_SECRET", tenants));
        }
        let urls = Urls { tenants: url, operators: settings.api_operator_database_url.clone() };
        let roles: Vec<ApiRole> = urls.named().map(role).collect::<Result<_, _>>()?;
        if let [one, other] = roles.as_slice()
            && one.name == other.name
        {
            let reason = "both name the same user: give each a role of its own";
            return Err(Fault::Setting(format!("{tenants} and {operators}: {reason}")));
        }
        let statements = Statements::Unnamed;
        let limits = ApiLimits { connections: 1, time_out: COMMAND_TIMEOUT, statements };
        let server = Self::new(urls, &settings.api_secret, "verbatim", limits)?;
        Ok(Some((server, roles)))
    }

    fn new(
        urls: Urls,
        secrets: &[Secret],
        application: &str,
        limits: ApiLimits,
    ) -> Result<Self, Fault> {
        let secrets = Secrets::new(secrets.iter().map(Secret::expose))
            .ok_or_else(|| missing("API_SECRET", ApiRoleKind::Tenants.setting()))?;
        let key = || secrets.signing_tenant_key();
        let database = ApiDatabase::open(
            &settings(&urls.tenants, application, limits),
            key(),
            limits.statements,
        );
        let database =
            database.map_err(|error| invalid(ApiRoleKind::Tenants, &urls.tenants, &error))?;
        let few = ApiLimits { connections: limits.connections.min(OPERATOR_CONNECTIONS), ..limits };
        let operators = urls.operators.as_ref().map(|url| {
            OperatorDatabase::open(&settings(url, application, few), key(), limits.statements)
                .map_err(|error| invalid(ApiRoleKind::Operators, url, &error))
        });
        Ok(Self { database, operators: operators.transpose()?, secrets, urls })
    }

    /// Waits until PostgreSQL is available.
    ///
    /// # Errors
    /// The schema is missing or too old, or a role or the secret is not as `verbatim setup` sets them.
    pub async fn wait_until_verified(&self) -> Result<(), SchemaError> {
        let unavailable = |error: &SchemaError| matches!(error, SchemaError::Database(e) if e.class() == FailureClass::Unavailable);
        let verify = async || self.verify_roles().await.map_err(|(_, error)| error);
        verify
            .retry(pauses())
            .when(unavailable)
            .notify(|error, pause| {
                tracing::warn!(
                    error = with_causes(error),
                    "PostgreSQL of the API unavailable at start; trying again in {} ms",
                    pause.as_millis()
                );
            })
            .await
    }

    /// Fails unless the roles may do what the API needs and nothing else.
    ///
    /// # Errors
    /// One may not, or PostgreSQL failed.
    pub async fn verify(&self) -> Result<(), Fault> {
        let verified = self.verify_roles().await;
        verified.map_err(|(kind, error)| fault(kind.setting(), self.urls.of(kind), error))
    }

    async fn verify_roles(&self) -> Result<(), (ApiRoleKind, SchemaError)> {
        let verified = self.database.verify().await;
        verified.map_err(|error| (ApiRoleKind::Tenants, error))?;
        match &self.operators {
            None => Ok(()),
            Some(operators) => {
                operators.verify().await.map_err(|error| (ApiRoleKind::Operators, error))
            }
        }
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

/// Why the server at this URL cannot be used.
pub(crate) fn fault(setting: &'static str, url: &ServerUrl, error: SchemaError) -> Fault {
    match error {
        SchemaError::Database(error) => Fault::Unavailable(Unavailable {
            server: "PostgreSQL",
            setting,
            address: url.to_string(),
            cause: with_causes(&error),
        }),
        error => Fault::Refused(format!("PostgreSQL at {url}: {}", with_causes(&error))),
    }
}

pub(crate) fn settings(
    url: &ServerUrl,
    application: &str,
    limits: ApiLimits,
) -> database::Settings {
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

fn invalid(kind: ApiRoleKind, url: &ServerUrl, error: &database::Error) -> Fault {
    let (setting, error) = (kind.setting(), with_causes(error));
    Fault::Setting(format!("{setting}: {url} is not a valid PostgreSQL URL: {error}"))
}

impl Urls {
    fn named(&self) -> impl Iterator<Item = (ApiRoleKind, &ServerUrl)> {
        let operators = self.operators.iter().map(|url| (ApiRoleKind::Operators, url));
        std::iter::once((ApiRoleKind::Tenants, &self.tenants)).chain(operators)
    }

    fn of(&self, kind: ApiRoleKind) -> &ServerUrl {
        match (kind, &self.operators) {
            (ApiRoleKind::Operators, Some(url)) => url,
            _ => &self.tenants,
        }
    }
}

/// The role that a URL names.
fn role((kind, url): (ApiRoleKind, &ServerUrl)) -> Result<ApiRole, Fault> {
    let fault = |reason: &str| Fault::Setting(format!("{}: {url}: {reason}", kind.setting()));
    let Some((name, password)) = url.credentials() else {
        return Err(fault(
            "it names no user, so there is no role to set up: write it before the host",
        ));
    };
    if password.as_ref().is_some_and(|password| !password.is_ascii()) {
        return Err(fault(
            "its password has characters beyond ASCII, which clients normalise in different ways",
        ));
    }
    Ok(ApiRole { kind, name, password })
}
