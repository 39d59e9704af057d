//! The `main` of every worker: settings, logs, health, tasks, drain, exit code.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{Args, Command, FromArgMatches as _};
use metrics::{Gauge, Metrics};

use crate::health;
use crate::lifecycle::{self, End};
use crate::process::VERSION;
use crate::service::Service;
use crate::settings::{self, ProcessSettings, SettingsError, Sources, Stop};
use crate::{crypto, telemetry};
use domain::fleet::Process;

/// The exit code for invalid settings.
const BAD_SETTINGS: u8 = 2;

/// Runs a worker from its settings to its exit code.
///
/// `build` connects and spawns tasks with [`Service::supervise`]. It may wait for unavailable servers; a
/// signal aborts it. It returns once every task runs. An error means that the process cannot work at
/// all, for example because a queue is declared with arguments under which it would lose messages.
///
/// Exit codes: 0 after a clean drain, 1 after a failure, 2 for invalid settings, 3 after the drain
/// deadline, 4 after a second signal.
pub fn run<S, B, F>(process: Process, build: B) -> ExitCode
where
    S: Args + Send + 'static,
    B: FnOnce(Service, S) -> F + Send + 'static,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let sources = Sources::of_this_process();
    let (common, own, described) = match load_settings::<S>(process, &sources) {
        Ok(settings) => settings,
        Err(stop) => return answer(process, &stop),
    };
    crypto::install_crypto();
    if let Err(error) = telemetry::init(process, &common.log) {
        eprintln!("{}: {error:#}", process.name());
        return End::Failed.into();
    }
    for (name, known) in settings::mistyped_variables(&command::<S>(process), &sources.environment)
    {
        tracing::warn!(
            name,
            "environment variable {name} is unknown and ignored; did you mean {known}?"
        );
    }
    let build = |service| build(service, own);
    let end = start(process, &common, &described, build).unwrap_or_else(|error| {
        tracing::error!("cannot start: {error:#}");
        End::Failed
    });
    end.into()
}

/// Loads the settings of a worker: those of every process, its own, and all of them as the text of the first log
/// line.
pub fn load_settings<S: Args>(
    process: Process,
    sources: &Sources,
) -> Result<(ProcessSettings, S, String), Stop> {
    let command = command::<S>(process);
    let matches = settings::load(command.clone(), process, sources)?;
    let described = settings::describe(&command, &matches);
    let read = || {
        let common = ProcessSettings::from_arg_matches(&matches)?;
        Ok((common, S::from_arg_matches(&matches)?, described))
    };
    read()
        .map_err(|error: clap::Error| Stop::Invalid(SettingsError::new(settings::one_line(&error))))
}

fn command<S: Args>(process: Process) -> Command {
    let command = Command::new(process.name()).version(VERSION);
    let command = ProcessSettings::augment_args(command).next_help_heading(None::<&str>);
    let command = S::augment_args(command);
    // After the settings: clap takes the doc comment of a flattened struct as the about text.
    let command = command.about(process.about()).long_about(None::<&str>);
    settings::with_variables(command)
}

/// Prints help or version to standard output, or a settings error to standard error; returns the exit
/// code.
pub fn answer(process: Process, stop: &Stop) -> ExitCode {
    match stop {
        Stop::Answer(text) => {
            let mut stdout = std::io::stdout();
            let printed = if stdout.is_terminal() {
                write!(stdout, "{}", text.ansi())
            } else {
                write!(stdout, "{text}")
            };
            // A closed pipe, as of `--help | head`, is not an error.
            printed.ok();
            ExitCode::SUCCESS
        }
        Stop::Invalid(error) => {
            for line in error.to_string().lines() {
                eprintln!("{}: {line}", process.name());
            }
            ExitCode::from(BAD_SETTINGS)
        }
    }
}

fn start<F>(
    process: Process,
    common: &ProcessSettings,
    described: &str,
    build: impl FnOnce(Service) -> F + Send + 'static,
) -> anyhow::Result<End>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let metrics = Metrics::new();
    telemetry::catch_panics(metrics.clone());
    metrics.set(Gauge::BuildInfo { process: process.name(), version: VERSION }, 1.0);
    let threads = usize::from(common.threads);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let end = runtime.block_on(async {
        let mut signals = lifecycle::signals()?;
        tracing::info!(version = VERSION, "starting; settings: {described}");
        let listener = health::bind(&common.listen).await?;
        let service = Service::new(process, metrics);
        let Service { readiness, tasks, .. } = service.clone();
        drop(tokio::spawn(health::serve(listener, service.clone())));
        let check = readiness.check("process");
        let build = async move { build(service).await };
        Ok(lifecycle::live(&tasks, &check, build, &mut signals, common.drain_deadline).await)
    });
    // Aborts the tasks that have not finished by now, without waiting for them.
    runtime.shutdown_background();
    end
}
