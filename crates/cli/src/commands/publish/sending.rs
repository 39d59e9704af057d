//! Lines on their way to RabbitMQ: in chunks, several in flight, each with one result.

use std::collections::VecDeque;
use std::sync::Arc;

use broker::topology::{ACTIONS, BINDINGS};
use broker::{Publication, PublishError, Publisher};
use indicatif::ProgressBar;
use tokio::task::JoinHandle;

use super::router::Router;
use super::{NotConfirmed, Report};
use crate::exit::Failure;
use crate::input::{Line, Lines};

/// Actions that are handed to the publisher together.
const CHUNK_ACTIONS: usize = 512;
/// Bytes of bodies that are handed over together at most; with the chunks in flight, what this
/// command holds in memory.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;
/// Chunks in flight: one travels, one waits, one is read.
const CHUNKS_IN_FLIGHT: usize = 3;
/// Chunks on their way.
pub(super) struct Sending {
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
    pub(super) fn new(publisher: Publisher, progress: ProgressBar) -> Self {
        Self { publisher, progress, in_flight: VecDeque::new(), report: Report::default() }
    }

    pub(super) async fn all(&mut self, lines: &Lines, router: &Router) -> Result<(), Failure> {
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
        PublishError::Unreachable(_) => "not_sent",
        PublishError::Unknown(_) => "unknown",
    }
}

/// Whether a queue of the fleet is bound to a routing key; the keys of actions have no patterns.
fn is_bound(routing_key: &str) -> bool {
    BINDINGS.iter().any(|binding| binding.exchange == ACTIONS && binding.key == routing_key)
}
