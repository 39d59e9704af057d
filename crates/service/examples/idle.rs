//! A worker with one idle task and a route of its own, for the tests that use a real process.

use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use domain::fleet;
use service::Service;

#[derive(Debug, clap::Args)]
struct Settings {
    /// How long the task takes to finish during a shutdown
    #[arg(long, default_value = "0s", value_parser = service::settings::duration)]
    work: Duration,

    /// What to do in the first run of the task, or before it
    #[arg(long, default_value = "work")]
    first: First,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum First {
    Work,
    Panic,
    /// Before any task runs, with a message that has a value.
    PanicInBuild,
}

async fn build(service: Service, settings: Settings) -> anyhow::Result<()> {
    let value = "words of a user";
    assert!(settings.first != First::PanicInBuild, "no boundary in {value}");
    service.serve(Router::new().route("/idle", get(|| async { "idle" })));
    let first = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    service.supervise("idle", move |stopping| {
        let first = first.swap(false, std::sync::atomic::Ordering::Relaxed);
        async move {
            assert!(!(first && settings.first == First::Panic), "requested by --first=panic");
            tracing::info!("idle");
            stopping.cancelled().await;
            tokio::time::sleep(settings.work).await;
            Ok(())
        }
    });
    Ok(())
}

fn main() -> ExitCode {
    service::run(fleet::MESSAGE_SAVE_WORKER, build)
}
