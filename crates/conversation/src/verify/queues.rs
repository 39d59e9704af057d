//! Queues: declared as they must be, and what waits in them has somebody who takes it.
//!
//! What waits at one moment says nothing: it may have come just now. So queues are looked at several
//! times, and only what waited at every look is told.

use std::time::Duration;

use broker::inspect::{Depth, Inspector};
use broker::topology::{self, Purpose, TopologyError, WorkQueue};
use tokio::time::sleep;

use super::{BrokenOff, Finding, Kind, Run};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Looks after the first: with the pauses, longer than a keeper needs for what is prefetched.
const LOOKS: u32 = 3;

impl Run<'_> {
    pub(super) async fn queues(&mut self) -> Result<(), BrokenOff> {
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
        let mut least = depths(&mut inspector).await?;
        self.checked(least.len());
        for _ in 0..LOOKS {
            least.retain(|depth| depth.ready > 0);
            if least.is_empty() {
                break;
            }
            sleep(PAUSE).await;
            let now = depths(&mut inspector).await?;
            for depth in &mut least {
                let seen = now.iter().find(|seen| seen.queue == depth.queue);
                let (ready, consumers) = seen.map_or((0, 0), |seen| (seen.ready, seen.consumers));
                depth.ready = depth.ready.min(ready);
                // One that had a consumer once is worked on.
                depth.consumers = depth.consumers.max(consumers);
            }
        }
        for queue in topology::queues() {
            let Some(depth) = least.iter().find(|depth| depth.queue == queue.name) else {
                continue;
            };
            if let Some(kind) = kind(queue.purpose, *depth) {
                let consumers = match depth.consumers {
                    0 => "no consumer".to_owned(),
                    1 => "1 consumer".to_owned(),
                    n => format!("{n} consumers"),
                };
                let detail = format!("{} ready, {consumers}", depth.ready);
                let name = Some(queue.name.to_owned());
                self.found(Finding::about(kind, name, detail), None).await;
            }
        }
        Ok(())
    }
}

async fn depths(inspector: &mut Inspector) -> Result<Vec<Depth>, BrokenOff> {
    Ok(inspector.depths().await?.into_iter().filter_map(|(_, depth)| depth).collect())
}

/// What is wrong with a queue in which so much waited all the while.
fn kind(purpose: Purpose, depth: Depth) -> Option<Kind> {
    if depth.ready == 0 {
        return None;
    }
    match purpose {
        Purpose::DeadLetters => Some(Kind::LettersWaiting),
        // Its consumer takes everything at once, and sends it home or to the dead letters.
        Purpose::Work(WorkQueue::Unrouted) => Some(Kind::UnroutedWaiting),
        Purpose::Suspects(_) => Some(Kind::SuspectsWaiting),
        // With consumers it is a backlog, which is no damage.
        Purpose::Work(_) => (depth.consumers == 0).then_some(Kind::WorkWithoutConsumers),
        // Delays end by themselves, and questions expire.
        Purpose::Retry(_) | Purpose::Questions => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(purpose: Purpose, ready: u32, consumers: u32) -> Option<Kind> {
        kind(purpose, Depth { queue: "q", ready, consumers })
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
        assert_eq!(of(Purpose::DeadLetters, 1, 1), Some(Kind::LettersWaiting));
        assert_eq!(of(Purpose::Suspects(WorkQueue::Session), 1, 0), Some(Kind::SuspectsWaiting));
        assert_eq!(of(Purpose::Work(WorkQueue::Unrouted), 1, 2), Some(Kind::UnroutedWaiting));
        assert_eq!(of(Purpose::Questions, 9, 0), None);
    }
}
