//! `verbatim publish`: actions into the fleet, each confirmed or named.
//!
//! What would become a dead letter is refused before anything is sent, so that a mended file can
//! simply be published again. Every action goes out under the id that the workers know it by, so
//! publishing a file twice saves it once (all but messages that carry neither id nor time).

mod router;
mod sending;

use broker::Publisher;
use broker::inspect::Inspector;
use broker::topology;
use clap::Args;
use indicatif::ProgressBar;
use metrics::Metrics;
use router::Router;
use sending::Sending;
use serde::Serialize;
use service::settings::AmqpSettings;

use crate::commands::lint::BodyLimit;
use crate::exit::{Exit, Failure};
use crate::input::Input;
use crate::output::{Cell, Screen, Side, Table, TextStyle, Tone, bar, count, plural, spinner};
use crate::servers::Broker;
use crate::validator::{Fault, Findings, Validator};

const EXAMPLES: &str = "\
Examples:
  verbatim publish actions.jsonl
  my-agent --dry-run | verbatim publish -
  echo hello | verbatim publish - --no-lint --routing-key conversation.save_message

Exit codes: 0 every action was confirmed; 1 something was refused or no queue took it;
3 RabbitMQ went away. Publishing again is safe for every action that carries an id or a timestamp.";

/// Failures that a text tells one by one; JSON tells all.
const TOLD: usize = 20;

/// Publishes actions and waits for RabbitMQ's confirms
///
/// One JSON object a line. All lines are checked first, and nothing is published if the workers would
/// refuse one of them. Each action is published persistent and mandatory, with its `action_type` as
/// routing key.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "verbatim publish [OPTIONS] <FILE>")]
pub(crate) struct Publish {
    /// A file with one action a line, or - for standard input
    #[arg(value_parser = Input::parse)]
    file: Input,

    /// Publish every line as it is: those that the workers refuse become dead letters
    #[arg(long)]
    no_lint: bool,

    /// Routing key for every line, instead of its `action_type`
    #[arg(long, value_name = "KEY", requires = "no_lint")]
    routing_key: Option<String>,

    #[command(flatten)]
    limit: BodyLimit,

    #[command(flatten)]
    amqp: AmqpSettings,
}

/// What became of the actions.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Lines that are not blank.
    lines: u64,
    /// In a queue: RabbitMQ said so.
    confirmed: u64,
    /// Returned: no queue takes them.
    unroutable: u64,
    /// Refused by RabbitMQ, or nobody knows.
    failed: u64,
    /// Not sent, because the workers would refuse them.
    invalid: u64,
    /// What is wrong with the invalid ones.
    faults: Vec<Fault>,
    /// What became of the unroutable and the failed ones.
    failures: Vec<NotConfirmed>,
    /// Confirmed ones whose routing key no queue of the fleet is bound to: dead letters soon.
    unrouted: u64,
    /// Whether RabbitMQ went away, so that the rest was not tried.
    gave_up: bool,
}

/// An action that is not known to be in a queue.
#[derive(Debug, Serialize)]
struct NotConfirmed {
    line: u64,
    outcome: &'static str,
    detail: String,
}

impl Publish {
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        let broker = Broker::of(&self.amqp)?;
        let validator =
            Validator { now: screen.style.now, max_body_bytes: self.limit.max_body_bytes };
        let (lines, total) = if self.no_lint {
            (self.file.follow(), None)
        } else {
            let lines = self.file.keep()?;
            let findings = validator.check(&lines)?;
            if findings.invalid > 0 {
                return refuse(findings, screen);
            }
            (lines, Some(findings.lines))
        };
        let mut inspector = Inspector::new(broker.endpoints.clone());
        inspector.probe().await.map_err(|error| broker.failure(&error))?;

        let publisher = Publisher::new(broker.endpoints.clone(), Metrics::new());
        let mut sending = Sending::new(publisher, progress(total));
        let router = Router { validator, routing_key: self.routing_key };
        sending.all(&lines, &router).await?;
        let report = sending.finish().await;
        screen.show(&report, |style| text(&report, style))?;
        Ok(match &report {
            Report { gave_up: true, .. } => Exit::Away,
            Report { unroutable: 0, failed: 0, .. } => Exit::Fine,
            _ => Exit::Problems,
        })
    }
}

