//! `verbatim dead-dead_letters replay`: dead letters back into their queues, slowly at first.

mod plan;
mod progress;
mod text;

use std::time::Duration;

use broker::Publisher;
use broker::inspect::Inspector;
use clap::{Args, ValueEnum};
use conversation::dead_letters::{
    DeadLetterValidator, Ended, ReplayReport, ReplaySettings, Replayer, StopOnFailure,
};
use domain::failure::Dependency;
use metrics::Metrics;
use service::settings::{AmqpSettings, DatabaseSettings, duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::dead_letters_selection::Chosen;
use crate::actor::ActorArgs;
use crate::commands::lint::BodyLimit;
use crate::exit::{Exit, Failure};
use crate::output::Screen;
use crate::servers::{Broker, DatabaseServer};

const EXAMPLES: &str = "\
Examples:
  verbatim dead-letters replay ID
  verbatim dead-letters replay --queue conversation.save_message --reason schema --dry-run
  verbatim dead-letters replay --reason attempts_exhausted --since 2h --rate 50
  verbatim dead-letters replay --all --stop-on-return never

Sends open dead letters, oldest first, straight to their queues: 1, then 2, then 4, and so on, looking
after each batch whether dead letters came back. A dead letter is marked replayed once RabbitMQ confirmed it;
what no queue takes stays open and says why. One that comes back is a new dead letter that names the one
before. Replaying twice, or at once from two places, is safe: effects happen once. Ctrl-C stops
between dead letters.

Exit codes: 0 all were sent and none came back; 1 some came back or were not sent by this run (no
queue took them, or another run has them), or it was stopped; 3 a server went away.";

/// Sends dead letters back to their queues
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(override_usage = "verbatim dead-letters replay [OPTIONS] [ID]...")]
pub(crate) struct DeadLettersReplay {
    /// Only say what would be sent where
    #[arg(long)]
    dry_run: bool,

    /// Dead letters a second at most. The default leaves nearly all of a fleet to live messages
    #[arg(long, default_value = "200", value_name = "LETTERS", value_parser = rate)]
    rate: f64,

    /// Dead letters of a batch at most: what is sent between two looks at what came back
    #[arg(long, default_value_t = 500, value_name = "LETTERS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_batch: u32,

    /// How long to look after each batch; it ends sooner where every message of it is saved
    #[arg(long, default_value = "2s", value_name = "DURATION", value_parser = duration)]
    watch: Duration,

    /// When to stop because dead letters come back or no queue takes them. A whole batch means that the cause
    /// is still there; a few among many are dead letters that are still bad
    #[arg(long, value_enum, default_value = "whole-batch", value_name = "WHEN")]
    stop_on_return: Stop,

    #[command(flatten)]
    limit: BodyLimit,

    #[command(flatten)]
    chosen: Chosen,

    #[command(flatten)]
    actor: ActorArgs,

    #[command(flatten)]
    amqp: AmqpSettings,

    #[command(flatten)]
    database: DatabaseSettings,
}

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stop {
    /// With the first dead letter
    First,
    /// With a whole batch of them: of five at least, once some went well
    WholeBatch,
    /// Only when a server is away
    Never,
}

impl DeadLettersReplay {
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        let selection = self.chosen.selection(screen.style.now)?;
        let broker = Broker::of(&self.amqp)?;
        let server = DatabaseServer::open(&self.database).await?;
        let metrics = Metrics::new();
        let replayer = Replayer::new(
            server.database.clone(),
            Publisher::new(broker.endpoints.clone(), metrics.clone()),
            metrics,
            DeadLetterValidator { max_body_bytes: self.limit.max_body_bytes },
        );
        if self.dry_run {
            let mut plan = plan::Plan::default();
            let planned = replayer.plan(selection, |dead_letter| plan.add(dead_letter)).await;
            planned.map_err(|error| server.failure(&error))?;
            screen.show(&plan, |style| plan.text(style))?;
            return Ok(Exit::Fine);
        }
        let mut inspector = Inspector::new(broker.endpoints.clone());
        inspector.probe().await.map_err(|error| broker.failure(&error))?;
        let settings = ReplaySettings {
            rate: self.rate,
            largest_batch: self.max_batch,
            watch: self.watch,
            stop: match self.stop_on_return {
                Stop::First => StopOnFailure::First,
                Stop::WholeBatch => StopOnFailure::WholeBatch,
                Stop::Never => StopOnFailure::Never,
            },
        };
        let mut shown = progress::Shown::new();
        let actor = self.actor.actor();
        let replayed = replayer
            .run(selection, &actor, &settings, &stop_by_signal(), |progress| shown.show(progress))
            .await;
        shown.end();
        let report = replayed.map_err(|error| server.failure(&error))?;
        let others = self.chosen.named().saturating_sub(report.matched);
        screen.show(&report, |style| text::text(&report, others, style))?;
        Ok(exit(&report, others))
    }
}

/// `others` are dead letters that were named and are not open. Whatever this run did not send, or sent too late
/// to note, may be open still.
fn exit(report: &ReplayReport, others: u64) -> Exit {
    let ReplayReport { failed, failed_again, skipped, decided_elsewhere, .. } = report;
    match &report.ended {
        Ended::Unavailable {
            dependency: Dependency::RabbitMq | Dependency::PostgreSql | Dependency::Redis,
            ..
        } => Exit::Away,
        Ended::Complete if failed + failed_again + skipped + decided_elsewhere + others == 0 => {
            Exit::Fine
        }
        _ => Exit::Problems,
    }
}

/// Cancelled by the first Ctrl-C or SIGTERM; the second one ends the process.
fn stop_by_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if first {
                eprintln!("stopping once the dead letters that are on their way are noted");
                told.cancel();
            } else {
                // What is not noted stays open, and its lease ends.
                std::process::exit(1);
            }
        }
    });
    stop
}

fn rate(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(rate) if (0.01..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("it must be a number of dead letters a second, 0.01 to 100000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_more_than_nothing() {
        assert_eq!(rate("0.5"), Ok(0.5));
        for nonsense in ["0", "-1", "NaN", "inf", "many"] {
            assert!(rate(nonsense).is_err(), "{nonsense}");
        }
    }
}
