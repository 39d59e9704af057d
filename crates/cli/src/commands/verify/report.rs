//! What verifying found, for people and for machines.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use conversation::{Finding, Incomplete, RepairOutcome, Section, Verified};
use domain::failure::Dependency;
use serde::Serialize;

use crate::exit::Exit;
use crate::output::{TextStyle, Tone, count, one_line, plural};

/// Findings of one kind that a text tells one by one; and conversations.
const TOLD: u64 = 20;
/// Findings of one kind that JSON has: some megabytes in all; and conversations.
const KEPT: u64 = 1_000;

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// `ok`, `repaired`, `found` or `away`.
    result: &'static str,
    pub(super) sections: Vec<Verified>,
    /// How many there are of each kind, and what to do about it.
    kinds: BTreeMap<&'static str, OfKind>,
    /// The conversations with findings, those with the most first.
    conversations: Vec<OfConversation>,
    findings: Vec<Finding>,
    /// Findings that are counted and not listed.
    omitted: u64,
    #[serde(skip)]
    by_conversation: BTreeMap<(String, String), OfConversation>,
    #[serde(skip)]
    pub(super) section: Option<Section>,
}

#[derive(Debug, Serialize)]
struct OfKind {
    found: u64,
    repaired: u64,
    advice: &'static str,
    #[serde(skip)]
    can_be: bool,
}

/// What was found in one conversation.
#[derive(Debug, Clone, Serialize)]
struct OfConversation {
    tenant_id: String,
    conversation_id: String,
    found: u64,
    repaired: u64,
    /// How many findings there are of each kind.
    kinds: BTreeMap<&'static str, u64>,
}

impl Report {
    /// Counts a finding, and keeps it for JSON; says whether a text should tell it by itself.
    pub(super) fn add(&mut self, finding: &Finding) -> bool {
        self.add_to_conversation(finding);
        let kind = self.kinds.entry(finding.kind.as_str()).or_insert(OfKind {
            found: 0,
            repaired: 0,
            advice: finding.kind.advice(),
            can_be: false,
        });
        kind.found += 1;
        kind.repaired += u64::from(finding.repair_outcome == RepairOutcome::Done);
        kind.can_be |= finding.repair_outcome == RepairOutcome::NotRequested;
        if kind.found <= KEPT {
            self.findings.push(finding.clone());
        } else {
            self.omitted += 1;
        }
        kind.found <= TOLD
    }

    fn add_to_conversation(&mut self, finding: &Finding) {
        let (Some(tenant), Some(conversation)) = (&finding.tenant_id, &finding.conversation_id)
        else {
            return;
        };
        let key = (tenant.clone(), conversation.clone());
        if self.by_conversation.len() as u64 >= KEPT && !self.by_conversation.contains_key(&key) {
            return;
        }
        let of = self.by_conversation.entry(key).or_insert_with(|| OfConversation {
            tenant_id: tenant.clone(),
            conversation_id: conversation.clone(),
            found: 0,
            repaired: 0,
            kinds: BTreeMap::new(),
        });
        of.found += 1;
        of.repaired += u64::from(finding.repair_outcome == RepairOutcome::Done);
        *of.kinds.entry(finding.kind.as_str()).or_default() += 1;
    }

    /// Settles the verdict and the order. Of what could not be looked at nobody knows, whatever was
    /// repaired elsewhere.
    pub(super) fn close(&mut self) {
        self.conversations = std::mem::take(&mut self.by_conversation).into_values().collect();
        self.conversations.sort_by_key(|of| Reverse(of.found));
        let left = self.sections.iter().any(|section| section.unrepaired > 0);
        self.result = match (left, self.is_incomplete(), self.kinds.is_empty()) {
            (true, ..) => "found",
            (false, true, _) => "incomplete",
            (false, false, false) => "repaired",
            (false, false, true) => "ok",
        };
    }

    pub(super) fn exit(&self) -> Exit {
        match self.result {
            "found" => Exit::Problems,
            "incomplete" => Exit::Away,
            _ => Exit::Fine,
        }
    }

    /// Whether a server that was to be asked did not answer.
    fn is_incomplete(&self) -> bool {
        let is_away =
            |section: &Verified| matches!(section.incomplete, Some(Incomplete::Unavailable { .. }));
        self.sections.iter().any(is_away)
    }
}

