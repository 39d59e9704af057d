//! Queues: declared as they must be, and what waits in them has somebody who takes it.
//!
//! What waits at one moment says nothing: it may have come just now. So queues are looked at several
//! times, and only what waited at every look is told. Nor is a burst that its consumers are working off.

use std::time::Duration;

use broker::inspect::{Depth, Inspector};
use broker::topology::{self, Purpose, TopologyError, WorkQueue};
use tokio::time::sleep;

use super::{Finding, Incomplete, Kind, Run};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Looks after the first: with the pauses, longer than a dead-letter collector needs for what is prefetched.
const LOOKS: u32 = 3;

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
        let mut inspector = Inspector::new(endpoints);
        let depths_now = depths(&mut inspector).await?;
        self.checked(depths_now.len());
        let mut watched: Vec<Watched> = depths_now.into_iter().map(Watched::new).collect();
        for _ in 0..LOOKS {
            watched.retain(|queue| queue.least > 0);
            if watched.is_empty() {
                break;
            }
            sleep(PAUSE).await;
            let now = depths(&mut inspector).await?;
            for queue in &mut watched {
                queue.look(now.iter().find(|seen| seen.queue == queue.name).copied());
            }
        }
        for queue in topology::queues() {
            let Some(seen) = watched.iter().find(|seen| seen.name == queue.name) else {
                continue;
            };
            if let Some(kind) = kind(queue.purpose, seen) {
                let consumers = match seen.consumers {
                    0 => "no consumer".to_owned(),
                    1 => "1 consumer".to_owned(),
                    n => format!("{n} consumers"),
                };
                let detail = format!("{} ready, {consumers}", seen.least);
                let name = Some(queue.name.to_owned());
                self.found(Finding::about(kind, name, detail), None).await;
            }
        }
        Ok(())
    }
}

/// A queue over several looks.
#[derive(Debug, Clone)]
struct Watched {
    name: &'static str,
    /// The fewest messages that were ready at one look.
    least: u32,
    /// How many were ready at the last look.
    last: u32,
    /// Whether fewer were ready at each look than at the one before.
    falls: bool,
    /// The most consumers at one look: a queue that had one is worked on.
    consumers: u32,
}

impl Watched {
    fn new(depth: Depth) -> Self {
        let Depth { queue, ready, consumers } = depth;
        Self { name: queue, least: ready, last: ready, falls: true, consumers }
    }

    /// Looks once more. A queue that is gone has nothing in it.
    fn look(&mut self, now: Option<Depth>) {
        let (ready, consumers) = now.map_or((0, 0), |now| (now.ready, now.consumers));
        self.falls &= ready < self.last;
        self.least = self.least.min(ready);
        self.last = ready;
        self.consumers = self.consumers.max(consumers);
    }
}

async fn depths(inspector: &mut Inspector) -> Result<Vec<Depth>, Incomplete> {
    Ok(inspector.depths().await?.into_iter().filter_map(|(_, depth)| depth).collect())
}

/// What is wrong with a queue in which so much waited all the while.
fn kind(purpose: Purpose, seen: &Watched) -> Option<Kind> {
    if seen.least == 0 {
        return None;
    }
    let is_worked_off = seen.falls && seen.consumers > 0;
    match purpose {
        Purpose::DeadLetters => (!is_worked_off).then_some(Kind::DeadLettersWaiting),
        // Its consumer takes everything at once, and sends it home or to the dead letters.
        Purpose::Work(WorkQueue::Unrouted) => (!is_worked_off).then_some(Kind::UnroutedWaiting),
        Purpose::Suspects(_) => Some(Kind::SuspectsWaiting),
        // With consumers it is a backlog, which is no damage.
        Purpose::Work(_) => (seen.consumers == 0).then_some(Kind::WorkWithoutConsumers),
        // Delays end by themselves, and questions expire.
        Purpose::Retry(_) | Purpose::Requests => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(purpose: Purpose, looks: [u32; 3], consumers: u32) -> Option<Kind> {
        let [first, then @ ..] = looks.map(|ready| Depth { queue: "q", ready, consumers });
        let mut seen = Watched::new(first);
        then.into_iter().for_each(|now| seen.look(Some(now)));
        kind(purpose, &seen)
    }

    fn of(purpose: Purpose, ready: u32, consumers: u32) -> Option<Kind> {
        over(purpose, [ready; 3], consumers)
    }

    #[test]
    fn a_burst_that_a_collector_works_off_is_no_damage() {
        for (purpose, found) in [
            (Purpose::DeadLetters, Kind::DeadLettersWaiting),
            (Purpose::Work(WorkQueue::Unrouted), Kind::UnroutedWaiting),
        ] {
            assert_eq!(over(purpose, [9_000, 6_000, 3_000], 1), None);
            assert_eq!(over(purpose, [9_000, 6_000, 3_000], 0), Some(found), "nobody takes it");
            assert_eq!(over(purpose, [9_000, 6_000, 6_000], 1), Some(found), "it stopped");
        }
    }

    #[test]
    fn a_backlog_that_is_worked_on_is_no_damage() {
        let work = Purpose::Work(WorkQueue::SaveMessage);
        assert_eq!(of(work, 1_000, 1), None);
        assert_eq!(of(work, 0, 0), None);
        assert_eq!(of(work, 1, 0), Some(Kind::WorkWithoutConsumers));
    }

    #[test]
    fn what_must_not_wait_is_told_whoever_consumes_it() {
        assert_eq!(of(Purpose::DeadLetters, 1, 1), Some(Kind::DeadLettersWaiting));
        assert_eq!(of(Purpose::Suspects(WorkQueue::Session), 1, 0), Some(Kind::SuspectsWaiting));
        assert_eq!(of(Purpose::Work(WorkQueue::Unrouted), 1, 2), Some(Kind::UnroutedWaiting));
        assert_eq!(of(Purpose::Requests, 9, 0), None);
    }
}
