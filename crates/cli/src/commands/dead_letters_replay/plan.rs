//! What a replay would send where.

use std::collections::BTreeMap;

use conversation::dead_letters::Planned;
use serde::Serialize;

use crate::output::{Cell, Side, Table, TextStyle, Tone, count, plural};

/// Dead letters that a text names one by one; JSON has all.
const NAMED: usize = 20;

/// A dry run.
#[derive(Debug, Default, Serialize)]
pub(super) struct Plan {
    /// Dead letters that would be sent.
    matched: u64,
    /// Those of them that the workers of this version would refuse again.
    refused: u64,
    /// By the queue to which they would go.
    queues: BTreeMap<String, Queue>,
    dead_letters: Vec<Planned>,
}

/// What one queue would get.
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
            return "nothing would be sent: no open dead letter matches\n".to_owned();
        }
        let mut queues = Table::new([
            ("dead letters", Side::Right),
            ("edited", Side::Right),
            ("bytes", Side::Right),
            ("refused again", Side::Right),
            ("to the queue", Side::Left),
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
            ("to the queue", Side::Left),
            ("what the workers would say", Side::Left),
        ]);
        // What would fail is what one wants to see.
        let (bad, good): (Vec<_>, Vec<_>) =
            self.dead_letters.iter().partition(|dead_letter| dead_letter.refused_as.is_some());
        for dead_letter in bad.iter().chain(&good).take(NAMED) {
            let verdict = match (&dead_letter.refused_as, &dead_letter.refusal) {
                (Some(reason), Some(refusal)) => {
                    Cell::new(Tone::Bad, format!("{reason}: {refusal}"))
                }
                _ => Cell::new(Tone::Good, "fine"),
            };
            dead_letters.row([
                dead_letter.id.to_string().into(),
                Cell::optional(dead_letter.message_id.as_deref()),
                dead_letter.replay.to_string().into(),
                if dead_letter.edited { "edited" } else { "as it came" }.into(),
                (&dead_letter.queue).into(),
                verdict,
            ]);
        }
        out.push_str(&format!("\n{}", dead_letters.render(paint)));
        if let Some(more) = self.dead_letters.len().checked_sub(NAMED).filter(|more| *more > 0) {
            out.push_str(&format!("… and {} more; --json tells all\n", count(more as i128)));
        }
        let dead_letters = plural(self.matched, "dead letter");
        out.push_str(&format!("\nnothing was sent; {dead_letters} would be"));
        if self.refused > 0 {
            let refused = format!(", and {} would come back at once", count(self.refused));
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
    fn a_dry_run_says_what_would_go_where_and_what_would_come_back() {
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