/// What a section is called.
pub(super) fn title(section: Section) -> &'static str {
    match section {
        Section::HotCopies => "hot copies against rows",
        Section::Conversations => "conversations against their messages",
        Section::Days => "days against their conversations",
        Section::Integrity => "rows that belong to nothing",
        Section::Queues => "queues",
    }
}

fn server(dependency: Dependency) -> &'static str {
    match dependency {
        Dependency::RabbitMq => "RabbitMQ",
        Dependency::Redis => "Redis",
        Dependency::PostgreSql => "PostgreSQL",
    }
}

pub(super) fn begins(section: Section, style: &TextStyle) -> String {
    let stores: Vec<_> = section.stores().iter().copied().map(server).collect();
    let stores = style.paint.text(Tone::Dim, &format!("({})", stores.join(", ")));
    format!("{} {stores}\n", style.paint.text(Tone::Strong, title(section)))
}

pub(super) fn found(finding: &Finding, style: &TextStyle) -> String {
    let Finding { kind, tenant_id, conversation_id, id, detail, repair_outcome } = finding;
    let place = [tenant_id, conversation_id, id].into_iter().flatten();
    let place = place.map(|it| one_line(it)).collect::<Vec<_>>().join(" ");
    let (tone, end) = match repair_outcome {
        RepairOutcome::Done => (Tone::Warn, "; repaired".to_owned()),
        RepairOutcome::Failed(cause) => (Tone::Bad, format!("; not repaired: {}", one_line(cause))),
        RepairOutcome::NotRequested | RepairOutcome::NotRepairable => (Tone::Bad, String::new()),
    };
    let kind = style.paint.text(tone, kind.as_str());
    format!("  {kind} {place}: {}{end}\n", one_line(detail))
}

pub(super) fn ends(verified: &Verified, style: &TextStyle) -> String {
    let looked_at = format!("looked at {}", count(i128::from(verified.checked)));
    let mut text = match (verified.found, verified.unrepaired) {
        (0, _) => style.paint.text(Tone::Good, &format!("  {looked_at}, nothing found")),
        (found, 0) => {
            let found = plural(i128::from(found), "finding");
            style.paint.text(Tone::Warn, &format!("  {looked_at}: {found}, repaired"))
        }
        (found, left) => {
            let (found, left) = (plural(i128::from(found), "finding"), count(i128::from(left)));
            style.paint.text(Tone::Bad, &format!("  {looked_at}: {found}, {left} left"))
        }
    };
    if let Some(incomplete) = &verified.incomplete {
        let (tone, what, cause) = match incomplete {
            Incomplete::Unavailable { dependency, cause } => (
                Tone::Bad,
                format!("not to its end, {} cannot be asked", server(*dependency)),
                cause,
            ),
            Incomplete::Skipped { cause } => (Tone::Dim, "not all of it".to_owned(), cause),
        };
        let cause = one_line(cause);
        text.push_str(&format!("\n  {}", style.paint.text(tone, &format!("{what}: {cause}"))));
    }
    text.push('\n');
    text
}

/// What it adds up to, and what to do.
pub(super) fn summary(report: &Report, style: &TextStyle) -> String {
    let (tone, verdict) = match report.result {
        "ok" => (Tone::Good, "all is well"),
        "repaired" => (Tone::Warn, "all that was found is repaired; the fleet does the rest"),
        "incomplete" => (Tone::Bad, "nothing is left, but not everything could be looked at"),
        _ => (Tone::Bad, "something is wrong"),
    };
    let mut out = format!("\n{}\n", style.paint.text(tone, verdict));
    for (kind, it) in &report.kinds {
        let mut times = count(i128::from(it.found));
        if it.repaired > 0 {
            times.push_str(&format!(", {} repaired", count(i128::from(it.repaired))));
        }
        out.push_str(&format!("  {kind} ({times})"));
        if it.repaired < it.found {
            out.push_str(&style.paint.text(Tone::Dim, &format!(": {}", it.advice)));
        }
        out.push('\n');
    }
    out.push_str(&by_conversation(&report.conversations, style));
    let conversations = report.conversations.len() as u64;
    if report.kinds.values().map(|it| it.found).chain([conversations]).any(|it| it > TOLD) {
        let hint = format!(
            "of each kind, and of conversations, the first {TOLD} are told; --json has up to {KEPT}\n"
        );
        out.push_str(&style.paint.text(Tone::Dim, &hint));
    }
    if report.kinds.values().any(|it| it.can_be) {
        let hint = "`verbatim verify --repair` repairs what can be\n";
        out.push_str(&style.paint.text(Tone::Dim, hint));
    }
    out
}

