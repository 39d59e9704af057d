//! The dry run of a replay: what it would publish to which queue.

use std::collections::BTreeMap;

use dead_letters::Planned;
use serde::Serialize;

use crate::output::{Cell, Side, Table, TextStyle, Tone, count, plural};

/// Dead letters that text lists; JSON lists all.
const LISTED: usize = 20;

/// The result of a dry run.
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

    pub(super) fn text(&self, style: &TextStyle) -> String {
        let paint = style.paint;
        if self.matched == 0 {
            return "nothing to replay: no open dead letter matches\n".to_owned();
        }
        let mut queues = Table::new([
            ("dead letters", Side::Right),
            ("edited", Side::Right),
            ("bytes", Side::Right),
            ("would fail again", Side::Right),
            ("queue", Side::Left),
        ]);
        for (name, queue) in &self.queues {
            let tone = if queue.refused > 0 { Tone::Bad } else { Tone::Plain };
            queues.row([
                count(queue.dead_letters).into(),
                count(queue.edited).into(),
                count(queue.bytes).into(),
                Cell::new(tone, count(queue.refused)),
                name.into(),
            ]);
        }
        let mut out = queues.render(paint);
        let mut dead_letters = Table::new([
            ("id", Side::Left),
            ("message", Side::Left),
            ("replay", Side::Right),
            ("body", Side::Left),
            ("queue", Side::Left),
            ("validation", Side::Left),
        ]);
        // Those that would fail again come first.
        let (bad, good): (Vec<_>, Vec<_>) =
            self.dead_letters.iter().partition(|dead_letter| dead_letter.refused_as.is_some());
        for dead_letter in bad.iter().chain(&good).take(LISTED) {
            let validation = match (&dead_letter.refused_as, &dead_letter.refusal) {
                (Some(reason), Some(refusal)) => {
                    Cell::new(Tone::Bad, format!("{reason}: {refusal}"))
                }
                _ => Cell::new(Tone::Good, "valid"),
            };
            dead_letters.row([
                dead_letter.id.to_string().into(),
                Cell::optional(dead_letter.message_id.as_deref()),
                dead_letter.replay.to_string().into(),
                if dead_letter.edited { "edited" } else { "original" }.into(),
                (&dead_letter.queue).into(),
                validation,
            ]);
        }
        out.push_str(&format!("\n{}", dead_letters.render(paint)));
        if let Some(more) = self.dead_letters.len().checked_sub(LISTED).filter(|more| *more > 0) {
            out.push_str(&format!("… and {} more; --json lists all\n", count(more as i128)));
        }
        let dead_letters = plural(self.matched, "dead letter");
        out.push_str(&format!(
            "\ndry run, nothing was published; {dead_letters} would be replayed"
        ));
        if self.refused > 0 {
            let refused = format!(", {} would fail again", count(self.refused));
            out.push_str(&paint.text(Tone::Bad, &refused));
        }
        out.push('\n');
        out
    }
}

#[cfg(test)]
mod tests {
    use domain::failure::DeadLetterReason;
    use uuid::Uuid;

    use super::*;
    use crate::commands::dead_letters_list::tests::style;

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
        insta::assert_snapshot!(plan.text(&style()));
    }
}
