//! `bench memory`: the peak resident memory of every worker, each time freshly started, under each kind of load; and
//! the memory limit of its container in `docker-compose.yml`, whose settings it has. The same for the conversation-api.

mod api;
mod limits;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use domain::fleet::{self, Consumed, Process, WorkQueue};
use serde::Serialize;
use testkit::fleet::Worker;
use tokio::time::{Instant, sleep};

use self::limits::{IDLE, LIMIT, MARGIN, MIB};
use super::containers::Container;
use super::environment::{Environment, Fill};
use super::report::{Goal, Table, goals};
use super::usage;
use crate::say;

/// The options of `bench memory`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Measure only this worker, or the conversation-api
    #[arg(long)]
    worker: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// The largest body that RabbitMQ 3.10 accepts by default (`max_message_size` in its `rabbit.app`).
const LARGEST_BODY: u64 = 128 * MIB;

/// The default of `VERBATIM_MAX_INFLIGHT_BYTES` in MiB.
const INFLIGHT: u64 = 64;

/// What a worker needs beside its messages, in MiB.
const BASE: u64 = 64;

const POLL: Duration = Duration::from_millis(100);

/// What is in the queues of a worker when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Load {
    Idle,
    Small,
    Large,
    LargestText,
    LargestArray,
    Headers,
}

impl Load {
    const ALL: [Self; 6] = [
        Self::Idle,
        Self::Small,
        Self::Large,
        Self::LargestText,
        Self::LargestArray,
        Self::Headers,
    ];

    /// The heading of its column.
    const fn title(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Small => "1 KiB",
            Self::Large => "1 MiB",
            Self::LargestText => "128 MiB text",
            Self::LargestArray => "array",
            Self::Headers => "headers",
        }
    }

    const fn is_largest(self) -> bool {
        matches!(self, Self::LargestText | Self::LargestArray)
    }

    /// What is published, in this order. A count is for all queues of a worker together.
    fn messages(self) -> Vec<Fill> {
        let small = Fill { count: 20_000, body_bytes: 1024, array: false, header_bytes: 0 };
        // Behind many small messages the prefetch is at its largest.
        let first = Fill { count: 3_500, ..small };
        let largest = Fill { count: 1, body_bytes: LARGEST_BODY, ..small };
        match self {
            Self::Idle => Vec::new(),
            Self::Small => vec![small],
            Self::Large => vec![first, Fill { count: 210, body_bytes: MIB, ..small }],
            Self::LargestText => vec![largest],
            Self::LargestArray => vec![Fill { array: true, ..largest }],
            Self::Headers => vec![first, Fill { count: 700, header_bytes: 100_000, ..small }],
        }
    }
}

/// One worker.
#[derive(Debug, Serialize)]
struct Row {
    worker: &'static str,
    /// Peak resident memory in MiB, by load.
    peaks: Vec<(Load, u64)>,
    /// The memory limit of its container in MiB.
    container: u64,
    /// `max_inflight_bytes` in MiB.
    inflight: u64,
}

#[derive(Debug, Serialize)]
struct Measured {
    rows: Vec<Row>,
    api: Option<api::Measured>,
    goals: Vec<Goal>,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    let compose = std::fs::read_to_string(testkit::place::workspace().join("docker-compose.yml"))?;
    let chosen = |worker: &Process| options.worker.as_deref().is_none_or(|it| it == worker.name());
    let workers: Vec<_> = fleet::WORKERS.into_iter().filter(chosen).collect();
    let with_api = chosen(&fleet::CONVERSATION_API);
    if workers.is_empty() && !with_api {
        bail!("no process has this name");
    }
    let environment = Environment::open_with_api().await?;
    let mut rows = Vec::new();
    for worker in workers {
        let container = Container::of(worker.name(), &compose)?;
        let mut peaks = Vec::new();
        for load in Load::ALL {
            let peak = peak(&environment, worker, &container, load).await?;
            say::note(&format!("{}, {}: {peak} MiB", worker.name(), load.title()));
            peaks.push((load, peak));
        }
        let inflight = container.settings.iter().find(|it| it.0 == "VERBATIM_MAX_INFLIGHT_BYTES");
        let inflight = inflight.and_then(|it| it.1.strip_suffix("MiB")?.parse().ok());
        let (memory, inflight) = (container.memory, inflight.unwrap_or(INFLIGHT));
        rows.push(Row { worker: worker.name(), peaks, container: memory, inflight });
    }
    let api = match with_api {
        true => Some(api::measure(&environment, &compose).await?),
        false => None,
    };
    let goals = rows.iter().map(Row::largest_body).chain(rows.iter().map(Row::margin));
    let goals = goals.chain(api.as_ref().map(api::Measured::margin)).collect();
    let measured = Measured { rows, api, goals };
    if options.json {
        say::line(&serde_json::to_string_pretty(&measured)?);
    } else {
        measured.print();
    }
    Ok(())
}

