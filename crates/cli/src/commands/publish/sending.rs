//! Publishes lines in chunks; several chunks are in flight, and each line gets one result.

use std::collections::VecDeque;

use broker::{PublishError, Publisher};
use domain::action::ActionKind;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::task::JoinHandle;

use super::batching::{Batch, Outgoing};
use super::router::Router;
use crate::exit::Failure;
use crate::input::Line;
use crate::validator::{Fault, MissingFields};

/// Actions of a chunk, at most.
const CHUNK_ACTIONS: usize = 512;
/// Bytes of the bodies of a chunk, at most; times the chunks in flight, the memory of this command.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;
/// Chunks in memory: one being published, one queued, one being read.
const CHUNKS_IN_FLIGHT: usize = 3;

/// What `verbatim publish` reports.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Lines that are not blank.
    pub(super) lines: u64,
    /// Actions that RabbitMQ confirmed.
    pub(super) confirmed: u64,
    /// What RabbitMQ confirmed: messages of a conversation together, other actions by themselves.
    pub(super) publications: u64,
    /// Actions that RabbitMQ returned as unroutable.
    pub(super) unroutable: u64,
    /// Actions that RabbitMQ refused, that were not sent, or whose outcome is unknown.
    pub(super) failed: u64,
    /// Lines that the workers would refuse. If there is one, nothing was published.
    pub(super) invalid: u64,
    /// What the messages of all lines lack that were read.
    #[serde(flatten)]
    pub(super) missing: MissingFields,
    /// What is wrong with each invalid line.
    pub(super) faults: Vec<Fault>,
    /// The unroutable and the failed actions.
    pub(super) failures: Vec<NotConfirmed>,
    /// Confirmed actions that are in `domain.unrouted`, because no queue is bound to their routing key.
    pub(super) unrouted: u64,
    /// Whether RabbitMQ became unreachable; the remaining lines were not sent.
    pub(super) rabbitmq_unavailable: bool,
}

/// An action that RabbitMQ did not confirm.
#[derive(Debug, Serialize)]
pub(super) struct NotConfirmed {
    pub(super) line: u64,
    pub(super) outcome: &'static str,
    pub(super) detail: String,
}

pub(super) struct Sending {
    publisher: Publisher,
    progress: ProgressBar,
    in_flight: VecDeque<Chunk>,
    report: Report,
}

/// Publications that are sent together: their lines, and whether the routing key is that of an action, which has a
/// queue.
struct Chunk {
    lines: Vec<(Vec<u64>, bool)>,
    results: JoinHandle<Vec<Result<(), PublishError>>>,
}

impl Sending {
    pub(super) fn new(publisher: Publisher, progress: ProgressBar) -> Self {
        Self { publisher, progress, in_flight: VecDeque::new(), report: Report::default() }
    }

    /// Sends all lines, or those before one that cannot be read.
    pub(super) async fn all(
        &mut self,
        lines: impl IntoIterator<Item = Result<Line, Failure>>,
        router: &Router,
    ) -> Result<(), Failure> {
        let (mut waiting, mut read) = (Batch::default(), Ok(()));
        for line in lines {
            let line = match line {
                Ok(line) => line,
                Err(failure) => {
                    read = Err(failure);
                    break;
                }
            };
            let number = line.number;
            self.report.lines += 1;
            if self.report.rabbitmq_unavailable {
                self.note(number, "not_sent", "RabbitMQ was unreachable".to_owned());
                continue;
            }
            if !waiting.add(line, router, &mut self.report.missing) {
                let detail = "the line has no action_type; set --routing-key".to_owned();
                self.note(number, "no_routing_key", detail);
                continue;
            }
            if waiting.lines >= CHUNK_ACTIONS || waiting.bytes >= CHUNK_BYTES {
                self.send(std::mem::take(&mut waiting), router).await;
            }
        }
        self.send(waiting, router).await;
        read
    }

    async fn send(&mut self, actions: Batch, router: &Router) {
        while self.in_flight.len() >= CHUNKS_IN_FLIGHT - 1 {
            self.settle_next().await;
        }
        let actions = actions.into_publications(router);
        if actions.is_empty() {
            return;
        }
        let is_bound = |key: &str| ActionKind::parse(key).is_some();
        let publisher = self.publisher.clone();
        let actions = actions.into_iter().map(|Outgoing { lines, publication }| {
            ((lines, is_bound(&publication.routing_key)), publication)
        });
        let (lines, publications): (Vec<_>, Vec<_>) = actions.unzip();
        let results = tokio::spawn(async move { publisher.publish_all(publications).await });
        self.in_flight.push_back(Chunk { lines, results });
    }

    async fn settle_next(&mut self) {
        let Some(chunk) = self.in_flight.pop_front() else { return };
        let (count, mut lines_done) = (chunk.lines.len(), 0);
        let ended = || PublishError::Unknown("the publisher ended".to_owned());
        let results = chunk.results.await.unwrap_or_else(|_| vec![Err(ended()); count]);
        let unreachable =
            |result: &Result<_, _>| matches!(result, Err(PublishError::Unreachable(_)));
        // The publisher has retried for its time limit; the remaining chunks would take as long each.
        self.report.rabbitmq_unavailable |= results.iter().all(unreachable);
        for ((lines, is_bound), result) in chunk.lines.into_iter().zip(results) {
            let actions = lines.len() as u64;
            lines_done += actions;
            match result {
                Ok(()) => {
                    self.report.confirmed += actions;
                    self.report.publications += 1;
                    self.report.unrouted += if is_bound { 0 } else { actions };
                }
                Err(error) => {
                    for line in lines {
                        self.note(line, outcome(&error), error.to_string());
                    }
                }
            }
        }
        self.progress.inc(lines_done);
    }

    fn note(&mut self, line: u64, outcome: &'static str, detail: String) {
        match outcome {
            "unroutable" => self.report.unroutable += 1,
            _ => self.report.failed += 1,
        }
        self.report.failures.push(NotConfirmed { line, outcome, detail });
    }

    pub(super) async fn finish(mut self) -> Report {
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
        PublishError::Unreachable(_) | PublishError::TooLate => "not_sent",
        PublishError::Unknown(_) => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use domain::time::Timestamp;
    use fixtures::{body, declared};
    use metrics::Metrics;
    use serde_json::json;
    use testkit::TestEnv;

    use super::*;
    use crate::exit::Exit;
    use crate::validator::Validator;

    #[tokio::test]
    async fn what_was_read_before_an_error_is_published_and_reported() {
        let env = TestEnv::new().await;
        let publisher = Publisher::new(declared(&env.amqp_url).await, Metrics::new());
        let mut sending = Sending::new(publisher, ProgressBar::hidden());
        let validator = Validator { now: Timestamp::EARLIEST, max_body_bytes: 1_000, sender: None };
        let router = Router { validator, routing_key: None, groups: true };
        let line = Line { number: 1, body: body("s", "m-1", &json!({})).to_string().into() };
        let lines = [Ok(line), Err(Failure::usage("cannot read standard input"))];
        let read = sending.all(lines, &router).await;
        assert_eq!(read.unwrap_err().exit, Exit::Usage);
        let report = sending.finish().await;
        assert_eq!((report.lines, report.confirmed), (1, 1), "{report:?}");
    }
}
