//! What a replay did, in words.

use conversation::dead_letters::{Ended, ReplayReport};

use crate::output::{Cell, Side, Table, TextStyle, Tone, count, excerpt, one_line, plural};

/// Dead letters that a text names; JSON names more.
const NAMED: usize = 20;
/// What is shown of an error.
const ERROR: usize = 120;

/// The report; `others` are dead letters that were named and are not open.
pub(super) fn text(report: &ReplayReport, others: u64, style: &TextStyle) -> String {
    let paint = style.paint;
    if report.matched == 0 {
        return format!(
            "{}\n",
            paint.text(Tone::Warn, "nothing was sent: no open dead letter matches")
        );
    }
    let mut out = String::new();
    if !report.failures.is_empty() {
        let mut table =
            Table::new([("not sent", Side::Left), ("queue", Side::Left), ("why", Side::Left)]);
        for failed in report.failures.iter().take(NAMED) {
            let why = Cell::new(Tone::Bad, &failed.fault);
            table.row([failed.id.to_string().into(), (&failed.queue).into(), why]);
        }
        out.push_str(&format!("{}\n", table.render(paint)));
    }
    if !report.failed_again_as.is_empty() {
        let mut table = Table::new([
            ("came back as", Side::Left),
            ("reason", Side::Left),
            ("field", Side::Left),
            ("what was wrong", Side::Left),
        ]);
        for dead_letter in report.failed_again_as.iter().take(NAMED) {
            table.row([
                dead_letter.id.to_string().into(),
                Cell::new(Tone::Bad, &dead_letter.reason),
                Cell::optional(dead_letter.field.as_deref()),
                excerpt(&dead_letter.error, ERROR).into(),
            ]);
        }
        out.push_str(&format!("{}\n", table.render(paint)));
    }
    let well = report.failed + report.failed_again == 0 && report.replayed == report.matched;
    let tone = if well { Tone::Good } else { Tone::Warn };
    let replayed =
        format!("{} of {} replayed", count(report.replayed), plural(report.matched, "dead letter"));
    out.push_str(&paint.text(tone, &replayed));
    for (n, what) in [(report.failed_again, "came back"), (report.failed, "not sent and open")] {
        if n > 0 {
            out.push_str(&paint.text(Tone::Bad, &format!(", {} {what}", count(n))));
        }
    }
    for (n, what) in [
        (report.decided_elsewhere, "sent too late to be noted: somebody else had them"),
        (report.skipped, "passed over"),
        (others, "named that are not open"),
    ] {
        if n > 0 {
            out.push_str(&format!(", {} {what}", count(n)));
        }
    }
    out.push('\n');
    for hint in hints(report) {
        out.push_str(&paint.text(Tone::Dim, &hint));
        out.push('\n');
    }
    out
}

fn hints(report: &ReplayReport) -> Vec<String> {
    let left = report.matched.saturating_sub(report.replayed);
    let mut hints = Vec::new();
    match &report.ended {
        Ended::Complete => {}
        Ended::Interrupted => hints.push(format!(
            "stopped as you asked; {} of them {} open",
            count(left),
            if left == 1 { "is" } else { "are" }
        )),
        Ended::FailedAgain => hints.push(format!(
            "stopped, because what was sent last came back: the cause is still there; {} left open",
            count(left)
        )),
        Ended::NothingAccepted => hints.push(format!(
            "stopped, because nothing of a batch could be sent; {} left open. `verbatim queues` shows \
             what is missing, `verbatim setup` makes it",
            count(left)
        )),
        Ended::Unavailable { dependency, cause } => hints.push(format!(
            "{dependency} is unavailable: {}. What was not noted is open; replaying it again is safe",
            one_line(cause)
        )),
    }
    if report.skipped > 0 {
        hints.push(
            "another run has them just now, or it died: then they can be replayed a minute after"
                .to_owned(),
        );
    }
    if let Some(first) = report.failed_again_as.first() {
        hints.push(format!(
            "`verbatim dead-letters show {}` tells about the first that came back",
            first.id
        ));
    }
    hints
}

#[cfg(test)]
mod tests {
    use conversation::dead_letters::Failed;
    use database::FailedAgain;
    use domain::failure::Dependency;
    use uuid::Uuid;

    use super::*;
    use crate::commands::dead_letters_list::tests::style;

    fn report(ended: Ended) -> ReplayReport {
        ReplayReport {
            run: Uuid::from_u128(1),
            matched: 10_000,
            replayed: 10_000,
            failed: 0,
            failed_again: 0,
            decided_elsewhere: 0,
            skipped: 0,
            ended,
            failures: Vec::new(),
            failed_again_as: Vec::new(),
        }
    }

    #[test]
    fn a_report_says_what_was_sent_what_came_back_and_what_was_not_sent() {
        let returned = FailedAgain {
            id: Uuid::from_u128(7),
            replay_of: Uuid::from_u128(8),
            reason: "schema".to_owned(),
            field: Some("role".to_owned()),
            error: "`role` must be a role".to_owned(),
        };
        let failed = Failed {
            id: Uuid::from_u128(9),
            queue: "bot.state".to_owned(),
            fault: "no queue takes routing key `bot.state` of exchange ``".to_owned(),
        };
        let mixed = ReplayReport {
            replayed: 9_998,
            failed: 1,
            failed_again: 1,
            skipped: 1,
            failures: vec![failed],
            failed_again_as: vec![returned],
            ..report(Ended::Complete)
        };
        insta::assert_snapshot!(text(&mixed, 0, &style()));
        assert_eq!(
            text(&report(Ended::Complete), 0, &style()),
            "10 000 of 10 000 dead letters replayed\n"
        );
    }

    #[test]
    fn a_run_that_ended_early_says_why_and_what_is_left() {
        let away = Ended::Unavailable {
            dependency: Dependency::RabbitMq,
            cause: "cannot publish: \u{1b}refused".to_owned(),
        };
        let told: Vec<String> =
            [Ended::Interrupted, Ended::FailedAgain, Ended::NothingAccepted, away]
                .map(|ended| text(&ReplayReport { replayed: 12, ..report(ended) }, 2, &style()))
                .into();
        insta::assert_snapshot!(told.join("\n"));
    }
}
