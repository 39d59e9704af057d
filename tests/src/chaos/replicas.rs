//! Two replicas of each process of the fleet, each behind its own proxies, and their restarts.

use std::net::SocketAddr;

use testkit::fleet::Worker;
use testkit::ports;
use testkit::process::Signal;
use testkit::proxy::Proxy;
use testkit::servers::Kind;
use tokio::sync::Mutex;

use super::plan::{Replica, Role};
use crate::{API, ApiServer, COLLECTOR, LIMIT, MIGRATION, SAVER, STATISTICS, Scenario};

pub(super) struct Replicas {
    slots: Vec<Slot>,
    /// Replica, exit status and last log lines of each worker that exited before a fault ended it.
    unexpected_exits: Mutex<Vec<String>>,
}

/// A replica's place: its proxies stay when its process is restarted.
pub(super) struct Slot {
    pub(super) replica: Replica,
    pub(super) worker: Mutex<Worker>,
    amqp: Proxy,
    redis: Proxy,
    database: Proxy,
    /// Where it serves the API, if it does: the same address after each restart.
    api: Option<SocketAddr>,
}

impl Replicas {
    pub(super) async fn start(scenario: &Scenario) -> Self {
        ApiServer::set_up(scenario).await;
        let mut slots = Vec::new();
        for replica in Replica::ALL {
            slots.push(Slot::start(scenario, replica).await);
        }
        for slot in &slots {
            slot.worker.lock().await.ready(LIMIT).await.expect("a worker that becomes ready");
        }
        Self { slots, unexpected_exits: Mutex::default() }
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Where the replicas of the conversation-api serve it.
    pub(super) fn api_addresses(&self) -> Vec<SocketAddr> {
        self.slots.iter().filter_map(|slot| slot.api).collect()
    }

    pub(super) fn slot(&self, replica: Replica) -> &Slot {
        let found = self.slots.iter().find(|slot| slot.replica == replica);
        found.expect("there is a slot for every replica")
    }

    /// Records a replica that has already exited, before a fault or the drain ends it.
    pub(super) async fn record_unexpected_exit(&self, slot: &Slot) {
        let worker = slot.worker.lock().await;
        if let Some(status) = worker.exited() {
            let exit = format!("{}: {status}\n{}", slot.replica, worker.log_tail());
            self.unexpected_exits.lock().await.push(exit);
        }
    }

    /// Drains all replicas at once. Returns those that had exited unexpectedly or do not drain with exit
    /// code 0, with their last log lines.
    pub(super) async fn drain(&self) -> Vec<String> {
        for slot in &self.slots {
            self.record_unexpected_exit(slot).await;
            slot.worker.lock().await.signal(Signal::Terminate).expect("SIGTERM");
        }
        let mut unexpected_exits = std::mem::take(&mut *self.unexpected_exits.lock().await);
        for slot in &self.slots {
            let worker = slot.worker.lock().await;
            match worker.wait(LIMIT).await {
                Ok(status) if status.success() => {}
                Ok(status) => {
                    unexpected_exits.push(format!(
                        "{}: {status}\n{}",
                        slot.replica,
                        worker.log_tail()
                    ));
                }
                Err(error) => unexpected_exits.push(format!("{}: {error:#}", slot.replica)),
            }
        }
        unexpected_exits.sort_unstable();
        unexpected_exits.dedup();
        unexpected_exits
    }
}

impl Slot {
    async fn start(scenario: &Scenario, replica: Replica) -> Self {
        let before = async |url| Proxy::before(url).await.expect("a proxy");
        let amqp = before(&scenario.amqp_url).await;
        let redis = before(&scenario.redis_url).await;
        let database = before(&scenario.database_url).await;
        let api = (replica.role == Role::Api).then(|| ([127, 0, 0, 1], ports::free()).into());
        let settings = settings(scenario, [&amqp, &redis, &database], api);
        let worker = Mutex::new(launch(scenario, replica.role, &settings));
        Self { replica, worker, amqp, redis, database, api }
    }

    /// Starts a new process in place of one that has ended.
    pub(super) async fn restart(&self, scenario: &Scenario) {
        let settings = settings(scenario, [&self.amqp, &self.redis, &self.database], self.api);
        *self.worker.lock().await = launch(scenario, self.replica.role, &settings);
    }

    /// The proxy before a server.
    pub(super) fn path(&self, server: Kind) -> &Proxy {
        match server {
            Kind::RabbitMq | Kind::RabbitMqCluster => &self.amqp,
            Kind::Redis | Kind::RedisCluster => &self.redis,
            Kind::PostgreSql => &self.database,
        }
    }
}

/// The settings of a process: its servers behind these proxies, and where it serves the API.
fn settings(
    scenario: &Scenario,
    [amqp, redis, database]: [&Proxy; 3],
    api: Option<SocketAddr>,
) -> Vec<(&'static str, String)> {
    let (amqp, database) = (amqp.url().to_owned(), database.url().to_owned());
    let mut settings = vec![("AMQP_URL", amqp)];
    match api {
        None => {
            settings.extend([("REDIS_URL", redis.url().to_owned()), ("DATABASE_URL", database)]);
        }
        Some(address) => {
            settings.extend(ApiServer::access(scenario, &database));
            settings.push(("VERBATIM_API_LISTEN", address.to_string()));
            // A lost reply delays the publisher by this, and the recovery that is measured.
            settings.push(("VERBATIM_DURABLE_WAIT", "2s".to_owned()));
        }
    }
    settings
}

fn launch(scenario: &Scenario, role: Role, settings: &[(&'static str, String)]) -> Worker {
    let program = match role {
        Role::Saver => SAVER,
        Role::Migration => MIGRATION,
        Role::Statistics => STATISTICS,
        Role::Collector => COLLECTOR,
        Role::Api => API,
    };
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    scenario.launch(program, &settings)
}
