//! The JSON of the views is compared byte for byte with the files in `fixtures`: scripts read it.

use chrono::{DateTime, Utc};
use domain::failure::Dependency;
use domain::time::Timestamp;
use serde::Serialize;

use crate::{
    Finding, HotCopyState, Incomplete, Kind, MatchKind, QueueBacklog, RepairOutcome, Section,
    State, TraceEvent, TraceReport, TracedItem, Verified,
};

fn at(text: &str) -> DateTime<Utc> {
    Timestamp::parse(text).unwrap().into()
}

fn assert_json(view: &impl Serialize, fixture: &str) {
    assert_eq!(serde_json::to_string_pretty(view).unwrap() + "\n", fixture);
}

#[test]
fn the_json_of_a_trace_is_its_fixture() {
    let text = "by message-save-worker host:7".to_owned();
    let saved = TraceEvent { at: at("2026-11-20T10:00:00.25Z"), what: "saved", text };
    let stored = TracedItem {
        matched: MatchKind::Message,
        tenant_id: Some("acme".to_owned()),
        conversation_id: Some("c-1".to_owned()),
        message_id: Some("m-1".to_owned()),
        state: State::Active,
        hot: HotCopyState::OlderThanHotCopy,
        timeline: vec![saved],
    };
    let dead = TracedItem {
        matched: MatchKind::DeadLetter,
        tenant_id: None,
        conversation_id: None,
        message_id: None,
        state: State::DeadLetter,
        hot: HotCopyState::Unknown("no connection to Redis".to_owned()),
        timeline: Vec::new(),
    };
    let report = TraceReport {
        items: vec![stored, dead],
        waiting: vec![QueueBacklog { queue: "conversation.save_message", ready: 12 }],
        queues_unknown: Some("AMQP_URL is not set".to_owned()),
    };
    assert_json(&report, include_str!("../fixtures/trace.json"));
}

#[test]
fn the_json_of_a_finding_is_its_fixture() {
    let finding = |repair_outcome| Finding {
        kind: Kind::HotCopyMissing,
        tenant_id: Some("acme".to_owned()),
        conversation_id: Some("c-1".to_owned()),
        id: None,
        detail: "what differs".to_owned(),
        repair_outcome,
    };
    let failed = RepairOutcome::Failed("PostgreSQL is unavailable".to_owned());
    let findings = [finding(RepairOutcome::NotRequested), finding(failed)];
    assert_json(&findings, include_str!("../fixtures/findings.json"));
}

#[test]
fn the_json_of_verified_sections_is_its_fixture() {
    let verified = |section, incomplete| Verified {
        section,
        checked: 12_345,
        found: 4,
        unrepaired: 3,
        incomplete,
    };
    let cause = "refused".to_owned();
    let sections = [
        verified(Section::Queues, None),
        verified(Section::Days, Some(Incomplete::Skipped { cause: "filtered".to_owned() })),
        verified(
            Section::HotCopies,
            Some(Incomplete::Unavailable { dependency: Dependency::Redis, cause }),
        ),
    ];
    assert_json(&sections, include_str!("../fixtures/verified.json"));
}
