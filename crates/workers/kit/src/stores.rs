//! Connecting to the three servers at start: connections, readiness checks, verification.
//!
//! An unavailable server delays the start and shows in `/readyz`. A server that is available but not set up
//! (no schema, queues that differ) stops the process, with a message that says what to run.

use std::time::Duration;

use anyhow::Context as _;
use backon::{ExponentialBuilder, Retryable as _};
use broker::inspect::Inspector;
use broker::topology::{self, TopologyError};
use broker::{Endpoints, Publisher};
use conversation::{RandomSource, record_server};
use database::{Database, SchemaError};
use domain::causes::with_causes;
use domain::failure::{Dependency, FailureClass};
use domain::failure_policy::LONGEST_PAUSE;
use hot_store::{Address, Health, HotStore};
use metrics::{Gauge, Metrics};
use service::settings::{ServerUrl, StoreSettings};
use service::{Check, Service};
use tokio_util::sync::CancellationToken;

/// How often PostgreSQL and RabbitMQ are probed, and Redis while it is unavailable.
const PROBE_EVERY: Duration = Duration::from_secs(1);

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
    /// The source of generations and epochs.
    pub random: RandomSource,
}

impl Stores {
    /// Connects, registers the checks `postgresql`, `redis` and `rabbitmq`, and waits until schema
    /// and topology have been verified.
    ///
    /// # Errors
    /// A URL is invalid, or a server is available but not set up for the fleet.
    pub async fn open(service: &Service, settings: &StoreSettings) -> anyhow::Result<Self> {
        let metrics = service.metrics();
        let database = Database::open(&database::Settings {
            url: settings.connections.database.database_url.expose().to_owned(),
            application: service.process().name().to_owned(),
            connections: settings.database_connections,
            time_out: settings.database_timeout,
            lock_time_out: settings.database_lock_timeout,
        })
        .context("DATABASE_URL cannot be used")?;
        watch_database(service, &database);

        let random = RandomSource::random();
        let address = Address::parse(&joined(&settings.connections.redis.redis_url))
            .context("REDIS_URL cannot be used")?;
        let hot = HotStore::open(
            hot_store::Settings {
                expiry: settings.hot_expiry,
                response_timeout: settings.redis_timeout,
                ..hot_store::Settings::new(address)
            },
            record_server(database.clone(), metrics.clone(), random.clone()),
        );
        watch_hot(service, &hot);

        let urls = joined(&settings.connections.amqp.amqp_url);
        let endpoints = Endpoints::parse(&urls, service.process().name())?;
        let publisher = Publisher::new(endpoints.clone(), metrics.clone());

        // Concurrently, so that `/readyz` names every unavailable server, not only the first.
        let broker = service.check("rabbitmq");
        tokio::try_join!(verify_schema(&database), verify_topology(&endpoints, &broker, metrics))?;
        watch_broker(service, &endpoints, broker);
        Ok(Self { database, hot, endpoints, publisher, random })
    }
}

fn joined(urls: &[ServerUrl]) -> String {
    urls.iter().map(ServerUrl::expose).collect::<Vec<_>>().join(",")
}

async fn verify_schema(database: &Database) -> anyhow::Result<()> {
    let unavailable = |error: &SchemaError| matches!(error, SchemaError::Database(e) if e.class() == FailureClass::Unavailable);
    (|| database.verify_schema())
        .retry(pauses())
        .when(unavailable)
        .notify(|error, pause| {
            tracing::warn!(
                error = with_causes(error),
                "PostgreSQL (DATABASE_URL) unavailable at start; trying again in {} ms",
                pause.as_millis()
            );
        })
        .await
        .map_err(Into::into)
}

async fn verify_topology(
    endpoints: &Endpoints,
    check: &Check,
    metrics: &Metrics,
) -> anyhow::Result<()> {
    (|| topology::verify_and_bind(endpoints))
        .retry(pauses())
        .when(|error| matches!(error, TopologyError::Unavailable(_)))
        .notify(|error, pause| {
            let error = with_causes(error);
            tracing::warn!(
                error,
                "RabbitMQ (AMQP_URL) unavailable at start; trying again in {} ms",
                pause.as_millis()
            );
            set_state(check, metrics, Dependency::RabbitMq, Some(error));
        })
        .await
        .context(
            "RabbitMQ is not set up for this version: run `verbatim setup`; `verbatim queues` shows what is \
             missing",
        )
}