/// The peak resident memory of a worker that starts with this load in its queues, in MiB.
async fn peak(
    environment: &Environment,
    process: Process,
    container: &Container,
    load: Load,
) -> Result<u64> {
    environment.clear().await?;
    environment.purge().await?;
    let queues = queues(process);
    let mut published = vec![0; queues.len()];
    for fill in load.messages() {
        let each = fill.count / queues.len() as u64;
        for ((queue, action), published) in queues.iter().zip(&mut published) {
            // A single message is in the first queue alone.
            let count = if each > 0 { each } else { u64::from(*queue == queues[0].0) };
            if count > 0 {
                environment.fill(queue, action, *published, Fill { count, ..fill }).await?;
            }
            *published += count;
        }
    }
    let settings = container.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let settings: Vec<_> = settings.collect();
    let worker = environment.fleet.start_with(process.name(), &settings)?;
    worker.ready(LIMIT).await?;
    if load == Load::Idle {
        sleep(IDLE).await;
    }
    for ((queue, _), published) in queues.iter().zip(published) {
        settled(&worker, queue, published).await?;
    }
    let peak = usage::peak_memory(worker.pid())?;
    let status = worker.stop(LIMIT).await?;
    if !status.success() {
        bail!("{} ended with {status}:\n{}", process.name(), worker.log_tail());
    }
    Ok(peak.div_ceil(MIB))
}

/// The queues of a worker, and the action that their messages name.
fn queues(process: Process) -> Vec<(&'static str, &'static str)> {
    let queues = process.consumes().iter().flat_map(|consumed| match *consumed {
        Consumed::Work(queue) => vec![(queue.name(), queue)],
        Consumed::DeadLetters => WorkQueue::ALL.map(|queue| (queue.dlq(), queue)).to_vec(),
    });
    let action = |queue: WorkQueue| match queue {
        WorkQueue::Session => "conversation.session_opened",
        _ => "conversation.save_message",
    };
    queues.map(|(name, queue)| (name, action(queue))).collect()
}

/// Waits until so many messages of a queue have an outcome.
async fn settled(worker: &Worker, queue: &str, messages: u64) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let settled = outcomes(&worker.get("/metrics").await?.body, queue)?;
        if settled >= messages {
            return Ok(());
        }
        if Instant::now() > deadline {
            let tail = worker.log_tail();
            bail!("{settled} of {messages} messages of {queue} have an outcome\n{tail}");
        }
        sleep(POLL).await;
    }
}

/// How many deliveries from a queue have an outcome, from the metrics of a worker.
fn outcomes(metrics: &str, queue: &str) -> Result<u64> {
    let of_queue = format!("queue=\"{queue}\"");
    let series = metrics.lines().filter(|line| {
        line.starts_with("verbatim_deliveries_total{")
            && line.contains(&of_queue)
            && !line.contains("outcome=\"requeued\"")
    });
    let counts = series.filter_map(|line| line.rsplit_once(' '));
    counts.map(|(_, count)| count.parse::<u64>().with_context(|| format!("{count:?}"))).sum()
}

impl Row {
    fn largest(&self) -> u64 {
        self.peaks.iter().map(|(_, peak)| *peak).max().unwrap_or(0)
    }

