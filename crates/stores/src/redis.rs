//! Redis, with the address for error messages.

use conversation::{RandomSource, check_server, record_server};
use database::Database;
use domain::causes::with_causes;
use domain::failure::Dependency;
use hot_store::{Address, Health, HotStore};
use service::Service;
use service::settings::{ServerUrl, StoreSettings};
use tokio_util::sync::CancellationToken;

use crate::addresses::{joined, without_secrets};
use crate::fault::{Fault, Unavailable};
use crate::watch::{PROBE_EVERY, set_state};

/// Redis, with the address for error messages.
pub struct RedisServer {
    /// Its connections.
    pub hot: HotStore,
    address: String,
}

impl RedisServer {
    /// For a worker, which records the identity of the server. Fails only on an invalid URL.
    pub(crate) fn of_worker(
        service: &Service,
        settings: &StoreSettings,
        database: &Database,
        random: &RandomSource,
    ) -> Result<Self, Fault> {
        let urls = &settings.connections.redis.redis_url;
        let settings_of_worker = hot_store::Settings {
            expiry: settings.hot_expiry,
            response_timeout: settings.redis_timeout,
            ..hot_store::Settings::new(parse(urls)?)
        };
        let record = record_server(database.clone(), service.metrics().clone(), random.clone());
        Ok(Self { hot: HotStore::open(settings_of_worker, record), address: without_secrets(urls) })
    }

    /// For a program that only reads: it compares the identity of the server with the recorded one. Fails only
    /// on an invalid URL.
    pub fn reading(urls: &[ServerUrl], database: &Database) -> Result<Self, Fault> {
        let settings = hot_store::Settings::new(parse(urls)?);
        let hot = HotStore::open(settings, check_server(database.clone()));
        Ok(Self { hot, address: without_secrets(urls) })
    }

    /// The fault for a failed command.
    #[must_use]
    pub fn failure(&self, error: &hot_store::Error) -> Fault {
        let (server, setting, address) = ("Redis", "REDIS_URL", self.address.clone());
        Fault::Unavailable(Unavailable { server, setting, address, cause: with_causes(error) })
    }

    /// Watches the connections, and maintains the check `redis`, until the process stops.
    pub(crate) fn watch(&self, service: &Service) {
        let watched = self.hot.clone();
        service.support("redis-watch", move |stopping| {
            let hot = watched.clone();
            async move {
                hot.watch(stopping).await;
                Ok(())
            }
        });
        let (metrics, watched) = (service.metrics().clone(), self.hot.clone());
        let run = service.checked("redis", move |stopping, check| {
            let (metrics, hot) = (metrics.clone(), watched.clone());
            let mut health = hot.subscribe();
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
                        // First, because the watch above stops on the same token and closes the channel;
                        // that is no failure.
                        biased;
                        () = stopping.cancelled() => return Ok(()),
                        changed = health.changed() => changed?,
                        // The cause may change while it stays unavailable.
                        () = tokio::time::sleep(PROBE_EVERY), if seen == Health::Down => {}
                    }
                }
            }
        });
        service.support("redis-check", run);
    }
}

fn parse(urls: &[ServerUrl]) -> Result<Address, Fault> {
    Address::parse(&joined(urls)).map_err(|error| Fault::Setting(format!("REDIS_URL: {error}")))
}

async fn why_down(hot: &HotStore, stopping: &CancellationToken) -> String {
    let cause = match stopping.run_until_cancelled(hot.probe()).await {
        Some(Err(error)) => format!(": {}", with_causes(&error)),
        // It has just become available, or the process is stopping.
        Some(Ok(())) | None => String::new(),
    };
    format!("Redis unavailable; messages are saved to and read from PostgreSQL only{cause}")
}
