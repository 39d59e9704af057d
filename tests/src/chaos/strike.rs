//! How each fault is made, and unmade.

use testkit::process::Signal;
use testkit::servers::{Kind, Server};
use testkit::wait::eventually;
use tokio::time::sleep;

use super::Ground;
use super::plan::{Death, Fault, NetworkFault, Outage, Strike};
use crate::LIMIT;

impl Ground {
    /// Breaks something, waits as long as it is to last, and mends it; returns when it is mended.
    ///
    /// # Panics
    /// When it cannot be broken or mended: then the run proves nothing.
    pub(super) async fn strike(&self, strike: &Strike) {
        match strike.fault {
            Fault::Worker(replica, death) => {
                let slot = self.replicas.slot(replica);
                self.replicas.note_fallen(slot).await;
                match death {
                    Death::Killed => slot.worker.lock().await.kill(),
                    // However it ends: with a server away it may have to give up at its deadline.
                    Death::Drained => {
                        slot.worker.lock().await.stop(LIMIT).await.expect("it ends");
                    }
                    Death::Stopped => {
                        let worker = slot.worker.lock().await;
                        worker.signal(Signal::Stop).expect("SIGSTOP");
                        sleep(strike.lasts).await;
                        return worker.signal(Signal::Continue).expect("SIGCONT");
                    }
                }
                sleep(strike.lasts).await;
                slot.restart(&self.scenario).await;
            }
            Fault::Path(replica, server, network_fault) => {
                let path = self.replicas.slot(replica).path(server);
                match network_fault {
                    NetworkFault::Reset => return path.reset().await.expect("a proxy"),
                    NetworkFault::Cut => path.cut().await.expect("a proxy"),
                    NetworkFault::Frozen => path.freeze(),
                }
                sleep(strike.lasts).await;
                path.restore().await.expect("a proxy");
            }
            Fault::Server(outage) => self.outage(outage, strike).await,
        }
    }

    async fn outage(&self, outage: Outage, strike: &Strike) {
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
        sleep(strike.lasts).await;
        match outage {
            Outage::BrokerAppStopped => ctl(server, "start_app").await,
            Outage::RedisPaused => server.thaw().expect("SIGCONT"),
            Outage::RedisEmptied => server.start_empty().await.expect("a restart"),
            _ => server.start().await.expect("a restart"),
        }
    }

    /// Kills one process of PostgreSQL that serves the fleet; PostgreSQL then ends all the others and
    /// recovers, since shared memory may be damaged.
    async fn kill_backend(&self) {
        let server = self.scenario.server(Kind::PostgreSql);
        let newest = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'
                        AND pid <> pg_backend_pid() ORDER BY state_change DESC NULLS LAST LIMIT 1";
        // One that ends by itself in between is no child any more.
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
