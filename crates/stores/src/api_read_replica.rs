//! A read replica of the PostgreSQL of the conversation-api, with the address for error messages.

use std::time::Duration;

use access::Secrets;
use database::{ApiReadReplica, Limits, ReplicaState};
use domain::causes::with_causes;
use service::Service;
use service::settings::{ApiAccessSettings, ServerUrl};

use crate::api_postgresql::{ApiLimits, fault, settings};
use crate::fault::Fault;

const URL: &str = "API_DATABASE_READ_URL";

/// Within which time the replica says how far it is. One that does not is not used.
const STATE: Limits =
    Limits { time_out: Duration::from_secs(1), lock_time_out: Duration::from_secs(1) };

/// A read replica of PostgreSQL with the role of the API.
pub struct ReadReplicaServer {
    /// Its connections for requests.
    pub replica: ApiReadReplica,
    /// One connection that no request takes.
    apart: ApiReadReplica,
    url: ServerUrl,
}

impl ReadReplicaServer {
    /// For the API; does not connect. `None` if the settings name none.
    ///
    /// # Errors
    /// The URL is invalid.
    pub fn of_service(
        service: &Service,
        access: &ApiAccessSettings,
        secrets: &Secrets,
        limits: ApiLimits,
    ) -> Result<Option<Self>, Fault> {
        let Some(url) = &access.api_database_read_url else { return Ok(None) };
        let settings = settings(url, service.process().name(), limits);
        match ApiReadReplica::open(&settings, secrets.signing_tenant_key(), limits.statements) {
            Ok(replica) => {
                Ok(Some(Self { apart: replica.apart(STATE), replica, url: url.clone() }))
            }
            Err(error) => Err(Fault::Setting(format!(
                "{URL}: {url} is not a valid PostgreSQL URL: {}",
                with_causes(&error)
            ))),
        }
    }

    /// What the server says of itself.
    ///
    /// # Errors
    /// It did not answer within 1 s, or refused.
    pub async fn state(&self) -> Result<ReplicaState, Fault> {
        self.apart.state().await.map_err(|error| fault(URL, &self.url, error.into()))
    }

    /// Fails unless the role may do there what the API needs and nothing else.
    ///
    /// # Errors
    /// It may not, or PostgreSQL failed.
    pub async fn verify(&self) -> Result<(), Fault> {
        self.apart.verify().await.map_err(|error| fault(URL, &self.url, error))
    }
}
