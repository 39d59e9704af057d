//! How many messages of a batch had each outcome.

use metrics::DeliveryOutcome;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OutcomeCounts(Vec<(DeliveryOutcome, u64)>);

impl OutcomeCounts {
    pub(super) fn iter(&self) -> impl Iterator<Item = (DeliveryOutcome, u64)> {
        self.0.iter().copied()
    }

    /// How many messages have an outcome of another kind than a requeue.
    pub(super) fn handled(&self) -> u64 {
        let handled = self.iter().filter(|(outcome, _)| *outcome != DeliveryOutcome::Requeued);
        handled.map(|(_, count)| count).sum()
    }

    pub(super) fn add(&mut self, outcome: DeliveryOutcome) {
        match self.0.iter_mut().find(|(known, _)| *known == outcome) {
            Some((_, count)) => *count += 1,
            None => self.0.push((outcome, 1)),
        }
    }
}
