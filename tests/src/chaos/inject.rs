//! How each fault is injected and repaired.

use testkit::process::Signal;
use testkit::servers::{Kind, Server};
use testkit::wait::eventually;
use tokio::time::sleep;

use super::environment::Environment;
use super::plan::{Fault, NetworkFault, Outage, ProcessFault, ScheduledFault};
use crate::LIMIT;

impl Environment {
    /// Injects a fault, waits for its duration, and repairs it; returns when it is repaired.
    ///
    /// # Panics
    /// When it cannot be injected or repaired: then the run proves nothing.
    pub(super) async fn inject(&self, scheduled: &ScheduledFault) {
        match scheduled.fault {
            Fault::Process(replica, process_fault) => {
                let slot = self.replicas.slot(replica);
                self.replicas.record_unexpected_exit(slot).await;
                match process_fault {
                    ProcessFault::Killed => slot.worker.lock().await.kill(),
                    // Any exit code: while a server is unavailable the drain may reach its deadline.
                    ProcessFault::Drained => {
                        slot.worker.lock().await.stop(LIMIT).await.expect("it ends");
                    }
                    ProcessFault::Stopped => {
                        let worker = slot.worker.lock().await;
                        worker.signal(Signal::Stop).expect("SIGSTOP");
                        sleep(scheduled.lasts).await;
                        return worker.signal(Signal::Continue).expect("SIGCONT");
                    }
                }
                sleep(scheduled.lasts).await;
                slot.restart(&self.scenario).await;
            }
            Fault::Path(replica, server, network_fault) => {
                let path = self.replicas.slot(replica).path(server);
                match network_fault {
                    NetworkFault::Reset => return path.reset().await.expect("a proxy"),
                    NetworkFault::Cut => path.cut().await.expect("a proxy"),
                    NetworkFault::Frozen => path.freeze(),
                }
                sleep(scheduled.lasts).await;
                path.restore().await.expect("a proxy");
            }
            Fault::Server(outage) => self.outage(outage, scheduled).await,
        }
    }

    async fn outage(&self, outage: Outage, scheduled: &ScheduledFault) {
        let server = self.scenario.server(outage.server());
        match outage {
            Outage::BrokerKilled | Outage::RedisKilled | Outage::RedisEmptied => {
                server.kill().await.expect("kill -9");
            }
            Outage::BrokerAppStopped => ctl(server, "stop_app").await,
            Outage::RedisPaused => server.freeze().expect("SIGSTOP"),
            Outage::DatabaseStopped => server.crash().await.expect("an immediate shutdown"),
            Outage::BackendKilled => return self.kill_backend().await,
        }
        sleep(scheduled.lasts).await;
        match outage {
            Outage::BrokerAppStopped => ctl(server, "start_app").await,
            Outage::RedisPaused => server.thaw().expect("SIGCONT"),
            Outage::RedisEmptied => server.start_empty().await.expect("a restart"),
            _ => server.start().await.expect("a restart"),
        }
    }

    /// Kills one PostgreSQL backend of a worker. PostgreSQL then ends all other backends and recovers,
    /// because shared memory may be damaged.
    async fn kill_backend(&self) {
        let server = self.scenario.server(Kind::PostgreSql);
        let newest = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'
                        AND pid <> pg_backend_pid() ORDER BY state_change DESC NULLS LAST LIMIT 1";
        // A backend may end by itself between the query and the kill.
        let killed = eventually("a backend to kill", LIMIT, async || {
            let pid =
                server.psql("postgres", newest).await.map_err(|error| format!("{error:#}"))?;
            let pid = pid.parse().map_err(|_| format!("no backend: {pid:?}"))?;
            server.kill_child(pid).map_err(|error| format!("{error:#}"))
        });
        killed.await;
    }
}

async fn ctl(server: &Server, command: &str) {
    server.rabbitmqctl(&[command]).await.expect("rabbitmqctl");
}
