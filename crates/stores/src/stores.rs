//! All three servers, for a worker.
//!
//! An unavailable server delays the start and shows in `/readyz`. A server that is available but not set up
//! (no schema, queues that differ) stops the process, with a message that says what to run.

use broker::inspect::Inspector;
use broker::{Endpoints, Publisher};
use conversation::RandomSource;
use database::Database;
use hot_store::HotStore;
use service::Service;
use service::settings::StoreSettings;

use crate::postgresql::DatabaseServer;
use crate::rabbitmq::Broker;
use crate::redis::RedisServer;

/// The three servers, verified. Clones share their connections.
#[derive(Clone)]
pub struct Stores {
    /// PostgreSQL.
    pub database: Database,
    /// Redis.
    pub hot: HotStore,
    /// RabbitMQ's addresses.
    pub endpoints: Endpoints,
    /// A publisher with a connection of its own.
    pub publisher: Publisher,
    /// An inspector of queues with a connection of its own.
    pub inspector: Inspector,
    /// The source of generations and epochs.
    pub random: RandomSource,
}

impl Stores {
    /// Connects, watches the servers (checks `postgresql`, `redis`, `rabbitmq`), and waits until schema
    /// and topology have been verified.
    ///
    /// # Errors
    /// A URL is invalid, or a server is available but not set up for the fleet.
    pub async fn open(service: &Service, settings: &StoreSettings) -> anyhow::Result<Self> {
        let random = RandomSource::random();
        let server = DatabaseServer::of_service(service, settings)?;
        server.watch(service);
        let redis = RedisServer::of_worker(service, settings, &server.database, &random)?;
        redis.watch(service);
        let broker = Broker::of_process(&settings.connections.amqp, service.process())?;
        let publisher = Publisher::new(broker.endpoints.clone(), service.metrics().clone());
        let inspector = broker.watch(service);
        // Concurrently, so that the log names every unavailable server, not only the first.
        let schema = async { anyhow::Ok(server.wait_for_schema(&settings.durability).await?) };
        tokio::try_join!(schema, broker.wait_for_topology())?;
        let Broker { endpoints, .. } = broker;
        Ok(Self {
            database: server.database,
            hot: redis.hot,
            endpoints,
            publisher,
            inspector,
            random,
        })
    }
}
