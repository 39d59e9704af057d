//! RabbitMQ, with the address for error messages.

use anyhow::Context as _;
use backon::Retryable as _;
use broker::Endpoints;
use broker::inspect::Inspector;
use broker::topology::{self, TopologyError};
use domain::causes::with_causes;
use domain::failure::Dependency;
use domain::fleet::{self, Process};
use service::Service;
use service::settings::AmqpSettings;

use crate::addresses::{joined, without_secrets};
use crate::fault::{Fault, Unavailable};
use crate::watch::{pauses, watch};

/// RabbitMQ, with the address for error messages.
pub struct Broker {
    /// Its addresses.
    pub endpoints: Endpoints,
    address: String,
}

impl Broker {
    /// For a command; does not connect. Fails only on an invalid URL.
    pub fn of(settings: &AmqpSettings) -> Result<Self, Fault> {
        Self::of_process(settings, fleet::VERBATIM)
    }

    /// For any process; does not connect. Fails only on an invalid URL.
    pub fn of_process(settings: &AmqpSettings, process: Process) -> Result<Self, Fault> {
        let endpoints = Endpoints::parse(&joined(&settings.amqp_url), process.name())
            .map_err(|error| Fault::Setting(format!("AMQP_URL: {error}")))?;
        Ok(Self { endpoints, address: without_secrets(&settings.amqp_url) })
    }

    /// Waits until RabbitMQ is available, and verifies the topology.
    ///
    /// # Errors
    /// The topology is not that of this version.
    pub(crate) async fn wait_for_topology(&self) -> anyhow::Result<()> {
        (|| topology::verify_and_bind(&self.endpoints))
            .retry(pauses())
            .when(|error| matches!(error, TopologyError::Unavailable(_)))
            .notify(|error, pause| {
                tracing::warn!(
                    error = with_causes(error),
                    "RabbitMQ (AMQP_URL) unavailable at start; trying again in {} ms",
                    pause.as_millis()
                );
            })
            .await
            .context(
                "RabbitMQ is not set up for this version: run `verbatim setup`; `verbatim queues` shows what is \
                 missing",
            )
    }

    /// Maintains the check `rabbitmq` until the process stops, on the connection of the inspector that it returns.
    pub(crate) fn watch(&self, service: &Service) -> Inspector {
        let inspector = Inspector::new(self.endpoints.clone());
        let probed = inspector.clone();
        let probe = move || {
            let inspector = probed.clone();
            async move { inspector.probe().await }
        };
        watch(service, "rabbitmq-check", "rabbitmq", Dependency::RabbitMq, probe);
        inspector
    }

    /// The fault for a failed request.
    #[must_use]
    pub fn failure(&self, error: &broker::Error) -> Fault {
        let (server, setting, address) = ("RabbitMQ", "AMQP_URL", self.address.clone());
        let cause = match error {
            // Its text repeats the address, which the fault names already.
            broker::Error::Connect { source, .. } => with_causes(source),
            other => with_causes(other),
        };
        Fault::Unavailable(Unavailable { server, setting, address, cause })
    }
}
