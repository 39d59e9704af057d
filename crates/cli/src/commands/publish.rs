//! `verbatim publish`: actions into the fleet, each confirmed or named.
//!
//! What would become a dead letter is refused before anything is sent, so that a mended file can
//! simply be published again. Every action goes out under the id that the workers know it by, so
//! publishing a file twice saves it once (all but messages that carry neither id nor time).

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::sync::Arc;

use broker::inspect::Inspector;
use broker::topology::{self, ACTIONS, BINDINGS};
use broker::{Publication, PublishError, Publisher};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use metrics::Metrics;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use service::settings::AmqpSettings;
use tokio::task::JoinHandle;

use crate::commands::lint::BodyLimit;
use crate::exit::{Exit, Failure};
use crate::input::{Input, Line, Lines};
use crate::look::{Cell, Look, Screen, Side, Table, Tone, plural};
use crate::servers::Broker;
use crate::validator::{Fault, Findings, Validator};

const EXAMPLES: &str = "\
Examples:
  verbatim publish actions.jsonl
  my-agent --dry-run | verbatim publish -
  echo hello | verbatim publish - --no-lint --routing-key conversation.save_message

Exit codes: 0 every action was confirmed; 1 something was refused or no queue took it;
3 RabbitMQ went away. Publishing again is safe for every action that carries an id or a timestamp.";

/// Actions that are handed to the publisher together.
const CHUNK_ACTIONS: usize = 512;
/// Bytes of bodies that are handed over together at most; with the chunks in flight, what this
/// command holds in memory.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;
/// Chunks in flight: one travels, one waits, one is read.
const CHUNKS_IN_FLIGHT: usize = 3;
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
            Validator { now: screen.look.now, max_body_bytes: self.limit.max_body_bytes };
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
        screen.show(&report, |look| text(&report, look))?;
        Ok(match &report {
            Report { gave_up: true, .. } => Exit::Away,
            Report { unroutable: 0, failed: 0, .. } => Exit::Fine,
            _ => Exit::Problems,
        })
    }
}

/// Publishes nothing, and says why.
fn refuse(findings: Findings, screen: &Screen) -> Result<Exit, Failure> {
    let told = findings.told(&screen.look);
    let Findings { lines, invalid, faults, .. } = findings;
    let report = Report { lines, invalid, faults, ..Report::default() };
    screen.show(&report, |look| {
        let summary = format!(
            "nothing published: {} of {} would become dead letters",
            invalid,
            plural(lines, "action")
        );
        format!(
            "{told}{}\n{}\n",
            look.paint.text(Tone::Bad, &summary),
            look.paint.text(Tone::Dim, "mend them, or publish them as they are with --no-lint")
        )
    })?;
    Ok(Exit::Problems)
}

fn progress(total: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{wide_bar} {human_pos} of {human_len} {per_sec}"),
        None => (ProgressBar::new_spinner(), "{spinner} {human_pos} published {per_sec}"),
    };
    bar.with_style(ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()))
}

/// Makes publications of lines.
struct Router {
    validator: Validator,
    routing_key: Option<String>,
}

impl Router {
    /// The publication of a line; `None` if nothing says where it goes.
    fn publication(&self, body: Vec<u8>) -> Option<Publication> {
        let (action_type, id) = match self.validator.decode(&body) {
            Ok(action) => {
                let id = action.common().resolved_id.to_string();
                (Some(action.kind().as_str().to_owned()), Some(id))
            }
            Err(_) => Told::by(&body),
        };
        let routing_key = self.routing_key.clone().or(action_type)?;
        let mut publication = Publication::action(&routing_key, body);
        if let Some(id) = id {
            publication.message_id = id;
        }
        Some(publication)
    }
}

/// What a body that cannot be decoded says of itself.
#[derive(Deserialize)]
struct Told<'a> {
    #[serde(borrow, default)]
    action_type: Option<&'a RawValue>,
    #[serde(borrow, default)]
    message_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    action_id: Option<&'a RawValue>,
}

