//! `statistics-worker`: computes statistics, stores dead letters, reroutes unroutable actions to their own queue,
//! and exports gauges of queues, dead letters and conversations.

mod collector;
mod dead_letter;
mod gauges;
mod refresh_triggers;
mod reroute;
mod unrouted;

use std::process::ExitCode;
use std::time::Duration;

use broker::Source;
use broker::topology::WorkQueue;
use conversation::Statistics;
use domain::fleet;
use service::Service;
use service::settings::{
    BackgroundSettings, ClosingTimes, ConsumerSettings, StoreSettings, positive_duration,
};
use worker::{Decoder, Stores, background, consume, consumer_settings};

use crate::collector::DeadLetterCollector;
use crate::refresh_triggers::RefreshTriggers;
use crate::unrouted::RerouteUnrouted;

#[derive(Debug, clap::Args)]
struct Settings {
    #[command(flatten)]
    stores: StoreSettings,
    #[command(flatten)]
    consuming: ConsumerSettings,
    #[command(flatten)]
    closing: ClosingTimes,
    #[command(flatten)]
    background: BackgroundSettings,

    /// How often statistics are refreshed, if no event triggers it earlier
    #[arg(long, env = "VERBATIM_STATISTICS_INTERVAL", default_value = "2s")]
    #[arg(value_name = "DURATION", value_parser = positive_duration, help_heading = "Statistics")]
    statistics_interval: Duration,

    /// How often queues, dead letters and conversations are counted
    #[arg(long, env = "VERBATIM_GAUGE_INTERVAL", default_value = "5s")]
    #[arg(value_name = "DURATION", value_parser = positive_duration, help_heading = "Statistics")]
    gauge_interval: Duration,
}

fn main() -> ExitCode {
    service::run(fleet::STATISTICS_WORKER, build)
}

async fn build(service: Service, settings: Settings) -> anyhow::Result<()> {
    let stores = Stores::open(&service, &settings.stores).await?;
    let consuming = consumer_settings(&settings.consuming);
    let metrics = service.metrics().clone();
    let decoder = Decoder { max_body_bytes: settings.consuming.max_body_bytes };

    let background = background(&settings.background)?;
    let statistics = Statistics::new(stores.database.clone(), metrics.clone(), background);
    let triggers = RefreshTriggers::new(stores.database.clone());
    triggers.refresh_when_triggered(&service, statistics, settings.statistics_interval);
    consume(&service, &stores, Source::work(WorkQueue::Statistics), consuming.clone(), triggers);

    for queue in WorkQueue::ALL {
        let collector = DeadLetterCollector {
            queue,
            database: stores.database.clone(),
            publisher: stores.publisher.clone(),
            metrics: metrics.clone(),
            decoder,
        };
        collector.create_counters();
        consume(&service, &stores, Source::dead_letters(queue), consuming.clone(), collector);
    }
    let reroute =
        RerouteUnrouted { publisher: stores.publisher.clone(), metrics: metrics.clone(), decoder };
    consume(&service, &stores, Source::work(WorkQueue::Unrouted), consuming, reroute);
    gauges::run(&service, &stores, settings.closing.close_grace, settings.gauge_interval);
    Ok(())
}
