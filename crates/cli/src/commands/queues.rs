//! `verbatim queues`: every queue of the fleet, its depth, its consumers and its worker.

use broker::inspect::{Depth, Inspector};
use broker::topology::{self, Purpose};
use clap::Args;
use domain::fleet::{self, Consumed, Process};
use serde::Serialize;
use service::settings::AmqpSettings;
use stores::Broker;

use crate::exit::{Exit, Failure};
use crate::output::{Cell, Output, Text, Tone, plural};

/// Shows every queue with its ready messages and consumers
///
/// `ready` counts messages that wait for a consumer, without those that are delivered and unacknowledged.
#[derive(Debug, Args)]
#[command(override_usage = "verbatim queues [OPTIONS]")]
#[command(after_help = "\
Examples:
  verbatim queues
  verbatim queues --json | jq '.[] | select(.ready > 0)'
  watch --color verbatim queues --color always

Exit code 1: a queue is missing.")]
pub(crate) struct Queues {
    #[command(flatten)]
    amqp: AmqpSettings,
}

#[derive(Debug, Serialize)]
struct Row {
    queue: &'static str,
    purpose: &'static str,
    exists: bool,
    ready: Option<u32>,
    consumers: Option<u32>,
    /// The worker that consumes it; null for retry queues, and where this version has none.
    worker: Option<&'static str>,
    about: &'static str,
}

impl Queues {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let broker = Broker::of(&self.amqp)?;
        let inspector = Inspector::new(broker.endpoints.clone());
        let depths = inspector.depths().await.map_err(|error| broker.failure(&error))?;
        let rows = rows(&depths);
        output.show(&rows, |out| text(&rows, out))?;
        Ok(if rows.iter().all(|row| row.exists) { Exit::Success } else { Exit::Problems })
    }
}

/// The queues: work first, then requests, suspects, slow messages, dead letters and retries.
fn rows(depths: &[(&'static str, Option<Depth>)]) -> Vec<Row> {
    let mut queues = topology::queues();
    queues.sort_by_key(|queue| match queue.purpose {
        Purpose::Work(_) => 0,
        Purpose::Requests => 1,
        Purpose::Suspects(_) => 2,
        Purpose::Slow(_) => 3,
        Purpose::DeadLetters => 4,
        Purpose::SlowDeadLetters => 5,
        Purpose::Retry(_) => 6,
    });
    let row = |queue: topology::Queue| {
        let depth = depths.iter().find(|(name, _)| *name == queue.name);
        let depth = depth.and_then(|(_, depth)| *depth);
        let (purpose, worker, about) = describe(queue);
        Row {
            queue: queue.name,
            purpose,
            exists: depth.is_some(),
            ready: depth.map(|depth| depth.ready),
            consumers: depth.map(|depth| depth.consumers),
            worker,
            about,
        }
    };
    queues.into_iter().map(row).collect()
}

fn describe(queue: topology::Queue) -> (&'static str, Option<&'static str>, &'static str) {
    let worker = |consumed| fleet::worker_of(consumed).map(Process::name);
    match queue.purpose {
        Purpose::Work(work) => ("work", worker(Consumed::Work(work)), work.about()),
        Purpose::Suspects(work) => (
            "suspects",
            worker(Consumed::Work(work)),
            "redelivered too often; handled apart from the queue",
        ),
        Purpose::DeadLetters => {
            ("dead_letters", worker(Consumed::DeadLetters), "dead letters that are not stored yet")
        }
        Purpose::Slow(work) => (
            "slow",
            worker(Consumed::Work(work)),
            "slow or locked; handled one by one, apart from the queue",
        ),
        Purpose::SlowDeadLetters => (
            "slow",
            worker(Consumed::DeadLetters),
            "dead letters that are slow to store, or locked",
        ),
        Purpose::Retry(_) => ("retry", None, "messages that wait for their next attempt"),
        Purpose::Requests => ("requests", None, "requests for context; expire after 30 s"),
    }
}

fn text(rows: &[Row], out: &mut Text) {
    let number = |number: Option<u32>| match number {
        None => Cell::new(Tone::Bad, "missing").right(),
        Some(0) => Cell::count(0).tone(Tone::Dim),
        Some(number) => Cell::count(number),
    };
    let columns = |row: &Row| {
        let ready = match row.ready {
            Some(ready @ 1..) if row.purpose == "dead_letters" || is_stuck(row) => {
                Cell::count(ready).tone(Tone::Warn)
            }
            ready => number(ready),
        };
        let consumers = match (row.purpose, row.consumers) {
            // These have no permanent consumer.
            ("suspects" | "retry", Some(0)) => Cell::optional(None).right(),
            // A slow queue has one while it has messages.
            ("slow", Some(0)) if row.ready == Some(0) => Cell::optional(None).right(),
            (_, consumers) => number(consumers),
        };
        [row.queue.into(), ready, consumers, Cell::new(Tone::Dim, row.about)]
    };
    out.table(["queue", "ready", "consumers", "contents"], rows.iter().map(columns));
    let hints = hints(rows);
    if !hints.is_empty() {
        out.push("\n");
    }
    hints.iter().for_each(|hint| out.line(Tone::Warn, hint));
}

/// Whether messages are ready in a queue that should have a consumer and has none.
fn is_stuck(row: &Row) -> bool {
    let consumed = !matches!(row.purpose, "suspects" | "retry");
    consumed && row.ready.is_some_and(|ready| ready > 0) && row.consumers == Some(0)
}

fn hints(rows: &[Row]) -> Vec<String> {
    let mut hints = Vec::new();
    let missing = rows.iter().filter(|row| !row.exists).count();
    if missing > 0 {
        let queues = plural(missing as u64, "queue");
        hints.push(format!("{queues} missing: run `verbatim setup`"));
    }
    for row in rows.iter().filter(|row| is_stuck(row)) {
        let ready = plural(row.ready.unwrap_or_default(), "message");
        let remedy = match row.worker {
            Some(worker) => format!("start a {worker}"),
            None => "this version has no worker for it".to_owned(),
        };
        hints.push(format!("{ready} ready in {}, but no consumer: {remedy}", row.queue));
    }
    hints
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::plain;

    #[test]
    fn missing_queues_and_queues_without_consumers_are_named() {
        let depths: Vec<_> = topology::queues()
            .iter()
            .map(|queue| {
                let depth = |ready, consumers| Some(Depth { ready, consumers });
                let depth = match queue.name {
                    "conversation.save_message" => depth(12_345, 0),
                    "conversation.session" => depth(3, 2),
                    "conversation.save_message.dlq" => depth(1, 1),
                    "bot.state" => depth(1, 0),
                    "domain.retry.5000" => None,
                    _ => depth(0, 0),
                };
                (queue.name, depth)
            })
            .collect();
        insta::assert_snapshot!(plain(|out| text(&rows(&depths), out)));
    }

    #[test]
    fn every_queue_of_the_topology_is_shown_once() {
        let rows = rows(&[]);
        assert_eq!(rows.len(), topology::queues().len());
        assert!(rows.iter().all(|row| !row.exists && !row.about.is_empty()));
    }
}
