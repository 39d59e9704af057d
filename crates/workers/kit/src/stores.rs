//! Opening the three servers: connections, checks, verification.
//!
//! A server that is away delays the start and shows in `/readyz`; one that answers and is not what
//! the fleet needs (no schema, other queues) stops it, with a message that says how to mend it.

use std::time::Duration;

use anyhow::Context as _;
use backon::{ExponentialBuilder, Retryable as _};
use broker::topology::{self, TopologyError};
use broker::{Endpoints, Publisher};
use conversation::{RandomSource, record_server};
use database::{Database, SchemaError};
use domain::causes::with_causes;
use domain::failure::{Dependency, FailureClass};
use hot_store::{Address, Health, HotStore};
use metrics::{Gauge, Metrics};
use service::settings::{ServerUrl, StoreSettings};
use service::{Check, Service};
use tokio_util::sync::CancellationToken;

/// How often PostgreSQL is asked whether it is there, and Redis why it is not.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// The longest pause between two attempts to reach a server at start, before jitter, which adds up
/// to as much again: so at most 2 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

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
    /// A server answers and is not what the fleet needs.
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

        // Side by side: `/readyz` names every server that is away, not just the first one.
        let broker = service.check("rabbitmq");
        tokio::try_join!(verify_schema(&database), verify_topology(&endpoints, &broker, metrics))?;
        crate::consuming::watch_broker(service, &endpoints, broker);
        Ok(Self { database, hot, endpoints, publisher, random })
    }
}

fn joined(urls: &[ServerUrl]) -> String {
    urls.iter().map(ServerUrl::expose).collect::<Vec<_>>().join(",")
}

async fn verify_schema(database: &Database) -> anyhow::Result<()> {
    let away = |error: &SchemaError| matches!(error, SchemaError::Database(e) if e.class() == FailureClass::Unavailable);
    (|| database.verify_schema())
        .retry(pauses())
        .when(away)
        .notify(|error, pause| {
            tracing::warn!(error = with_causes(error), ?pause, "waiting for PostgreSQL");
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
            tracing::warn!(error, ?pause, "waiting for RabbitMQ");
            tell(check, metrics, Dependency::RabbitMq, Some(error));
        })
        .await
        .context("run `verbatim setup`, or see `verbatim queues`")
}

fn pauses() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
}

/// Says of a store whether it is there, in `/readyz` and in the metrics alike.
pub(crate) fn tell(
    check: &Check,
    metrics: &Metrics,
    dependency: Dependency,
    fault: Option<String>,
) {
    metrics.set(Gauge::DependencyUp { dependency }, if fault.is_none() { 1.0 } else { 0.0 });
    match fault {
        None => check.ready(),
        Some(reason) => check.not_ready(reason),
    }
}

fn watch_database(service: &Service, database: &Database) {
    let (check, metrics) = (service.check("postgresql"), service.metrics().clone());
    let database = database.clone();
    service.support("postgresql-check", move |stopping| {
        let (check, metrics, database) = (check.clone(), metrics.clone(), database.clone());
        async move {
            while !stopping.is_cancelled() {
                let fault = database.probe().await.err().map(|error| with_causes(&error));
                tell(&check, &metrics, Dependency::PostgreSql, fault);
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
                tell(&check, &metrics, Dependency::Redis, fault);
                tokio::select! {
                    // In this order: the watch above ends by the same token, and takes the channel
                    // with it; that is no failure.
                    biased;
                    () = stopping.cancelled() => return Ok(()),
                    changed = health.changed() => changed?,
                    // What keeps it away may change while it is.
                    () = tokio::time::sleep(PROBE_EVERY), if seen == Health::Down => {}
                }
            }
        }
    });
}

async fn why_down(hot: &HotStore, stopping: &CancellationToken) -> String {
    let cause = match stopping.run_until_cancelled(hot.probe()).await {
        Some(Err(error)) => format!(": {}", with_causes(&error)),
        // It is just coming back, or the process is leaving.
        Some(Ok(())) | None => String::new(),
    };
    format!("Redis is away; PostgreSQL serves alone{cause}")
}

pub(crate) async fn pause(duration: Duration, stopping: &CancellationToken) {
    stopping.run_until_cancelled(tokio::time::sleep(duration)).await;
}