    /// What was promised for the largest body.
    #[expect(clippy::cast_precision_loss, reason = "MiB, far below 2^52")]
    fn largest_body(&self) -> Goal {
        let peaks = self.peaks.iter().filter(|(load, _)| load.is_largest());
        let peak = peaks.map(|(_, peak)| *peak).max().unwrap_or(0);
        let promised = BASE + 2 * self.inflight + LARGEST_BODY / MIB;
        let what = format!("{}, 128 MiB, peak in MiB", self.worker);
        Goal::at_most(what, peak as f64, promised as f64)
    }

    #[expect(clippy::cast_precision_loss, reason = "MiB, far below 2^52")]
    fn margin(&self) -> Goal {
        let ratio = self.container as f64 / self.largest() as f64;
        Goal::at_least(format!("{}, container / largest", self.worker), ratio, MARGIN)
    }
}

impl Measured {
    fn print(&self) {
        say::heading("peak resident memory of a freshly started process, MiB");
        goals(&self.goals);
        let [idle, small, large, text, array, headers] = Load::ALL.map(Load::title);
        let titles = ["", idle, small, large, text, array, headers, "largest", "container"];
        let mut table = Table::new(titles);
        for row in &self.rows {
            let of = |load: Load| row.peaks.iter().find(|(it, _)| *it == load).map_or(0, |it| it.1);
            let [idle, small, large, text, array, headers] =
                Load::ALL.map(|load| of(load).to_string());
            let (largest, container) = (row.largest().to_string(), row.container.to_string());
            table.row([
                row.worker.to_owned(),
                idle,
                small,
                large,
                text,
                array,
                headers,
                largest,
                container,
            ]);
        }
        if !self.rows.is_empty() {
            table.print();
            for line in LEGEND {
                say::aside(line);
            }
        }
        if let Some(api) = &self.api {
            api.print();
        }
    }
}

/// What the columns are.
const LEGEND: [&str; 7] = [
    "idle: 12 s without messages. 1 KiB: 20 000 bodies. 1 MiB: 210 bodies behind 3 500 of 1 KiB.",
    "128 MiB text: one body of 134 217 728 bytes, RabbitMQ's default limit, most of it one text. array: [0,0,0,…].",
    "headers: 700 messages with 100 kB of headers, half of them one text, half of them booleans, behind 3 500 of 1 KiB.",
    "The messages are in the queues when the worker starts; those of the dead-letter-worker are distributed over its",
    "seven queues. Each worker has the settings of its container in docker-compose.yml: a VERBATIM_MAX_INFLIGHT_BYTES",
    "of 16 MiB for the dead-letter-worker, else the default of 64 MiB. container: the memory limit there.",
    "The goal for 128 MiB is 64 MiB + 2 × VERBATIM_MAX_INFLIGHT_BYTES + the body.",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_of_a_queue_counts_but_a_requeue() {
        let metrics = "verbatim_deliveries_total{outcome=\"applied\",queue=\"a\"} 3\n\
                       verbatim_deliveries_total{outcome=\"dead_lettered\",queue=\"a\"} 4\n\
                       verbatim_deliveries_total{outcome=\"requeued\",queue=\"a\"} 5\n\
                       verbatim_deliveries_total{outcome=\"applied\",queue=\"a.dlq\"} 6\n";
        assert_eq!(outcomes(metrics, "a").unwrap(), 7);
        assert_eq!(outcomes(metrics, "b").unwrap(), 0);
    }

    #[test]
    fn the_dead_letter_worker_has_the_queues_of_all_dead_letters_and_two_more() {
        let names: Vec<_> = queues(fleet::DEAD_LETTER_WORKER).into_iter().map(|it| it.0).collect();
        assert_eq!(names.len(), WorkQueue::ALL.len() + 2);
        assert!(names.contains(&WorkQueue::SaveMessage.dlq()));
    }

    #[test]
    fn a_single_message_is_never_divided() {
        let single = |load: Load| load.messages().iter().all(|fill| fill.count == 1);
        for load in Load::ALL {
            assert_eq!(load.is_largest(), single(load) && load != Load::Idle);
        }
    }
}
