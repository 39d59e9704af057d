//! The dry run of a replay: what it would publish to which queue.

use std::collections::BTreeMap;

use dead_letters::Planned;
use serde::Serialize;

use crate::output::{Cell, Text, Tone, plural};

#[derive(Debug, Default, Serialize)]
pub(super) struct Plan {
    /// Dead letters that would be published.
    matched: u64,
    /// Those of them that the workers of this version would refuse again.
    refused: u64,
    /// Counts by queue.
    queues: BTreeMap<String, Queue>,
    dead_letters: Vec<Planned>,
}

/// What would be published to one queue.
#[derive(Debug, Default, Serialize)]
struct Queue {
    dead_letters: u64,
    edited: u64,
    bytes: u64,
    refused: u64,
}

impl Plan {
    pub(super) fn add(&mut self, dead_letter: Planned) {
        let refused = u64::from(dead_letter.refused_as.is_some());
        self.matched += 1;
        self.refused += refused;
        let queue = self.queues.entry(dead_letter.queue.clone()).or_default();
        queue.dead_letters += 1;
        queue.edited += u64::from(dead_letter.edited);
        queue.bytes += dead_letter.bytes as u64;
        queue.refused += refused;
        self.dead_letters.push(dead_letter);
    }

    pub(super) fn text(&self, out: &mut Text) {
        if self.matched == 0 {
            return out.push("nothing to replay: no open dead letter matches\n");
        }
        let queue = |(name, queue): (&String, &Queue)| {
            let tone = if queue.refused > 0 { Tone::Bad } else { Tone::Plain };
            [
                Cell::count(queue.dead_letters),
                Cell::count(queue.edited),
                Cell::count(queue.bytes),
                Cell::count(queue.refused).tone(tone),
                name.into(),
            ]
        };
        let titles = ["dead letters", "edited", "bytes", "would fail again", "queue"];
        out.table(titles, self.queues.iter().map(queue));
        let dead_letter = |planned: &Planned| {
            let validation = match (&planned.refused_as, &planned.refusal) {
                (Some(reason), Some(refusal)) => {
                    Cell::new(Tone::Bad, format!("{reason}: {refusal}"))
                }
                _ => Cell::new(Tone::Good, "valid"),
            };
            [
                planned.id.to_string().into(),
                Cell::optional(planned.message_id.as_deref()),
                Cell::from(planned.replay.to_string()).right(),
                if planned.edited { "edited" } else { "original" }.into(),
                (&planned.queue).into(),
                validation,
            ]
        };
        // Those that would fail again come first.
        let (bad, good): (Vec<_>, Vec<_>) =
            self.dead_letters.iter().partition(|planned| planned.refused_as.is_some());
        let sorted = [bad, good].concat().into_iter();
        out.push("\n");
        let titles = ["id", "message", "replay", "body", "queue", "validation"];
        out.first_rows(titles, sorted.map(dead_letter));
        let dead_letters = plural(self.matched, "dead letter");
        out.push(format!("dry run, nothing was published; {dead_letters} would be replayed"));
        out.counts(Tone::Bad, [(self.refused, "would fail again")]);
        out.push("\n");
    }
}

#[cfg(test)]
mod tests {
    use domain::failure::DeadLetterReason;
    use uuid::Uuid;

    use super::*;
    use crate::output::tests::plain;

    #[test]
    fn a_dry_run_lists_queues_dead_letters_and_expected_failures() {
        let planned = |n| Planned {
            id: Uuid::from_u128(n),
            queue: "conversation.save_message".to_owned(),
            message_id: Some(format!("m-{n}")),
            conversation_id: None,
            edited: n == 1,
            bytes: 1_000,
            replay: 1,
            refused_as: None,
            field: None,
            refusal: None,
        };
        let mut plan = Plan::default();
        (1..=30).for_each(|n| plan.add(planned(n)));
        plan.add(Planned {
            queue: "domain.unrouted".to_owned(),
            message_id: None,
            refused_as: Some(DeadLetterReason::UnknownAction),
            field: Some("action_type".to_owned()),
            refusal: Some("no action is called \"x\"".to_owned()),
            ..planned(31)
        });
        insta::assert_snapshot!(plain(|out| plan.text(out)));
    }
}