impl Told<'_> {
    fn by(body: &[u8]) -> (Option<String>, Option<String>) {
        /// AMQP's short strings, which routing keys and message ids are.
        const LONGEST: usize = 255;
        let Ok(told) = serde_json::from_slice::<Told<'_>>(body) else {
            return (None, None);
        };
        let text = |value: &RawValue| serde_json::from_str::<String>(value.get()).ok();
        let short = |text: &String| (1..=LONGEST).contains(&text.len());
        let id = told.message_id.and_then(text).or_else(|| told.action_id.and_then(text));
        (told.action_type.and_then(text).filter(short), id.filter(short))
    }
}

/// Chunks on their way.
struct Sending {
    publisher: Publisher,
    progress: ProgressBar,
    in_flight: VecDeque<Chunk>,
    report: Report,
}

/// Actions that were handed to the publisher together, by their lines.
struct Chunk {
    lines: Vec<(u64, bool)>,
    results: JoinHandle<Vec<Result<(), PublishError>>>,
}

impl Sending {
    fn new(publisher: Publisher, progress: ProgressBar) -> Self {
        Self { publisher, progress, in_flight: VecDeque::new(), report: Report::default() }
    }

    async fn all(&mut self, lines: &Lines, router: &Router) -> Result<(), Failure> {
        let (mut waiting, mut bytes) = (Vec::new(), 0);
        for line in lines.read()? {
            let Line { number, body } = line?;
            self.report.lines += 1;
            if self.report.gave_up {
                self.note(number, "not_sent", "RabbitMQ went away before".to_owned());
                continue;
            }
            let size = body.len();
            let Some(publication) = router.publication(body) else {
                let detail = "it has no action_type to route it by; give --routing-key".to_owned();
                self.note(number, "no_routing_key", detail);
                continue;
            };
            bytes += size;
            waiting.push((number, Arc::new(publication)));
            if waiting.len() >= CHUNK_ACTIONS || bytes >= CHUNK_BYTES {
                bytes = 0;
                self.send(std::mem::take(&mut waiting)).await;
            }
        }
        self.send(waiting).await;
        Ok(())
    }

    async fn send(&mut self, actions: Vec<(u64, Arc<Publication>)>) {
        while self.in_flight.len() >= CHUNKS_IN_FLIGHT - 1 {
            self.settle_next().await;
        }
        if actions.is_empty() {
            return;
        }
        let lines = actions.iter().map(|(line, it)| (*line, is_bound(&it.routing_key))).collect();
        let publisher = self.publisher.clone();
        let publications: Vec<_> =
            actions.into_iter().map(|(_, publication)| publication).collect();
        let results = tokio::spawn(async move { publisher.publish_all(publications).await });
        self.in_flight.push_back(Chunk { lines, results });
    }

    async fn settle_next(&mut self) {
        let Some(chunk) = self.in_flight.pop_front() else { return };
        let count = chunk.lines.len();
        let gone = || PublishError::Unknown("the publisher has ended".to_owned());
        let results = chunk.results.await.unwrap_or_else(|_| vec![Err(gone()); count]);
        let unreachable =
            |result: &Result<_, _>| matches!(result, Err(PublishError::Unreachable(_)));
        // The publisher tried for as long as it is given; what comes after would wait as long.
        self.report.gave_up |= results.iter().all(unreachable);
        for ((line, bound), result) in chunk.lines.into_iter().zip(results) {
            match result {
                Ok(()) => {
                    self.report.confirmed += 1;
                    self.report.unrouted += u64::from(!bound);
                }
                Err(error) => self.note(line, outcome(&error), error.to_string()),
            }
        }
        self.progress.inc(count as u64);
    }

    fn note(&mut self, line: u64, outcome: &'static str, detail: String) {
        match outcome {
            "unroutable" => self.report.unroutable += 1,
            _ => self.report.failed += 1,
        }
        self.report.failures.push(NotConfirmed { line, outcome, detail });
    }

    async fn finish(mut self) -> Report {
        while !self.in_flight.is_empty() {
            self.settle_next().await;
        }
        self.progress.finish_and_clear();
        self.report.failures.sort_by_key(|failure| failure.line);
        self.report
    }
}

