//! The report of a replay as text.

use database::FailedAgain;
use dead_letters::{Ended, Failed, ReplayReport};

use crate::output::{Cell, ERROR, Text, Tone, count, excerpt, one_line, plural};

/// The report; `not_open` counts dead letters that were given by their ids and are not open.
pub(super) fn text(report: &ReplayReport, not_open: u64, out: &mut Text) {
    if report.matched == 0 {
        return out.line(Tone::Warn, "nothing was replayed: no open dead letter matches");
    }
    let row = |failed: &Failed| {
        let error = Cell::new(Tone::Bad, &failed.fault);
        [failed.id.to_string().into(), (&failed.queue).into(), error]
    };
    out.first_rows(["not sent", "queue", "error"], report.failures.iter().map(row));
    let row = |failed: &FailedAgain| {
        [
            failed.id.to_string().into(),
            Cell::new(Tone::Bad, &failed.reason),
            Cell::optional(failed.field.as_deref()),
            excerpt(&failed.error, ERROR).into(),
        ]
    };
    let titles = ["failed again as", "reason", "field", "error"];
    out.first_rows(titles, report.failed_again_as.iter().map(row));
    let succeeded = report.failed + report.failed_again == 0 && report.replayed == report.matched;
    let tone = if succeeded { Tone::Good } else { Tone::Warn };
    let all = plural(report.matched, "dead letter");
    out.piece(tone, format!("{} of {all} replayed", count(report.replayed)));
    let bad = [(report.failed_again, "failed again"), (report.failed, "not sent (still open)")];
    out.counts(Tone::Bad, bad);
    let others = [
        (report.decided_elsewhere, "published but decided elsewhere meanwhile"),
        (report.no_longer_held, "not sent (no longer held)"),
        (report.skipped, "skipped"),
        (not_open, "not open"),
    ];
    out.counts(Tone::Plain, others);
    out.push("\n");
    hints(report, out);
}

fn hints(report: &ReplayReport, out: &mut Text) {
    let open = format!("{} still open", count(report.matched.saturating_sub(report.replayed)));
    let ended = match &report.ended {
        Ended::Complete => None,
        Ended::Interrupted => Some(format!("stopped by a signal; {open}")),
        Ended::FailedAgain => Some(format!(
            "stopped because the last dead letters failed again: the cause persists; {open}"
        )),
        Ended::NothingAccepted => Some(format!(
            "stopped because no queue accepted the last batch; {open}. `verbatim queues` shows \
             what is missing, `verbatim setup` creates it"
        )),
        Ended::Unavailable { dependency, cause } => Some(format!(
            "{dependency} unavailable: {}. {open}; replaying again is safe",
            one_line(cause)
        )),
    };
    if let Some(ended) = ended {
        out.line(Tone::Dim, ended);
    }
    if let Some(first) = report.no_longer_held_ids.first() {
        let text = format!(
            "no longer held: this process was stopped for longer than its lease, so they may have been \
             discarded, edited or replayed meanwhile; the first: `verbatim dead-letters show {first}`"
        );
        out.line(Tone::Dim, text);
    }
    if report.skipped_open > 0 {
        let text = format!(
            "{} skipped because another run holds them; if that run has ended, replay them in a minute",
            count(report.skipped_open)
        );
        out.line(Tone::Dim, text);
    }
    let decided = report.skipped.saturating_sub(report.skipped_open);
    if decided > 0 {
        let text = format!(
            "{} skipped because they were discarded or replayed while this run was under way",
            count(decided)
        );
        out.line(Tone::Dim, text);
    }
    if let Some(first) = report.failed_again_as.first() {
        let id = first.id;
        out.line(
            Tone::Dim,
            format!("the first that failed again: `verbatim dead-letters show {id}`"),
        );
    }
}

#[cfg(test)]
mod tests {
    use domain::failure::Dependency;
    use uuid::Uuid;

    use super::*;
    use crate::output::tests::plain;

    fn report(ended: Ended) -> ReplayReport {
        ReplayReport {
            run: Uuid::from_u128(1),
            matched: 10_000,
            replayed: 10_000,
            failed: 0,
            failed_again: 0,
            decided_elsewhere: 0,
            no_longer_held: 0,
            of_another_tenant: 0,
            skipped: 0,
            skipped_open: 0,
            ended,
            failures: Vec::new(),
            failed_again_as: Vec::new(),
            no_longer_held_ids: Vec::new(),
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
            replayed: 9_995,
            failed: 1,
            failed_again: 1,
            no_longer_held: 1,
            skipped: 3,
            skipped_open: 1,
            no_longer_held_ids: vec![Uuid::from_u128(10)],
            failures: vec![failed],
            failed_again_as: vec![failed_again],
            ..report(Ended::Complete)
        };
        insta::assert_snapshot!(plain(|out| text(&mixed, 0, out)));
        assert_eq!(
            plain(|out| text(&report(Ended::Complete), 0, out)),
            "10 000 of 10 000 dead letters replayed\n"
        );
    }

    #[test]
    fn a_run_that_ended_early_says_why_and_how_many_are_open() {
        let unavailable = Ended::Unavailable {
            dependency: Dependency::RabbitMq,
            cause: "cannot publish: \u{1b}refused".to_owned(),
        };
        let early = |report: &ReplayReport| plain(|out| text(report, 2, out));
        let texts: Vec<String> =
            [Ended::Interrupted, Ended::FailedAgain, Ended::NothingAccepted, unavailable]
                .map(|ended| early(&ReplayReport { replayed: 12, ..report(ended) }))
                .into();
        insta::assert_snapshot!(texts.join("\n"));
    }
}