fn pauses() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(LONGEST_PAUSE / 2)
        .with_jitter()
        .without_max_times()
}

/// Sets whether a server is available, in `/readyz` and in the metrics. `fault`: why it is not.
fn set_state(check: &Check, metrics: &Metrics, dependency: Dependency, fault: Option<String>) {
    metrics.set(Gauge::DependencyUp { dependency }, if fault.is_none() { 1.0 } else { 0.0 });
    match fault {
        None => check.ready(),
        Some(reason) => check.not_ready(reason),
    }
}

/// Maintains the check `rabbitmq`: probes RabbitMQ on a connection of its own.
fn watch_broker(service: &Service, endpoints: &Endpoints, check: Check) {
    let (endpoints, metrics) = (endpoints.clone(), service.metrics().clone());
    service.support("rabbitmq-check", move |stopping| {
        let (check, metrics) = (check.clone(), metrics.clone());
        let mut inspector = Inspector::new(endpoints.clone());
        async move {
            while !stopping.is_cancelled() {
                let fault = inspector.probe().await.err().map(|error| with_causes(&error));
                set_state(&check, &metrics, Dependency::RabbitMq, fault);
                pause(PROBE_EVERY, &stopping).await;
            }
            Ok(())
        }
    });
}

fn watch_database(service: &Service, database: &Database) {
    let (check, metrics) = (service.check("postgresql"), service.metrics().clone());
    let database = database.clone();
    service.support("postgresql-check", move |stopping| {
        let (check, metrics, database) = (check.clone(), metrics.clone(), database.clone());
        async move {
            while !stopping.is_cancelled() {
                let fault = database.probe().await.err().map(|error| with_causes(&error));
                set_state(&check, &metrics, Dependency::PostgreSql, fault);
                pause(PROBE_EVERY, &stopping).await;
            }
            Ok(())
        }
    });
}

fn watch_hot(service: &Service, hot: &HotStore) {
    let watched = hot.clone();
    service.support("redis-watch", move |stopping| {
        let hot = watched.clone();
        async move {
            hot.watch(stopping).await;
            Ok(())
        }
    });
    let (check, metrics) = (service.check("redis"), service.metrics().clone());
    let health = hot.subscribe();
    let watched = hot.clone();
    service.support("redis-check", move |stopping| {
        let (check, metrics, mut health) = (check.clone(), metrics.clone(), health.clone());
        let hot = watched.clone();
        async move {
            loop {
                let seen = *health.borrow_and_update();
                let fault = match seen {
                    Health::Up => None,
                    Health::Untried => Some("not connected yet".to_owned()),
                    Health::Down => Some(why_down(&hot, &stopping).await),
                };
                set_state(&check, &metrics, Dependency::Redis, fault);
                tokio::select! {
                    // First, because the watch above stops on the same token and closes the channel; that is
                    // no failure.
                    biased;
                    () = stopping.cancelled() => return Ok(()),
                    changed = health.changed() => changed?,
                    // The cause may change while it stays unavailable.
                    () = tokio::time::sleep(PROBE_EVERY), if seen == Health::Down => {}
                }
            }
        }
    });
}

async fn why_down(hot: &HotStore, stopping: &CancellationToken) -> String {
    let cause = match stopping.run_until_cancelled(hot.probe()).await {
        Some(Err(error)) => format!(": {}", with_causes(&error)),
        // It has just become available, or the process is stopping.
        Some(Ok(())) | None => String::new(),
    };
    format!("Redis unavailable; messages are saved to and read from PostgreSQL only{cause}")
}

async fn pause(duration: Duration, stopping: &CancellationToken) {
    stopping.run_until_cancelled(tokio::time::sleep(duration)).await;
}
