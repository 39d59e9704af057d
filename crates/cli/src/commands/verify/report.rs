//! The report of `verbatim verify`, as JSON and as text.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use inspect::{Finding, Incomplete, RepairOutcome, Section, Verified};
use serde::Serialize;

use crate::exit::Exit;
use crate::output::{LISTED, Text, Tone, count, one_line, plural};

/// Findings of one kind that JSON lists (some megabytes in all); conversations likewise.
const LISTED_IN_JSON: u64 = 1_000;

/// All findings, with counts.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// `ok`, `repaired`, `found` or `incomplete`.
    result: &'static str,
    pub(super) sections: Vec<Verified>,
    /// The number of findings of each kind, with advice.
    kinds: BTreeMap<&'static str, KindSummary>,
    /// Conversations with findings, those with the most first.
    conversations: Vec<ConversationSummary>,
    findings: Vec<Finding>,
    /// Findings that are counted but not listed.
    omitted: u64,
    #[serde(skip)]
    by_conversation: BTreeMap<(String, String), ConversationSummary>,
}

#[derive(Debug, Default, Serialize)]
struct KindSummary {
    found: u64,
    repaired: u64,
    advice: &'static str,
    #[serde(skip)]
    repairable: bool,
}

/// The number of findings in one conversation.
#[derive(Debug, Default, Serialize)]
struct ConversationSummary {
    tenant_id: String,
    conversation_id: String,
    found: u64,
    repaired: u64,
    /// The number of findings of each kind.
    kinds: BTreeMap<&'static str, u64>,
}

impl Report {
    /// Counts a finding and stores it for JSON; returns whether text lists it.
    pub(super) fn add(&mut self, finding: &Finding) -> bool {
        self.add_to_conversation(finding);
        let kind = self.kinds.entry(finding.kind.as_str()).or_default();
        kind.advice = finding.kind.advice();
        kind.found += 1;
        kind.repaired += u64::from(finding.repair_outcome == RepairOutcome::Done);
        kind.repairable |= finding.repair_outcome == RepairOutcome::NotRequested;
        if kind.found <= LISTED_IN_JSON {
            self.findings.push(finding.clone());
        } else {
            self.omitted += 1;
        }
        kind.found <= LISTED as u64
    }

    fn add_to_conversation(&mut self, finding: &Finding) {
        let (Some(tenant), Some(conversation)) = (&finding.tenant_id, &finding.conversation_id)
        else {
            return;
        };
        let key = (tenant.clone(), conversation.clone());
        if self.by_conversation.len() as u64 >= LISTED_IN_JSON
            && !self.by_conversation.contains_key(&key)
        {
            return;
        }
        let of = self.by_conversation.entry(key).or_insert_with(|| ConversationSummary {
            tenant_id: tenant.clone(),
            conversation_id: conversation.clone(),
            ..ConversationSummary::default()
        });
        of.found += 1;
        of.repaired += u64::from(finding.repair_outcome == RepairOutcome::Done);
        *of.kinds.entry(finding.kind.as_str()).or_default() += 1;
    }

    /// Sets the result and sorts the conversations. A server that was unavailable makes the result
    /// `incomplete`, even if all findings elsewhere are repaired.
    pub(super) fn close(&mut self) {
        self.conversations = std::mem::take(&mut self.by_conversation).into_values().collect();
        self.conversations.sort_by_key(|of| Reverse(of.found));
        let incomplete = !self.unavailable().is_empty();
        self.result = match (self.unrepaired() > 0, incomplete, self.kinds.is_empty()) {
            (true, ..) => "found",
            (false, true, _) => "incomplete",
            (false, false, false) => "repaired",
            (false, false, true) => "ok",
        };
    }

    pub(super) fn exit(&self) -> Exit {
        match self.result {
            "found" => Exit::Problems,
            "incomplete" => Exit::Unavailable,
            _ => Exit::Success,
        }
    }

    /// Findings that are not repaired, in all sections.
    fn unrepaired(&self) -> u64 {
        self.sections.iter().map(|section| section.unrepaired).sum()
    }

    /// The servers that were unavailable, each once.
    fn unavailable(&self) -> Vec<String> {
        let mut servers = Vec::new();
        for section in &self.sections {
            if let Some(Incomplete::Unavailable { dependency, .. }) = &section.incomplete {
                let name = dependency.to_string();
                if !servers.contains(&name) {
                    servers.push(name);
                }
            }
        }
        servers
    }
}

/// The heading of a section.
pub(super) fn title(section: Section) -> &'static str {
    match section {
        Section::HotCopies => "hot copies against rows",
        Section::Conversations => "conversations against their messages",
        Section::Days => "daily statistics against their conversations",
        Section::Words => "words of archived conversations against their messages",
        Section::Integrity => "orphaned rows",
        Section::Queues => "queues",
    }
}

