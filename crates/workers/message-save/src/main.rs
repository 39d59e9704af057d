//! `message-save-worker`: consumes messages from `conversation.save_message`, commits them in PostgreSQL, appends
//! them in Redis, and only then acknowledges them.

mod handler;

use std::process::ExitCode;

use conversation::Saver;
use domain::fleet;
use service::settings::{ConsumerSettings, StoreSettings};
use service::{Service, instance};
use worker::{Stores, consume, decoder};

use crate::handler::MessageHandler;

#[derive(Debug, clap::Args)]
struct Settings {
    #[command(flatten)]
    stores: StoreSettings,
    #[command(flatten)]
    consuming: ConsumerSettings,
}

fn main() -> ExitCode {
    service::run(fleet::MESSAGE_SAVE_WORKER, build)
}

async fn build(service: Service, settings: Settings) -> anyhow::Result<()> {
    let stores = Stores::open(&service, &settings.stores).await?;
    let database = stores.database.clone().saving_as(service.process().name(), instance());
    let handler = MessageHandler {
        saver: Saver::new(
            &database,
            stores.hot.clone(),
            service.metrics().clone(),
            stores.random.clone(),
        ),
        decoder: decoder(&settings.consuming),
    };
    consume(&service, &stores, &settings.consuming, handler);
    Ok(())
}
