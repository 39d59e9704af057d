//! The report of a replay as text.

use dead_letters::{Ended, ReplayReport};

use crate::output::{Cell, Side, Table, TextStyle, Tone, count, excerpt, one_line, plural};

/// Dead letters that each table lists; JSON lists more.
const LISTED: usize = 20;
/// Characters of an error that are shown.
const ERROR: usize = 120;

/// The report; `not_open` counts dead letters that were given by their ids and are not open.
pub(super) fn text(report: &ReplayReport, not_open: u64, style: &TextStyle) -> String {
    let paint = style.paint;
    if report.matched == 0 {
        return format!(
            "{}\n",
            paint.text(Tone::Warn, "nothing was replayed: no open dead letter matches")
        );
    }
    let mut out = String::new();
    if !report.failures.is_empty() {
        let mut table =
            Table::new([("not sent", Side::Left), ("queue", Side::Left), ("error", Side::Left)]);
        for failed in report.failures.iter().take(LISTED) {
            let error = Cell::new(Tone::Bad, &failed.fault);
            table.row([failed.id.to_string().into(), (&failed.queue).into(), error]);
        }
        out.push_str(&format!("{}\n", table.render(paint)));
    }
    if !report.failed_again_as.is_empty() {
        let mut table = Table::new([
            ("failed again as", Side::Left),
            ("reason", Side::Left),
            ("field", Side::Left),
            ("error", Side::Left),
        ]);
        for dead_letter in report.failed_again_as.iter().take(LISTED) {
            table.row([
                dead_letter.id.to_string().into(),
                Cell::new(Tone::Bad, &dead_letter.reason),
                Cell::optional(dead_letter.field.as_deref()),
                excerpt(&dead_letter.error, ERROR).into(),
            ]);
        }
        out.push_str(&format!("{}\n", table.render(paint)));
    }
    let succeeded = report.failed + report.failed_again == 0 && report.replayed == report.matched;
    let tone = if succeeded { Tone::Good } else { Tone::Warn };
    let replayed =
        format!("{} of {} replayed", count(report.replayed), plural(report.matched, "dead letter"));
    out.push_str(&paint.text(tone, &replayed));
    for (n, what) in
        [(report.failed_again, "failed again"), (report.failed, "not sent (still open)")]
    {
        if n > 0 {
            out.push_str(&paint.text(Tone::Bad, &format!(", {} {what}", count(n))));
        }
    }
    for (n, what) in [
        (report.decided_elsewhere, "published but decided elsewhere meanwhile"),
        (report.skipped, "skipped"),
        (not_open, "not open"),
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
    let still_open = report.matched.saturating_sub(report.replayed);
    let mut hints = Vec::new();
    match &report.ended {
        Ended::Complete => {}
        Ended::Interrupted => hints.push(format!(
            "stopped by a signal; {} still open",
            count(still_open)
        )),
        Ended::FailedAgain => hints.push(format!(
            "stopped because the last dead letters failed again: the cause persists; {} still open",
            count(still_open)
        )),
        Ended::NothingAccepted => hints.push(format!(
            "stopped because no queue accepted the last batch; {} still open. `verbatim queues` shows \
             what is missing, `verbatim setup` creates it",
            count(still_open)
        )),
        Ended::Unavailable { dependency, cause } => hints.push(format!(
            "{} unavailable: {}. {} still open; replaying again is safe",
            dependency,
            one_line(cause),
            count(still_open)
        )),
    }
    if report.skipped > 0 {
        hints.push(
            "skipped dead letters are claimed by another run; if that run has ended, replay them in a minute"
                .to_owned(),
        );
    }
    if let Some(first) = report.failed_again_as.first() {
        hints.push(format!(
            "the first that failed again: `verbatim dead-letters show {}`",
            first.id
        ));
    }
    hints
}

#[cfg(test)]
mod tests {
    use database::FailedAgain;
    use dead_letters::Failed;
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
    fn a_report_lists_dead_letters_that_failed_again_or_were_not_sent() {
        let failed_again = FailedAgain {
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
            failed_again_as: vec![failed_again],
            ..report(Ended::Complete)
        };
        insta::assert_snapshot!(text(&mixed, 0, &style()));
        assert_eq!(
            text(&report(Ended::Complete), 0, &style()),
            "10 000 of 10 000 dead letters replayed\n"
        );
    }

    #[test]
    fn a_run_that_ended_early_says_why_and_how_many_are_open() {
        let unavailable = Ended::Unavailable {
            dependency: Dependency::RabbitMq,
            cause: "cannot publish: \u{1b}refused".to_owned(),
        };
        let texts: Vec<String> =
            [Ended::Interrupted, Ended::FailedAgain, Ended::NothingAccepted, unavailable]
                .map(|ended| text(&ReplayReport { replayed: 12, ..report(ended) }, 2, &style()))
                .into();
        insta::assert_snapshot!(texts.join("\n"));
    }
}