pub(super) fn begins(section: Section, out: &mut Text) {
    let servers: Vec<_> = section.stores().iter().map(ToString::to_string).collect();
    out.piece(Tone::Strong, title(section));
    out.push(" ");
    out.line(Tone::Dim, format!("({})", servers.join(", ")));
}

pub(super) fn found(finding: &Finding, out: &mut Text) {
    let Finding { kind, tenant_id, conversation_id, id, detail, repair_outcome } = finding;
    let place = [tenant_id, conversation_id, id].into_iter().flatten();
    let place = place.map(|it| one_line(it)).collect::<Vec<_>>().join(" ");
    let (tone, end) = match repair_outcome {
        RepairOutcome::Done => (Tone::Warn, "; repaired".to_owned()),
        RepairOutcome::Failed(cause) => (Tone::Bad, format!("; not repaired: {}", one_line(cause))),
        RepairOutcome::NotRequested | RepairOutcome::NotRepairable => (Tone::Bad, String::new()),
    };
    let kind = out.paint(tone, kind.as_str());
    out.push(format!("  {kind} {place}: {}{end}\n", one_line(detail)));
}

pub(super) fn ends(verified: &Verified, out: &mut Text) {
    let Verified { checked, found, unrepaired, incomplete, .. } = verified;
    let checked = count(i128::from(*checked));
    let findings = plural(i128::from(*found), "finding");
    let (tone, result) = match (found, unrepaired) {
        (0, _) => (Tone::Good, "no findings".to_owned()),
        (_, 0) => (Tone::Warn, format!("{findings}, repaired")),
        (_, n) => (Tone::Bad, format!("{findings}, {} unrepaired", count(i128::from(*n)))),
    };
    out.line(tone, format!("  {checked} checked, {result}"));
    let (tone, what, cause) = match incomplete {
        None => return,
        Some(Incomplete::Unavailable { dependency, cause }) => {
            (Tone::Bad, format!("incomplete, {dependency} unreachable"), cause)
        }
        Some(Incomplete::Skipped { cause }) => (Tone::Dim, "partly skipped".to_owned(), cause),
    };
    out.push("  ");
    out.line(tone, format!("{what}: {}", one_line(cause)));
}

/// The result, the number of findings of each kind, and what to do about them.
pub(super) fn summary(report: &Report, out: &mut Text) {
    let (tone, mut result) = match report.result {
        "ok" => (Tone::Good, "no findings".to_owned()),
        "repaired" => {
            (Tone::Warn, "all findings are repaired; verify again in a minute".to_owned())
        }
        "incomplete" => (Tone::Bad, "no unrepaired findings".to_owned()),
        _ => (Tone::Bad, plural(report.unrepaired(), "unrepaired finding")),
    };
    let unavailable = report.unavailable();
    if !unavailable.is_empty() {
        result.push_str(&format!(", but incomplete: {} unreachable", unavailable.join(", ")));
    }
    out.push("\n");
    out.line(tone, result);
    for (kind, it) in &report.kinds {
        out.push(format!("  {kind} ({}", count(it.found)));
        out.counts(Tone::Plain, [(it.repaired, "repaired")]);
        out.push(")");
        if it.repaired < it.found {
            out.piece(Tone::Dim, format!(": {}", it.advice));
        }
        out.push("\n");
    }
    // A single conversation adds nothing to the findings by kind.
    if report.conversations.len() > 1 {
        by_conversation(&report.conversations, out);
    }
    let kinds = report.kinds.values().map(|it| it.found);
    if kinds.chain([report.conversations.len() as u64]).any(|it| it > LISTED as u64) {
        let hint = format!(
            "the first {LISTED} findings of each kind and the first {LISTED} conversations are listed; \
             --json lists up to {LISTED_IN_JSON}"
        );
        out.line(Tone::Dim, hint);
    }
    if report.kinds.values().any(|it| it.repairable) {
        out.line(Tone::Dim, "`verbatim verify --repair` repairs the repairable findings");
    }
}

fn by_conversation(conversations: &[ConversationSummary], out: &mut Text) {
    out.push(format!("in {}\n", plural(conversations.len() as i128, "conversation")));
    for of in conversations.iter().take(LISTED) {
        let kinds = of.kinds.iter().map(|(kind, found)| match found {
            1 => (*kind).to_owned(),
            found => format!("{kind} ({})", count(*found)),
        });
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        out.push(format!("  {} {}: ", one_line(&of.tenant_id), one_line(&of.conversation_id)));
        out.line(Tone::Dim, kinds);
    }
}

