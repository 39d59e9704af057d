//! The trace as text: what it is, where it is now, then its timeline.

use inspect::{HotCopyState, MatchKind, State, TraceEvent, TraceReport, TracedItem};

use crate::output::{Cell, Text, Tone, count, one_line, plural, precise};

pub(super) fn write(id: &str, traced: &TraceReport, out: &mut Text) {
    if traced.items.is_empty() {
        return not_found(id, traced, out);
    }
    if traced.items.len() > 1 {
        let items = plural(traced.items.len() as u64, "item");
        out.push(format!("{items} have the id {}\n\n", one_line(id)));
    }
    for (n, item) in traced.items.iter().enumerate() {
        out.push(if n > 0 { "\n" } else { "" });
        write_item(item, out);
    }
}

fn write_item(item: &TracedItem, out: &mut Text) {
    fn name(id: &Option<String>) -> &str {
        id.as_deref().unwrap_or("(unknown)")
    }
    let heading = match (item.matched, &item.message_id) {
        (MatchKind::DeadLetter, Some(_)) => "dead letter of message",
        (MatchKind::DeadLetter, None) => "dead letter of a message with unknown id",
        (MatchKind::Message, _) => "message",
        (MatchKind::Conversation, _) => "conversation",
        (MatchKind::Session, _) => "session of conversation",
    };
    let id = match (item.matched, &item.message_id) {
        (MatchKind::Conversation | MatchKind::Session, _) => name(&item.conversation_id),
        (_, Some(id)) => id,
        (_, None) => "",
    };
    out.push(format!("{heading} "));
    out.line(Tone::Strong, one_line(id));
    out.field("tenant", Tone::Plain, name(&item.tenant_id));
    if item.message_id.is_some() || item.matched == MatchKind::DeadLetter {
        out.field("conversation", Tone::Plain, name(&item.conversation_id));
    }
    let (tone, now) = describe(item.state);
    out.field("now", tone, now);
    if let Some((tone, hot)) = hot_copy(&item.hot) {
        out.field("in Redis", tone, hot);
    }
    out.push("\n");
    let row = |moment: &TraceEvent| {
        let tone = match moment.what {
            "failed" | "dead-lettered" | "dead letter stored" => Tone::Bad,
            "saved" | "archived" => Tone::Good,
            "replayed" | "discarded" | "operator" | "reopened" | "deleted" => Tone::Warn,
            _ => Tone::Plain,
        };
        let when = Cell::new(Tone::Dim, format!("  {}", precise(moment.at)));
        [when, Cell::new(tone, moment.what), (&moment.text).into()]
    };
    out.table(["  when (UTC)", "what", ""], item.timeline.iter().map(row));
}

fn describe(state: State) -> (Tone, &'static str) {
    match state {
        State::Active => (Tone::Good, "stored in PostgreSQL; the conversation is active"),
        State::Closing => (Tone::Good, "stored in PostgreSQL; the conversation is being closed"),
        State::Archived => (Tone::Good, "stored in PostgreSQL; the conversation is archived"),
        State::Deleted => (Tone::Warn, "not stored: it was deleted"),
        State::DeadLetter => {
            (Tone::Bad, "not stored: open dead letter, see `verbatim dead-letters show`")
        }
        State::Replayed => (Tone::Warn, "not stored: its dead letter was replayed"),
        State::Discarded => (Tone::Warn, "not stored: its dead letter was discarded"),
    }
}

fn hot_copy(state: &HotCopyState) -> Option<(Tone, String)> {
    let (tone, text) = match state {
        HotCopyState::InHotCopy => (Tone::Plain, "in the hot copy".to_owned()),
        HotCopyState::OlderThanHotCopy => (Tone::Plain, "no: older than the hot copy".to_owned()),
        HotCopyState::NoHotCopy => (Tone::Plain, "no: no valid hot copy".to_owned()),
        HotCopyState::Missing => {
            (Tone::Bad, "missing, although the hot copy is valid: run `verbatim verify`".to_owned())
        }
        HotCopyState::Unknown(cause) => (Tone::Warn, format!("unknown: {cause}")),
        HotCopyState::NotChecked => return None,
    };
    Some((tone, text))
}

fn not_found(id: &str, traced: &TraceReport, out: &mut Text) {
    out.line(
        Tone::Warn,
        format!(
            "PostgreSQL has no message, conversation, session or dead letter with the id {}",
            one_line(id)
        ),
    );
    match (&traced.queues_unknown, traced.waiting.as_slice()) {
        (Some(cause), _) => out.push(format!("queues not checked: {}\n", one_line(cause))),
        (None, []) => out.push("no message is ready in any queue\n"),
        (None, waiting) => {
            out.push("it may still be in a queue:\n");
            for it in waiting {
                out.push(format!("  {} ready in {}\n", count(it.ready), it.queue));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::time::Timestamp;
    use inspect::QueueBacklog;

    use super::*;
    use crate::output::tests::plain;

    fn moment(at: &str, what: &'static str, text: &str) -> TraceEvent {
        TraceEvent { at: Timestamp::parse(at).unwrap().into(), what, text: text.to_owned() }
    }

    fn item() -> TracedItem {
        TracedItem {
            matched: MatchKind::Message,
            tenant_id: Some("acme".to_owned()),
            conversation_id: Some("c-1".to_owned()),
            message_id: Some("m-1".to_owned()),
            state: State::Active,
            hot: HotCopyState::InHotCopy,
            timeline: vec![
                moment(
                    "2026-11-20T10:00:00Z",
                    "published",
                    "role user; time of the sender's clock",
                ),
                moment("2026-11-20T10:00:00.25Z", "saved", "by message-save-worker host:7"),
            ],
        }
    }

    fn shown(traced: &TraceReport) -> String {
        plain(|out| write("m-1", traced, out))
    }

    #[test]
    fn each_match_is_shown_with_its_own_timeline() {
        let dead = TracedItem {
            matched: MatchKind::DeadLetter,
            tenant_id: Some("umbrella".to_owned()),
            conversation_id: None,
            state: State::DeadLetter,
            hot: HotCopyState::NotChecked,
            timeline: vec![moment("2026-11-20T10:00:01Z", "dead-lettered", "schema (role)")],
            ..item()
        };
        let traced =
            TraceReport { items: vec![item(), dead], waiting: vec![], queues_unknown: None };
        insta::assert_snapshot!(shown(&traced));
    }

    #[test]
    fn an_unknown_id_is_reported_with_the_ready_messages() {
        let waiting = vec![QueueBacklog { queue: "conversation.save_message", ready: 1_234 }];
        let traced = TraceReport { items: vec![], waiting, queues_unknown: None };
        insta::assert_snapshot!(shown(&traced));
        let traced = TraceReport {
            items: vec![],
            waiting: vec![],
            queues_unknown: Some("AMQP_URL is not set".to_owned()),
        };
        insta::assert_snapshot!(shown(&traced));
    }
}