/// Publishes nothing, and says why.
fn refuse(findings: Findings, screen: &Screen) -> Result<Exit, Failure> {
    let told = findings.told(&screen.style);
    let Findings { lines, invalid, faults, .. } = findings;
    let report = Report { lines, invalid, faults, ..Report::default() };
    screen.show(&report, |style| {
        let summary = format!(
            "nothing published: {} of {} would become dead letters",
            invalid,
            plural(lines, "action")
        );
        format!(
            "{told}{}\n{}\n",
            style.paint.text(Tone::Bad, &summary),
            style.paint.text(Tone::Dim, "mend them, or publish them as they are with --no-lint")
        )
    })?;
    Ok(Exit::Problems)
}

fn progress(total: Option<u64>) -> ProgressBar {
    match total {
        Some(total) => bar(total, "{wide_bar} {human_pos} of {human_len}, {eta} left"),
        None => spinner("{spinner} {human_pos} published"),
    }
}

fn text(report: &Report, style: &TextStyle) -> String {
    let mut out = String::new();
    if !report.failures.is_empty() {
        let mut table =
            Table::new([("line", Side::Right), ("outcome", Side::Left), ("why", Side::Left)]);
        for failure in report.failures.iter().take(TOLD) {
            table.row([
                failure.line.to_string().into(),
                Cell::new(Tone::Bad, failure.outcome),
                (&failure.detail).into(),
            ]);
        }
        out.push_str(&table.render(style.paint));
        if let Some(more) = report.failures.len().checked_sub(TOLD).filter(|more| *more > 0) {
            out.push_str(&format!("… and {more} more; --json tells all\n"));
        }
        out.push('\n');
    }
    let tone = if report.confirmed == report.lines { Tone::Good } else { Tone::Warn };
    let confirmed =
        format!("{} of {} confirmed", count(report.confirmed), plural(report.lines, "action"));
    out.push_str(&style.paint.text(tone, &confirmed));
    for (n, what) in [(report.unroutable, "unroutable"), (report.failed, "failed")] {
        if n > 0 {
            out.push_str(&style.paint.text(Tone::Bad, &format!(", {} {what}", count(n))));
        }
    }
    out.push('\n');
    let mut hint = |text: &str| {
        out.push_str(&style.paint.text(Tone::Dim, text));
        out.push('\n');
    };
    let missing = |failure: &NotConfirmed| failure.detail.contains("NOT_FOUND");
    if report.unroutable > 0 || report.failures.iter().any(missing) {
        hint(
            "exchange, queues or bindings are missing: `verbatim queues` shows which, `verbatim setup` makes them",
        );
    }
    if report.unrouted > 0 {
        let dead_letters = plural(report.unrouted, "action");
        let queue = topology::UNROUTED;
        hint(&format!("{dead_letters} went to {queue}: no queue is bound to the routing key"));
    }
    if report.gave_up {
        hint(
            "RabbitMQ went away; publish the file again: what carries an id or a time is saved once",
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use broker::PublishError;
    use domain::time::Timestamp;

    use super::*;
    use crate::output::Paint;

    #[test]
    fn a_report_names_every_line_that_is_not_confirmed() {
        let failures = vec![
            NotConfirmed {
                line: 3,
                outcome: "unroutable",
                detail: PublishError::Unroutable {
                    exchange: "domain.actions".to_owned(),
                    routing_key: "x".to_owned(),
                }
                .to_string(),
            },
            NotConfirmed { line: 7, outcome: "refused", detail: PublishError::Refused.to_string() },
        ];
        let report = Report {
            lines: 9,
            confirmed: 7,
            unroutable: 1,
            failed: 1,
            unrouted: 2,
            failures,
            ..Report::default()
        };
        let style = TextStyle { paint: Paint::Plain, now: Timestamp::EARLIEST };
        insta::assert_snapshot!(text(&report, &style));
    }
}
