//! `verbatim audit verify`: whether an entry of the audit log was changed, removed or moved.

use clap::Args;
use database::AuditReport;
use service::settings::DatabaseSettings;
use stores::DatabaseServer;

use crate::exit::{Exit, Failure};
use crate::output::{Output, Text, Tone, count, plural, spinner};

/// Checks that no entry of the audit log was changed, removed or moved
///
/// Recomputes the hash of every entry, and compares the ends of the chains with the checkpoints. A
/// dead-letter-worker makes a checkpoint every minute, and logs its number and hash.
#[derive(Debug, Args)]
#[command(override_usage = "verbatim audit verify [OPTIONS]")]
#[command(after_help = "\
Examples:
  verbatim audit verify
  verbatim audit verify --checkpoint 1204:9f0c… --checkpoint 88:41ab…
  verbatim audit verify --json | jq -r .last_checkpoint

Whoever owns the tables can compute all hashes again. So keep a checkpoint elsewhere, such as in
the logs of the workers or in the output of this command, and give it with --checkpoint later.

Exit codes: 0 nothing was found; 1 something was found; 3 PostgreSQL is unreachable.")]
pub(crate) struct AuditVerify {
    /// A checkpoint that was kept outside of the database: it must be there unchanged. May be repeated
    #[arg(long, value_name = "NUMBER:HASH", value_parser = checkpoint)]
    checkpoint: Vec<(i64, String)>,

    #[command(flatten)]
    database: DatabaseSettings,
}

impl AuditVerify {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let server = DatabaseServer::open(&self.database).await?;
        let progress = spinner("{spinner} audit log: {msg}");
        let checked = |entries: u64| {
            progress.set_message(format!("{} entries", count(entries)));
            progress.tick();
        };
        let report = server.database.verify_audit(&self.checkpoint, checked).await;
        progress.finish_and_clear();
        let report = report.map_err(|error| server.failure(&error))?;
        output.show(&report, |out| text(&report, out))?;
        Ok(if report.found == 0 { Exit::Success } else { Exit::Problems })
    }
}

fn checkpoint(text: &str) -> Result<(i64, String), String> {
    let parsed = text.split_once(':').and_then(|(n, hash)| {
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some((n.parse().ok().filter(|n| *n > 0)?, is_hash.then(|| hash.to_owned())?))
    });
    parsed.ok_or_else(|| {
        "it must be a number, a colon and 64 hexadecimal digits, as the log and this command print it".to_owned()
    })
}

fn text(report: &AuditReport, out: &mut Text) {
    let AuditReport { entries, chains, checkpoints, found, .. } = report;
    out.push(format!(
        "checked {}, {}, {}\n",
        entries_of(*entries),
        plural(*chains, "chain"),
        plural(*checkpoints, "checkpoint")
    ));
    for finding in &report.findings {
        out.line(Tone::Bad, finding.to_string());
    }
    let listed = report.findings.len() as u64;
    if *found > listed {
        out.line(Tone::Bad, format!("and {} more", count(found - listed)));
    }
    match found {
        0 => out.line(Tone::Good, "nothing was changed, removed or moved"),
        _ => out.line(
            Tone::Bad,
            format!("{}: compare with a backup of audit_log", plural(*found, "finding")),
        ),
    }
    if let Some(last) = &report.last_checkpoint {
        out.line(Tone::Dim, format!("keep elsewhere: --checkpoint {last}"));
    }
}

fn entries_of(entries: u64) -> String {
    match entries {
        1 => "1 entry".to_owned(),
        entries => format!("{} entries", count(entries)),
    }
}

#[cfg(test)]
mod tests {
    use database::AuditFinding;
    use uuid::Uuid;

    use super::*;
    use crate::output::tests::plain;

    #[test]
    fn a_report_says_what_was_checked_and_what_was_found() {
        let good = AuditReport {
            entries: 12_345,
            chains: 1,
            checkpoints: 3,
            last_checkpoint: Some(format!("3:{}", "ab".repeat(32))),
            ..AuditReport::default()
        };
        let chain = Uuid::nil();
        let bad = AuditReport {
            found: 120,
            findings: vec![
                AuditFinding::EntryChanged { chain, n: 2, id: 7 },
                AuditFinding::EntriesRemoved { chain, from: 3, to: 5 },
                AuditFinding::NotTheCheckpoint { n: 2 },
            ],
            last_checkpoint: None,
            ..good.clone()
        };
        insta::assert_snapshot!(plain(|out| {
            text(&good, out);
            text(&bad, out);
        }));
    }

    #[test]
    fn a_checkpoint_is_a_number_and_a_hash() {
        let hash = "Ab".repeat(32);
        assert_eq!(checkpoint(&format!("7:{hash}")), Ok((7, hash.clone())));
        for other in ["7", "7:ab", &format!("0:{hash}"), &format!("x:{hash}"), &hash] {
            assert!(checkpoint(other).is_err(), "{other}");
        }
    }
}
