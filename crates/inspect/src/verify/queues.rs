//! Checks queues: declared as they must be, and their messages are consumed.
//!
//! Messages in a queue at one moment are no damage: they may have arrived just now. So the depths are sampled
//! several times, and a queue is reported only if it had messages in every sample. Dead-letter queues and
//! `domain.unrouted` are not reported while they have a consumer and their depth falls with every sample. What waits
//! for a retry is reported: it failed, and it is in no other place. A dead letter that cannot be stored may wait there
//! again and again.

use std::collections::BTreeMap;
use std::time::Duration;

use broker::inspect::{Depth, Inspector};
use broker::topology::{self, Purpose, RetryQueue, TopologyError, WorkQueue};
use tokio::time::sleep;

use super::finding::{Finding, Kind};
use super::run::{Incomplete, Run};

/// The pause between two samples.
const PAUSE: Duration = Duration::from_secs(1);
/// Samples after the first: together longer than a dead-letter collector needs for its prefetched messages.
const SAMPLES: u32 = 3;

impl Run<'_> {
    pub(super) async fn queues(&mut self) -> Result<(), Incomplete> {
        let endpoints = self.verifier.endpoints.clone();
        match topology::verify(&endpoints).await {
            Ok(()) => {}
            Err(TopologyError::Unavailable(error)) => return Err(error.into()),
            Err(TopologyError::Differs(differences)) => {
                for difference in differences {
                    let name = Some(difference.name.clone());
                    let detail = difference.to_string();
                    let finding = Finding::about(Kind::TopologyDiffers, name, detail);
                    self.found(finding, None).await;
                }
            }
        }
        let inspector = Inspector::new(endpoints);
        let depths_now = depths(&inspector).await?;
        self.checked(depths_now.len());
        let mut watched: Vec<Sampled> = depths_now.into_iter().map(Sampled::new).collect();
        for _ in 0..SAMPLES {
            watched.retain(|queue| queue.least > 0);
            if watched.is_empty() {
                break;
            }
            sleep(PAUSE).await;
            let now = depths(&inspector).await?;
            for queue in &mut watched {
                queue.sample(now.get(queue.name).copied());
            }
        }
        for queue in topology::queues() {
            let Some(sampled) = watched.iter().find(|it| it.name == queue.name) else {
                continue;
            };
            if let Some(kind) = kind(queue.purpose, sampled) {
                let name = Some(queue.name.to_owned());
                let detail = detail(queue.purpose, sampled);
                self.found(Finding::about(kind, name, detail), None).await;
            }
        }
        Ok(())
    }
}

/// A queue over several samples.
#[derive(Debug, Clone)]
struct Sampled {
    name: &'static str,
    /// The fewest messages that were ready in a sample.
    least: u32,
    /// How many were ready in the last sample.
    last: u32,
    /// Whether fewer were ready in each sample than in the one before.
    falling: bool,
    /// The most consumers in a sample.
    consumers: u32,
}

impl Sampled {
    fn new((name, depth): (&'static str, Depth)) -> Self {
        let Depth { ready, consumers } = depth;
        Self { name, least: ready, last: ready, falling: true, consumers }
    }

    /// Adds a sample. A missing queue counts as empty.
    fn sample(&mut self, now: Option<Depth>) {
        let (ready, consumers) = now.map_or((0, 0), |now| (now.ready, now.consumers));
        self.falling &= ready < self.last;
        self.least = self.least.min(ready);
        self.last = ready;
        self.consumers = self.consumers.max(consumers);
    }
}

async fn depths(inspector: &Inspector) -> Result<BTreeMap<&'static str, Depth>, Incomplete> {
    let depths = inspector.depths().await?.into_iter();
    Ok(depths.filter_map(|(queue, depth)| Some((queue, depth?))).collect())
}

