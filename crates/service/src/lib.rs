//! The kit that every process of the fleet is made with: settings, logs, health, metrics, drain.
//!
//! A worker's `main` says what it is called, which settings it has, and what it builds from them:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use service::settings::AmqpSettings;
//! use service::{Process, Service};
//!
//! #[derive(Debug, clap::Args)]
//! struct Settings {
//!     #[command(flatten)]
//!     amqp: AmqpSettings,
//!     /// Messages of a batch at most
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
//!     service::run(Process::MessageSaveWorker, build)
//! }
//! ```
//!
//! Everything else is the same in all of them: precedence and errors of settings ([`settings`]), log
//! lines, `/livez`, `/readyz` and `/metrics`, supervised tasks ([`Service::supervise`]), the drain
//! with its deadline, and the exit code ([`run()`]).

pub mod clock;
mod crypto;
mod health;
mod lifecycle;
mod process;
pub mod readiness;
mod run;
mod service;
pub mod settings;
mod tasks;
mod telemetry;

pub use crypto::install_crypto;
pub use process::{Process, VERSION, instance};
pub use readiness::Check;
pub use run::{answer, load_settings, run};
pub use service::Service;
