//! `dead-letter-worker`: stores dead letters, reroutes actions that expired or that no binding matched to their own
//! queues, refuses the actions of queues that have no worker yet, and exports the gauges of the whole fleet: queues,
//! dead letters, conversations. It also makes the checkpoints of the audit log.

mod checkpoints;
mod gauges;

use std::process::ExitCode;
use std::time::Duration;

use broker::topology::WorkQueue;
use conversation::LimitedDatabase;
use dead_letters::{DeadLetterCollector, RefuseActions, RerouteUnrouted};
use domain::fleet::{self, Consumed};
use service::Service;
use service::settings::{ClosingTimes, ConsumerSettings, StoreSettings, positive_duration};
use worker::{Stores, consume, decoder};

#[derive(Debug, clap::Args)]
struct Settings {
    #[command(flatten)]
    stores: StoreSettings,
    #[command(flatten)]
    consuming: ConsumerSettings,
    #[command(flatten)]
    closing: ClosingTimes,

    /// How often queues, dead letters and conversations are counted
    #[arg(long, default_value = "5s")]
    #[arg(value_name = "DURATION", value_parser = positive_duration, help_heading = "Gauges")]
    gauge_interval: Duration,
}

fn main() -> ExitCode {
    service::run(fleet::DEAD_LETTER_WORKER, build)
}

async fn build(service: Service, settings: Settings) -> anyhow::Result<()> {
    let stores = Stores::open(&service, &settings.stores).await?;
    let metrics = service.metrics().clone();
    let decoder = decoder(&settings.consuming);

    let database = LimitedDatabase::of_batches(&stores.database);
    for queue in WorkQueue::ALL {
        let (database, publisher) = (database.clone(), stores.publisher.clone());
        let (metrics, random) = (metrics.clone(), stores.random.clone());
        let collector =
            DeadLetterCollector::new(queue, database, publisher, metrics, decoder.clone(), random);
        consume(&service, &stores, &settings.consuming, collector);
    }
    for consumed in fleet::DEAD_LETTER_WORKER.consumes() {
        match *consumed {
            // One collector for each of them, above.
            Consumed::DeadLetters => {}
            Consumed::Work(WorkQueue::Unrouted) => {
                let (publisher, metrics) = (stores.publisher.clone(), metrics.clone());
                let reroute = RerouteUnrouted::new(publisher, metrics, decoder.clone());
                consume(&service, &stores, &settings.consuming, reroute);
            }
            Consumed::Work(queue) => {
                let refuse = RefuseActions::new(queue, decoder.clone());
                consume(&service, &stores, &settings.consuming, refuse);
            }
        }
    }
    checkpoints::run(&service, &stores);
    gauges::run(&service, &stores, settings.closing.close_grace, settings.gauge_interval);
    Ok(())
}
