//! The framework of every process of the fleet: settings, logs, health, metrics, shutdown.
//!
//! A worker's `main` names its process, its settings, and the function that builds its tasks from them:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use service::settings::AmqpSettings;
//! use domain::fleet;
//! use service::Service;
//!
//! #[derive(Debug, clap::Args)]
//! struct Settings {
//!     #[command(flatten)]
//!     amqp: AmqpSettings,
//!     /// Maximum number of messages in a batch
//!     #[arg(long, default_value_t = 500)]
//!     batch_size: usize,
//! }
//!
//! async fn build(service: Service, settings: Settings) -> anyhow::Result<()> {
//!     service.supervise("consumer", move |stopping| async move {
//!         // …consume batches of `settings.batch_size` until…
//!         stopping.cancelled().await;
//!         Ok(())
//!     });
//!     Ok(())
//! }
//!
//! fn main() -> ExitCode {
//!     service::run(fleet::MESSAGE_SAVE_WORKER, build)
//! }
//! ```
//!
//! The rest is the same in every process: precedence and errors of settings ([`settings`]), log lines,
//! `/livez`, `/readyz` and `/metrics`, supervised tasks ([`Service::supervise`]), the drain with its
//! deadline, and the exit code ([`run()`]).

pub mod clock;
mod crypto;
mod health;
mod lifecycle;
mod process;
mod readiness;
mod run;
mod service;
pub mod settings;
mod tasks;
mod telemetry;

pub use crypto::install_crypto;
pub use lifecycle::{Signal, signals};
pub use process::{VERSION, instance};
pub use readiness::Check;
pub use run::{answer, load_settings, run};
pub use service::Service;