fn outcome(error: &PublishError) -> &'static str {
    match error {
        PublishError::Unroutable { .. } => "unroutable",
        PublishError::Refused => "refused",
        PublishError::TooLong(_) => "too_long",
        PublishError::Blocked => "blocked",
        PublishError::Unreachable(_) => "not_sent",
        PublishError::Unknown(_) => "unknown",
    }
}

/// Whether a queue of the fleet is bound to a routing key; the keys of actions have no patterns.
fn is_bound(routing_key: &str) -> bool {
    BINDINGS.iter().any(|binding| binding.exchange == ACTIONS && binding.key == routing_key)
}

fn text(report: &Report, look: &Look) -> String {
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
        out.push_str(&table.render(look.paint));
        if let Some(more) = report.failures.len().checked_sub(TOLD).filter(|more| *more > 0) {
            out.push_str(&format!("… and {more} more; --json tells all\n"));
        }
        out.push('\n');
    }
    let tone = if report.confirmed == report.lines { Tone::Good } else { Tone::Warn };
    let confirmed = format!("{} of {} confirmed", report.confirmed, plural(report.lines, "action"));
    out.push_str(&look.paint.text(tone, &confirmed));
    for (n, what) in [(report.unroutable, "unroutable"), (report.failed, "failed")] {
        if n > 0 {
            out.push_str(&look.paint.text(Tone::Bad, &format!(", {n} {what}")));
        }
    }
    out.push('\n');
    let mut hint = |text: &str| {
        out.push_str(&look.paint.text(Tone::Dim, text));
        out.push('\n');
    };
    let missing = |failure: &NotConfirmed| failure.detail.contains("NOT_FOUND");
    if report.unroutable > 0 || report.failures.iter().any(missing) {
        hint(
            "exchange, queues or bindings are missing: `verbatim queues` shows which, `verbatim setup` makes them",
        );
    }
    if report.unrouted > 0 {
        let letters = plural(report.unrouted, "action");
        let queue = topology::UNROUTED;
        hint(&format!("{letters} went to {queue}: no queue is bound to the routing key"));
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
    use domain::time::Timestamp;

    use super::*;
    use crate::look::Paint;

    fn router() -> Router {
        let validator = Validator { now: Timestamp::EARLIEST, max_body_bytes: 1_000 };
        Router { validator, routing_key: None }
    }

    fn message(extra: &str) -> Vec<u8> {
        let start = r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"user","content":"hi""#;
        format!("{start}{extra}}}").into_bytes()
    }

    #[test]
    fn an_action_goes_out_under_the_id_that_the_workers_know_it_by() {
        let id = |extra: &str| router().publication(message(extra)).unwrap().message_id;
        assert_eq!(id(r#","message_id":"m-1","action_id":"a-1""#), "m-1");
        assert_eq!(id(r#","action_id":"a-1""#), "a-1");
        let dated = r#","timestamp":"2026-11-20T10:00:00Z""#;
        assert_eq!(id(dated), id(dated), "publishing a file again saves it once");
        assert_ne!(id(""), id(""), "without id and time each is a message of its own");
    }

    #[test]
    fn what_cannot_be_decoded_still_goes_where_it_says() {
        let body = br#"{"action_type":"conversation.save_message","role":"bot","action_id":"a-1"}"#;
        let publication = router().publication(body.to_vec()).unwrap();
        assert_eq!(publication.routing_key, "conversation.save_message");
        assert_eq!(publication.message_id, "a-1");
        assert_eq!(publication.body, body);
        assert!(router().publication(b"hello".to_vec()).is_none());
        let routed = Router { routing_key: Some("key".to_owned()), ..router() };
        assert_eq!(routed.publication(b"hello".to_vec()).unwrap().routing_key, "key");
    }

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
        let look = Look { paint: Paint::Plain, now: Timestamp::EARLIEST };
        insta::assert_snapshot!(text(&report, &look));
    }
}
