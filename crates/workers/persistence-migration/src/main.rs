//! `persistence-migration-worker`: records session events, deletes messages, and archives conversations when their grace period
//! ends or they become idle.

mod handler;
mod sweep;

use std::process::ExitCode;

use conversation::{Background, ClaimCriteria, Closer, Deletions, Sessions};
use domain::fleet;
use service::Service;
use service::settings::{BackgroundSettings, ClosingSettings, ConsumerSettings, StoreSettings};
use worker::{Stores, consume, decoder, in_background};

use crate::handler::RecordSessions;

#[derive(Debug, clap::Args)]
struct Settings {
    #[command(flatten)]
    stores: StoreSettings,
    #[command(flatten)]
    consuming: ConsumerSettings,
    #[command(flatten)]
    closing: ClosingSettings,
    #[command(flatten)]
    background: BackgroundSettings,
}

fn main() -> ExitCode {
    service::run(fleet::PERSISTENCE_MIGRATION_WORKER, build)
}

async fn build(service: Service, settings: Settings) -> anyhow::Result<()> {
    // Loading the encodings takes some 100 ms; the first close must not wait for it.
    tokio::task::spawn_blocking(tokens::warm);
    let stores = Stores::open(&service, &settings.stores).await?;
    let background = Background::new(settings.background.background_share, service.stopping());
    let handler = RecordSessions {
        sessions: Sessions::new(
            &stores.database,
            service.metrics().clone(),
            stores.random.clone(),
            background.clone(),
        ),
        deletions: Deletions::new(
            &stores.database,
            stores.hot.clone(),
            service.metrics().clone(),
            stores.random.clone(),
            background.clone(),
        ),
        decoder: decoder(&settings.consuming),
    };
    let ClosingSettings { due, close_lease, close_interval, close_batch } = settings.closing;
    let criteria =
        ClaimCriteria { grace: due.close_grace, idle: due.close_idle, lease: close_lease };
    let closer = Closer::new(
        &stores.database,
        stores.hot.clone(),
        stores.publisher.clone(),
        service.metrics().clone(),
        background,
        criteria,
    );
    consume(&service, &stores, &in_background(&settings.consuming), handler);
    sweep::run(&service, closer, close_interval, close_batch);
    Ok(())
}