/// What is wrong with a queue after all samples.
fn kind(purpose: Purpose, sampled: &Sampled) -> Option<Kind> {
    if sampled.least == 0 {
        return None;
    }
    let is_consumed = sampled.falling && sampled.consumers > 0;
    match purpose {
        Purpose::DeadLetters => (!is_consumed).then_some(Kind::DeadLettersWaiting),
        // Its consumer reroutes every message at once, or makes it a dead letter.
        Purpose::Work(WorkQueue::Unrouted) => (!is_consumed).then_some(Kind::UnroutedWaiting),
        Purpose::Suspects(_) => Some(Kind::SuspectsWaiting),
        Purpose::Slow(_) | Purpose::SlowDeadLetters => Some(Kind::SlowWaiting),
        // With a consumer it is a backlog, which is no damage.
        Purpose::Work(_) => (sampled.consumers == 0).then_some(Kind::WorkWithoutConsumers),
        Purpose::Retry(_) => Some(Kind::RetriesWaiting),
        // Requests expire.
        Purpose::Requests => None,
    }
}

/// How many messages are in a queue, and what they wait for.
fn detail(purpose: Purpose, sampled: &Sampled) -> String {
    match (purpose, sampled.least) {
        (Purpose::Retry(queue), 1) => {
            format!("1 message waits for its next attempt, {} s after it failed", seconds(queue))
        }
        (Purpose::Retry(queue), n) => {
            format!(
                "{n} messages wait for their next attempts, {} s after they failed",
                seconds(queue)
            )
        }
        (_, ready) => {
            let consumers = match sampled.consumers {
                0 => "no consumer".to_owned(),
                1 => "1 consumer".to_owned(),
                n => format!("{n} consumers"),
            };
            format!("{ready} messages ready, {consumers}")
        }
    }
}

fn seconds(queue: RetryQueue) -> u64 {
    queue.delay().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(purpose: Purpose, samples: [u32; 3], consumers: u32) -> Option<Kind> {
        let [first, then @ ..] = samples.map(|ready| Depth { ready, consumers });
        let mut sampled = Sampled::new(("q", first));
        then.into_iter().for_each(|now| sampled.sample(Some(now)));
        kind(purpose, &sampled)
    }

    fn of(purpose: Purpose, ready: u32, consumers: u32) -> Option<Kind> {
        over(purpose, [ready; 3], consumers)
    }

    #[test]
    fn a_burst_that_a_collector_is_consuming_is_no_damage() {
        for (purpose, found) in [
            (Purpose::DeadLetters, Kind::DeadLettersWaiting),
            (Purpose::Work(WorkQueue::Unrouted), Kind::UnroutedWaiting),
        ] {
            assert_eq!(over(purpose, [9_000, 6_000, 3_000], 1), None);
            assert_eq!(over(purpose, [9_000, 6_000, 3_000], 0), Some(found), "no consumer");
            assert_eq!(over(purpose, [9_000, 6_000, 6_000], 1), Some(found), "it stopped");
        }
    }

    #[test]
    fn a_backlog_that_a_consumer_works_on_is_no_damage() {
        let work = Purpose::Work(WorkQueue::SaveMessage);
        assert_eq!(of(work, 1_000, 1), None);
        assert_eq!(of(work, 0, 0), None);
        assert_eq!(of(work, 1, 0), Some(Kind::WorkWithoutConsumers));
    }

    #[test]
    fn a_queue_that_must_be_empty_is_reported_although_it_has_consumers() {
        assert_eq!(of(Purpose::DeadLetters, 1, 1), Some(Kind::DeadLettersWaiting));
        assert_eq!(of(Purpose::Suspects(WorkQueue::Session), 1, 0), Some(Kind::SuspectsWaiting));
        assert_eq!(of(Purpose::Work(WorkQueue::Unrouted), 1, 2), Some(Kind::UnroutedWaiting));
        assert_eq!(of(Purpose::Slow(WorkQueue::Session), 1, 1), Some(Kind::SlowWaiting));
        assert_eq!(of(Purpose::SlowDeadLetters, 1, 1), Some(Kind::SlowWaiting));
        assert_eq!(of(Purpose::Requests, 9, 0), None);
    }

    #[test]
    fn what_waits_for_a_retry_is_reported_with_what_it_waits_for() {
        let queue = Purpose::Retry(RetryQueue::HalfMinute);
        assert_eq!(over(queue, [2, 2, 1], 0), Some(Kind::RetriesWaiting));
        assert_eq!(over(queue, [1, 0, 1], 0), None, "the next attempt was made");
        let sampled = Sampled::new(("q", Depth { ready: 1, consumers: 0 }));
        let expected = "1 message waits for its next attempt, 30 s after it failed";
        assert_eq!(detail(queue, &sampled), expected);
    }
}
