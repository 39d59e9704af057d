//! `verbatim dead-letters replay`: publishes dead letters to their queues again, in growing batches.

mod plan;
mod progress;
mod text;

use std::time::Duration;

use broker::Publisher;
use broker::inspect::Inspector;
use clap::{Args, ValueEnum};
use dead_letters::{Ended, ReplayReport, ReplaySettings, Replayer, StopOnFailure};
use metrics::Metrics;
use service::settings::{AmqpSettings, duration};
use stores::{Broker, DatabaseServer};
use tokio_util::sync::CancellationToken;

use super::dead_letters_selection::Operation;
use crate::commands::lint::BodyLimit;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Publishes dead letters to their queues again
#[derive(Debug, Args)]
#[command(override_usage = "verbatim dead-letters replay [OPTIONS] [ID]...")]
#[command(after_help = "\
Examples:
  verbatim dead-letters replay ID
  verbatim dead-letters replay --queue conversation.save_message --reason schema --dry-run
  verbatim dead-letters replay --reason attempts_exhausted --since 2h --rate 50
  verbatim dead-letters replay --all --stop-on-failure never

Publishes open dead letters, oldest first, directly to their queues: in batches of 1, 2, 4 and
so on, and checks after each batch whether dead letters failed again. A dead letter is marked
replayed once RabbitMQ confirmed it; if it is unroutable or refused, it stays open with the
error. One that fails again is a new dead letter with a reference to the replayed one. Replaying
twice, or two replays at the same time, is safe: effects happen once. Ctrl-C stops between dead
letters.

Exit codes: 0 all were replayed and none failed again; 1 some failed again, or were not replayed
by this run (unroutable, refused, claimed by another run, discarded meanwhile, or no longer held
because this process was stopped for a minute), or it was stopped; 3 a server
became unreachable.")]
pub(crate) struct DeadLettersReplay {
    /// Print what would be published to which queue, and publish nothing
    #[arg(long)]
    dry_run: bool,

    /// Dead letters per second, at most. The default leaves most capacity to live messages
    #[arg(long, default_value = "200", value_name = "N", value_parser = rate)]
    rate: f64,

    /// Dead letters per batch, at most: published between two checks for failures
    #[arg(long, default_value_t = 500, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_batch: u32,

    /// How long to watch for failures after each batch; ends sooner once all its messages are saved
    #[arg(long, default_value = "2s", value_name = "DURATION", value_parser = duration)]
    watch: Duration,

    /// When to stop because dead letters fail again, or are unroutable or refused. If a whole batch
    /// fails, the cause probably persists; single failures are probably bad messages
    #[arg(long, value_enum, default_value = "whole-batch", value_name = "WHEN")]
    #[arg(alias = "stop-on-return")]
    stop_on_failure: Stop,

    #[command(flatten)]
    limit: BodyLimit,

    #[command(flatten)]
    on: Operation,

    #[command(flatten)]
    amqp: AmqpSettings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stop {
    /// At the first failure
    First,
    /// When a whole batch fails; after the first success, only when five in a row failed
    WholeBatch,
    /// Never; only when a server is unreachable
    Never,
}

impl DeadLettersReplay {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let selection = self.on.chosen.selection(output.now)?;
        let broker = Broker::of(&self.amqp)?;
        let server = DatabaseServer::open(&self.on.database).await?;
        let metrics = Metrics::new();
        let replayer = Replayer::new(
            server.database.clone(),
            Publisher::new(broker.endpoints.clone(), metrics.clone()),
            metrics,
            self.limit.dead_letters(),
        );
        if self.dry_run {
            let mut plan = plan::Plan::default();
            let planned = replayer.plan(selection, |dead_letter| plan.add(dead_letter)).await;
            planned.map_err(|error| server.failure(&error))?;
            output.show(&plan, |out| plan.text(out))?;
            return Ok(Exit::Success);
        }
        let inspector = Inspector::new(broker.endpoints.clone());
        inspector.probe().await.map_err(|error| broker.failure(&error))?;
        let settings = ReplaySettings {
            rate: Some(self.rate),
            largest_batch: self.max_batch,
            watch: self.watch,
            stop: match self.stop_on_failure {
                Stop::First => StopOnFailure::First,
                Stop::WholeBatch => StopOnFailure::WholeBatch,
                Stop::Never => StopOnFailure::Never,
            },
        };
        let mut display = progress::ReplayProgress::new();
        let actor = self.on.actor.actor();
        let replayed = replayer
            .run(selection, &actor, &settings, &stop_by_signal(), |progress| display.show(progress))
            .await;
        display.end();
        let report = replayed.map_err(|error| server.failure(&error))?;
        let not_open = self.on.chosen.named().saturating_sub(report.matched);
        output.show(&report, |out| text::text(&report, not_open, out))?;
        Ok(exit(&report, not_open))
    }
}

/// `not_open` counts dead letters that were given by their ids and are not open. Dead letters that this
/// run skipped, or published too late to record, may still be open.
fn exit(report: &ReplayReport, not_open: u64) -> Exit {
    let ReplayReport { failed, failed_again, skipped, decided_elsewhere, .. } = report;
    let not_this_run = skipped + decided_elsewhere + report.no_longer_held;
    match &report.ended {
        Ended::Unavailable { .. } => Exit::Unavailable,
        Ended::Complete if failed + failed_again + not_this_run + not_open == 0 => Exit::Success,
        _ => Exit::Problems,
    }
}

/// Cancelled by the first Ctrl-C or SIGTERM; the second one ends the process.
fn stop_by_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    tokio::spawn(async move {
        let Ok(mut signals) = service::signals() else { return };
        if signals.recv().await.is_some() {
            eprintln!(
                "stopping after the dead letters in flight are confirmed and recorded; Ctrl-C again \
                 stops at once"
            );
            signalled.cancel();
        }
        if signals.recv().await.is_some() {
            // Dead letters that are not recorded stay open, and their lease expires.
            std::process::exit(1);
        }
    });
    stop
}

fn rate(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(rate) if (0.01..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("it must be a number of dead letters per second, 0.01 to 100000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_positive_number() {
        assert_eq!(rate("0.5"), Ok(0.5));
        for nonsense in ["0", "-1", "NaN", "inf", "many"] {
            assert!(rate(nonsense).is_err(), "{nonsense}");
        }
    }
}
