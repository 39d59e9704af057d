//! Two replicas of each worker, each behind proxies of its own, and started again when they die.

use testkit::fleet::Worker;
use testkit::process::Signal;
use testkit::proxy::Proxy;
use testkit::servers::Kind;
use tokio::sync::Mutex;

use super::plan::{Replica, Role};
use crate::{LIMIT, MIGRATION, SAVER, STATISTICS, Scenario};

pub(super) struct Replicas {
    slots: Vec<Slot>,
    /// What was said of those that had ended by themselves.
    fallen: Mutex<Vec<String>>,
}

/// The place of a replica: its ways to the servers stay when it is started anew.
pub(super) struct Slot {
    pub(super) replica: Replica,
    pub(super) worker: Mutex<Worker>,
    amqp: Proxy,
    redis: Proxy,
    database: Proxy,
}

impl Replicas {
    pub(super) async fn start(scenario: &Scenario) -> Self {
        let mut slots = Vec::new();
        for replica in Replica::ALL {
            slots.push(Slot::start(scenario, replica).await);
        }
        for slot in &slots {
            slot.worker.lock().await.ready(LIMIT).await.expect("a worker that becomes ready");
        }
        Self { slots, fallen: Mutex::default() }
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(super) fn slot(&self, replica: Replica) -> &Slot {
        let found = self.slots.iter().find(|slot| slot.replica == replica);
        found.expect("there is a slot for every replica")
    }

    /// Looks whether a replica has ended though nobody made it, before somebody does.
    pub(super) async fn note_fallen(&self, slot: &Slot) {
        let worker = slot.worker.lock().await;
        if let Some(status) = worker.exited() {
            let said = format!("{}: {status}\n{}", slot.replica, worker.log_tail());
            self.fallen.lock().await.push(said);
        }
    }

    /// Drains all of them at once; returns those that had ended by themselves, or do not drain to the
    /// end, with their last words.
    pub(super) async fn drain(&self) -> Vec<String> {
        for slot in &self.slots {
            self.note_fallen(slot).await;
            slot.worker.lock().await.signal(Signal::Terminate).expect("SIGTERM");
        }
        let mut fallen = std::mem::take(&mut *self.fallen.lock().await);
        for slot in &self.slots {
            let worker = slot.worker.lock().await;
            match worker.wait(LIMIT).await {
                Ok(status) if status.success() => {}
                Ok(status) => {
                    fallen.push(format!("{}: {status}\n{}", slot.replica, worker.log_tail()));
                }
                Err(error) => fallen.push(format!("{}: {error:#}", slot.replica)),
            }
        }
        fallen.sort_unstable();
        fallen.dedup();
        fallen
    }
}

impl Slot {
    async fn start(scenario: &Scenario, replica: Replica) -> Self {
        let before = async |url| Proxy::before(url).await.expect("a proxy");
        let amqp = before(&scenario.amqp_url).await;
        let redis = before(&scenario.redis_url).await;
        let database = before(&scenario.database_url).await;
        let worker = launch(scenario, replica, &amqp, &redis, &database);
        Self { replica, worker: Mutex::new(worker), amqp, redis, database }
    }

    /// Starts it anew, in the place of one that has ended.
    pub(super) async fn restart(&self, scenario: &Scenario) {
        let next = launch(scenario, self.replica, &self.amqp, &self.redis, &self.database);
        *self.worker.lock().await = next;
    }

    /// Its way to a server.
    pub(super) fn path(&self, server: Kind) -> &Proxy {
        match server {
            Kind::RabbitMq | Kind::RabbitMqCluster => &self.amqp,
            Kind::Redis | Kind::RedisCluster => &self.redis,
            Kind::PostgreSql => &self.database,
        }
    }
}

fn launch(
    scenario: &Scenario,
    replica: Replica,
    amqp: &Proxy,
    redis: &Proxy,
    database: &Proxy,
) -> Worker {
    let program = match replica.role {
        Role::Saver => SAVER,
        Role::Migration => MIGRATION,
        Role::Statistics => STATISTICS,
    };
    let urls =
        [("AMQP_URL", amqp.url()), ("REDIS_URL", redis.url()), ("DATABASE_URL", database.url())];
    scenario.launch(program, &urls)
}