#[cfg(test)]
mod tests {
    use domain::failure::Dependency;
    use inspect::Kind;

    use super::*;
    use crate::output::tests::plain;

    fn finding(kind: Kind, repair_outcome: RepairOutcome) -> Finding {
        Finding {
            kind,
            tenant_id: Some("acme".to_owned()),
            conversation_id: Some("c-1".to_owned()),
            id: (kind == Kind::HotCopyMissing).then(|| "m-3".to_owned()),
            detail: "what differs".to_owned(),
            repair_outcome,
        }
    }

    fn ended(section: Section, found: u64, unrepaired: u64) -> Verified {
        Verified { section, checked: 12_345, found, unrepaired, incomplete: None }
    }

    fn rendered(findings: &[Finding], sections: Vec<Verified>) -> String {
        let mut report = Report { sections, ..Report::default() };
        let mut text = String::new();
        for it in findings {
            if report.add(it) {
                text += &plain(|out| found(it, out));
            }
        }
        for section in &report.sections {
            let begins = plain(|out| begins(section.section, out));
            text = begins + &text + &plain(|out| ends(section, out));
        }
        report.close();
        text + &plain(|out| summary(&report, out))
    }

    #[test]
    fn a_run_without_findings_says_so() {
        insta::assert_snapshot!(rendered(&[], vec![ended(Section::Queues, 0, 0)]));
    }

    #[test]
    fn findings_are_listed_with_advice() {
        let findings = [
            finding(Kind::HotCopyMissing, RepairOutcome::NotRequested),
            finding(
                Kind::HotCopyDamaged,
                RepairOutcome::Failed("PostgreSQL is unavailable".to_owned()),
            ),
            finding(Kind::TotalsDiffer, RepairOutcome::Done),
            finding(Kind::MessagesGone, RepairOutcome::NotRepairable),
        ];
        insta::assert_snapshot!(rendered(&findings, vec![ended(Section::HotCopies, 4, 3)]));
    }

    #[test]
    fn several_conversations_are_listed_each_with_its_findings() {
        let of = |conversation: &str, kind| Finding {
            conversation_id: Some(conversation.to_owned()),
            ..finding(kind, RepairOutcome::NotRequested)
        };
        let findings = [
            of("c-1", Kind::TotalsDiffer),
            of("c-2", Kind::HotCopyMissing),
            of("c-2", Kind::TotalsDiffer),
            of("c-2", Kind::HotCopyMissing),
        ];
        let text = rendered(&findings, vec![ended(Section::Conversations, 4, 4)]);
        let (_, conversations) = text.split_once("in 2 conversations\n").unwrap();
        let mut lines = conversations.lines();
        let second = "  acme c-2: hot_copy_missing (2), totals_differ";
        assert_eq!((lines.next(), lines.next()), (Some(second), Some("  acme c-1: totals_differ")));
    }

    #[test]
    fn repaired_findings_and_an_unreachable_server_are_named() {
        let repaired = [finding(Kind::StatisticsDiffer, RepairOutcome::Done)];
        insta::assert_snapshot!(rendered(&repaired, vec![ended(Section::Conversations, 1, 0)]));
        let incomplete = Some(Incomplete::Unavailable {
            dependency: Dependency::Redis,
            cause: "refused".to_owned(),
        });
        let without_redis = Verified { incomplete, ..ended(Section::HotCopies, 0, 0) };
        insta::assert_snapshot!(rendered(&[], vec![without_redis.clone()]));
        let all = rendered(&repaired, vec![ended(Section::Conversations, 1, 0), without_redis]);
        let result = "no unrepaired findings, but incomplete: Redis unreachable";
        assert!(all.contains(result), "{all}");
    }

    #[test]
    fn its_json_counts_findings_by_kind_and_by_conversation() {
        let sections = vec![ended(Section::HotCopies, 2, 1)];
        let mut report = Report { sections, ..Report::default() };
        report.add(&finding(Kind::HotCopyMissing, RepairOutcome::NotRequested));
        report.add(&finding(Kind::TotalsDiffer, RepairOutcome::Done));
        report.close();
        insta::assert_snapshot!(serde_json::to_string_pretty(&report).unwrap());
    }

    #[test]
    fn many_findings_of_one_kind_are_counted_and_some_listed() {
        let mut report = Report::default();
        let one = finding(Kind::CloseOverdue, RepairOutcome::NotRepairable);
        let listed = (0..LISTED_IN_JSON + 5).filter(|_| report.add(&one)).count();
        assert_eq!(listed, LISTED);
        assert_eq!((report.findings.len() as u64, report.omitted), (LISTED_IN_JSON, 5));
    }
}
