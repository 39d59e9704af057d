//! `statistics-worker`: computes the statistics of conversations and days, and writes the words of archived conversations.

mod refresh_triggers;
mod words;

use std::process::ExitCode;
use std::time::Duration;

use conversation::{Background, Statistics, WordWriter};
use domain::fleet;
use service::Service;
use service::settings::{BackgroundSettings, ConsumerSettings, StoreSettings, positive_duration};
use worker::{Stores, consume};

use crate::refresh_triggers::RefreshTriggers;

#[derive(Debug, clap::Args)]
struct Settings {
    #[command(flatten)]
    stores: StoreSettings,
    #[command(flatten)]
    consuming: ConsumerSettings,
    #[command(flatten)]
    background: BackgroundSettings,

    /// How often statistics are refreshed and words written, if no event triggers it earlier
    #[arg(long, default_value = "2s")]
    #[arg(value_name = "DURATION", value_parser = positive_duration, help_heading = "Statistics")]
    statistics_interval: Duration,
}

fn main() -> ExitCode {
    service::run(fleet::STATISTICS_WORKER, build)
}

async fn build(service: Service, settings: Settings) -> anyhow::Result<()> {
    let stores = Stores::open(&service, &settings.stores).await?;
    let metrics = service.metrics().clone();
    let background = Background::new(settings.background.background_share, service.stopping());
    let words = WordWriter::new(&stores.database, metrics.clone(), background.clone());
    let statistics = Statistics::new(&stores.database, metrics.clone(), background);
    let triggers = RefreshTriggers::default();
    triggers.refresh_when_triggered(&service, statistics, settings.statistics_interval);
    words::write_when_triggered(&service, words, triggers.words(), settings.statistics_interval);
    consume(&service, &stores, &settings.consuming, triggers);
    Ok(())
}
