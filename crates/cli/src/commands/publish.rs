//! `verbatim publish`: publishes actions; each is confirmed, or listed with its error.
//!
//! If a line would become a dead letter, nothing is published, so that the corrected file can be
//! published as a whole. Each action is published with the id that the workers derive for it, so
//! publishing a file twice saves its messages once (except messages without id and timestamp).

mod batching;
mod router;
mod sending;

use broker::Publisher;
use broker::inspect::Inspector;
use broker::topology;
use clap::Args;
use metrics::Metrics;
use router::Router;
use sending::{NotConfirmed, Report, Sending};
use service::settings::{AmqpSettings, AmqpUserSettings};
use stores::Broker;

use crate::commands::lint::BodyLimit;
use crate::exit::{Exit, Failure};
use crate::input::Input;
use crate::output::{Cell, Output, Text, Tone, bar, count, plural, spinner};
use crate::validator::{Findings, Sender, Validator};

/// Publishes actions and waits for RabbitMQ's confirms
///
/// One JSON object per line. All lines are checked first; if the workers would refuse one, nothing is
/// published. Each action is published persistent and mandatory, with its `action_type` as routing key.
/// Messages of a conversation that follow each other in it are published together, as
/// `conversation.save_messages`; they are saved as the messages that the lines say.
#[derive(Debug, Args)]
#[command(override_usage = "verbatim publish [OPTIONS] <FILE>")]
#[command(after_help = "\
Examples:
  verbatim publish actions.jsonl
  my-agent --dry-run | verbatim publish -
  echo hello | verbatim publish - --no-lint --routing-key conversation.save_message

Exit codes: 0 every action was confirmed; 1 a line is invalid, or an action was refused or
unroutable; 3 RabbitMQ became unreachable. Publishing again is safe for every action that
carries an id or a timestamp.")]
pub(crate) struct Publish {
    /// File with one action per line, or - for standard input
    #[arg(value_parser = Input::parse)]
    file: Input,

    /// Publish each line as it is, without checking; what the workers refuse becomes a dead letter
    #[arg(long)]
    no_lint: bool,

    /// Publish each message by itself
    #[arg(long)]
    no_grouping: bool,

    /// Routing key for every line, instead of its `action_type`
    #[arg(long, value_name = "KEY", requires = "no_lint")]
    routing_key: Option<String>,

    #[command(flatten)]
    limit: BodyLimit,

    #[command(flatten)]
    users: AmqpUserSettings,

    #[command(flatten)]
    amqp: AmqpSettings,
}

impl Publish {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let broker = Broker::of(&self.amqp)?;
        let sender = Sender::of(self.users, &broker.endpoints);
        let max_body_bytes = self.limit.max_body_bytes;
        let validator = Validator { now: output.now, max_body_bytes, sender };
        let (lines, total) = if self.no_lint {
            (self.file.streamed(), None)
        } else {
            let lines = self.file.buffered()?;
            let findings = validator.check(&lines)?;
            if findings.invalid > 0 {
                return refuse(&findings, output);
            }
            (lines, Some(findings.lines))
        };
        let inspector = Inspector::new(broker.endpoints.clone());
        inspector.probe().await.map_err(|error| broker.failure(&error))?;

        let publisher = Publisher::new(broker.endpoints.clone(), Metrics::new());
        let progress = match total {
            Some(total) => bar(total, "{wide_bar} {human_pos} of {human_len}, {eta} left"),
            None => spinner("{spinner} {human_pos} published"),
        };
        let mut sending = Sending::new(publisher, progress);
        let groups = !self.no_grouping && !self.no_lint;
        let router = Router { validator, routing_key: self.routing_key, groups };
        let read = sending.all(lines.read()?, &router).await;
        let report = sending.finish().await;
        output.show(&report, |out| text(&report, out))?;
        read?;
        Ok(match &report {
            Report { rabbitmq_unavailable: true, .. } => Exit::Unavailable,
            Report { unroutable: 0, failed: 0, .. } => Exit::Success,
            _ => Exit::Problems,
        })
    }
}

/// Reports the invalid lines; nothing is published.
fn refuse(findings: &Findings, output: &Output) -> Result<Exit, Failure> {
    let Findings { lines, invalid, missing, .. } = *findings;
    let faults = findings.faults.clone();
    let report = Report { lines, invalid, missing, faults, ..Report::default() };
    output.show(&report, |out| {
        findings.write(out);
        let actions = plural(report.lines, "action");
        let summary =
            format!("nothing published: {} of {actions} would become dead letters", report.invalid);
        out.line(Tone::Bad, summary);
        out.line(Tone::Dim, "correct these lines, or publish them as they are with --no-lint");
    })?;
    Ok(Exit::Problems)
}

fn text(report: &Report, out: &mut Text) {
    let row = |failure: &NotConfirmed| {
        let line = Cell::from(failure.line.to_string()).right();
        [line, Cell::new(Tone::Bad, failure.outcome), (&failure.detail).into()]
    };
    out.first_rows(["line", "outcome", "error"], report.failures.iter().map(row));
    let tone = if report.confirmed == report.lines { Tone::Good } else { Tone::Warn };
    let actions = plural(report.lines, "action");
    out.piece(tone, format!("{} of {actions} confirmed", count(report.confirmed)));
    if report.publications < report.confirmed {
        let publications = plural(report.publications, "publication");
        out.piece(Tone::Dim, format!(" in {publications}"));
    }
    out.counts(Tone::Bad, [(report.unroutable, "unroutable"), (report.failed, "failed")]);
    out.push("\n");
    report.missing.write(out);
    let mut hint = |text: &str| out.line(Tone::Dim, text);
    let missing = |failure: &NotConfirmed| failure.detail.contains("NOT_FOUND");
    if report.unroutable > 0 || report.failures.iter().any(missing) {
        hint(
            "exchange, queues or bindings are missing: `verbatim queues` shows which, `verbatim setup` creates them",
        );
    }
    if report.unrouted > 0 {
        let actions = plural(report.unrouted, "action");
        let queue = topology::UNROUTED;
        hint(&format!("{actions} went to {queue}: no queue is bound to the routing key"));
    }
    if report.rabbitmq_unavailable {
        hint(
            "RabbitMQ became unreachable; publish the file again: actions with an id or a timestamp are saved once",
        );
    }
}

#[cfg(test)]
mod tests {
    use broker::PublishError;

    use super::*;
    use crate::output::tests::plain;
    use crate::validator::MissingFields;

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
            publications: 3,
            unroutable: 1,
            failed: 1,
            unrouted: 2,
            missing: MissingFields { without_identity: 1, without_timestamp: 2 },
            failures,
            ..Report::default()
        };
        insta::assert_snapshot!(plain(|out| text(&report, out)));
    }
}