/// Each conversation with its findings; where a single one has some, the summary has said it all.
fn by_conversation(conversations: &[OfConversation], style: &TextStyle) -> String {
    if conversations.len() < 2 {
        return String::new();
    }
    let mut out = format!("in {}\n", plural(conversations.len() as i128, "conversation"));
    for of in conversations.iter().zip(0..TOLD).map(|(of, _)| of) {
        let kinds = of.kinds.iter().map(|(kind, found)| match found {
            1 => (*kind).to_owned(),
            found => format!("{kind} ({})", count(i128::from(*found))),
        });
        let place = format!("{} {}", one_line(&of.tenant_id), one_line(&of.conversation_id));
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        out.push_str(&format!("  {place}: {}\n", style.paint.text(Tone::Dim, &kinds)));
    }
    out
}

#[cfg(test)]
mod tests {
    use conversation::Kind;
    use domain::time::Timestamp;

    use super::*;
    use crate::output::Paint;

    const LOOK: TextStyle = TextStyle { paint: Paint::Plain, now: Timestamp::EARLIEST };

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

    fn told(findings: &[Finding], sections: Vec<Verified>) -> String {
        let mut report = Report { sections, ..Report::default() };
        let mut text = String::new();
        for it in findings {
            if report.add(it) {
                text += &found(it, &LOOK);
            }
        }
        for section in &report.sections {
            text = begins(section.section, &LOOK) + &text + &ends(section, &LOOK);
        }
        report.close();
        text + &summary(&report, &LOOK)
    }

    #[test]
    fn all_is_well() {
        insta::assert_snapshot!(told(&[], vec![ended(Section::Queues, 0, 0)]));
    }

    #[test]
    fn findings_are_told_with_what_to_do() {
        let findings = [
            finding(Kind::HotCopyMissing, RepairOutcome::NotRequested),
            finding(Kind::HotCopyDamaged, RepairOutcome::Failed("PostgreSQL is away".to_owned())),
            finding(Kind::TotalsDiffer, RepairOutcome::Done),
            finding(Kind::MessagesGone, RepairOutcome::NotRepairable),
        ];
        insta::assert_snapshot!(told(&findings, vec![ended(Section::HotCopies, 4, 3)]));
    }

    #[test]
    fn where_several_conversations_have_findings_each_is_told_with_its_own() {
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
        let text = told(&findings, vec![ended(Section::Conversations, 4, 4)]);
        let (_, conversations) = text.split_once("in 2 conversations\n").unwrap();
        let mut lines = conversations.lines();
        let second = "  acme c-2: hot_copy_missing (2), totals_differ";
        assert_eq!((lines.next(), lines.next()), (Some(second), Some("  acme c-1: totals_differ")));
    }

    #[test]
    fn what_was_repaired_and_what_could_not_be_looked_at_is_said() {
        let repaired = [finding(Kind::StatisticsDiffer, RepairOutcome::Done)];
        insta::assert_snapshot!(told(&repaired, vec![ended(Section::Conversations, 1, 0)]));
        let incomplete = Some(Incomplete::Unavailable {
            dependency: Dependency::Redis,
            cause: "refused".to_owned(),
        });
        let away = Verified { incomplete, ..ended(Section::HotCopies, 0, 0) };
        insta::assert_snapshot!(told(&[], vec![away.clone()]));
        let all = told(&repaired, vec![ended(Section::Conversations, 1, 0), away]);
        let verdict = "nothing is left, but not everything could be looked at";
        assert!(all.contains(verdict), "{all}");
    }

    #[test]
    fn many_findings_of_one_kind_are_counted_and_a_few_told() {
        let mut report = Report::default();
        let one = finding(Kind::CloseOverdue, RepairOutcome::NotRepairable);
        let told = (0..KEPT + 5).filter(|_| report.add(&one)).count();
        assert_eq!(told as u64, TOLD);
        assert_eq!((report.findings.len() as u64, report.omitted), (KEPT, 5));
    }
}
