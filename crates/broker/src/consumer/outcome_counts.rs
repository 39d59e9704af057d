//! How many messages of a batch, and elements of messages, had each outcome.

use metrics::DeliveryOutcome;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OutcomeCounts(Vec<(DeliveryOutcome, u64)>);

impl OutcomeCounts {
    pub(super) fn iter(&self) -> impl Iterator<Item = (DeliveryOutcome, u64)> {
        self.0.iter().copied()
    }

    pub(super) fn of(&self, outcome: DeliveryOutcome) -> u64 {
        self.iter().find(|(known, _)| *known == outcome).map_or(0, |(_, count)| count)
    }

    pub(super) fn add(&mut self, outcome: DeliveryOutcome) {
        self.add_many(outcome, 1);
    }

    pub(super) fn add_many(&mut self, outcome: DeliveryOutcome, many: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == outcome) {
            Some((_, count)) => *count += many,
            None => self.0.push((outcome, many)),
        }
    }
}
