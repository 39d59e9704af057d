//! The trace as text: what it is, where it is now, then its timeline.

use inspect::{HotCopyState, MatchKind, State, TraceReport, TracedItem};

use crate::output::{Cell, Side, Table, TextStyle, Tone, count, one_line, plural, precise};

pub(super) fn render(id: &str, traced: &TraceReport, style: &TextStyle) -> String {
    if traced.items.is_empty() {
        return not_found(id, traced, style);
    }
    let mut out = String::new();
    if traced.items.len() > 1 {
        out.push_str(&format!(
            "{} have the id {}\n\n",
            plural(traced.items.len() as u64, "item"),
            one_line(id)
        ));
    }
    let items: Vec<String> = traced.items.iter().map(|item| render_item(item, style)).collect();
    out + &items.join("\n")
}

fn render_item(item: &TracedItem, style: &TextStyle) -> String {
    let paint = style.paint;
    let name = |id: &Option<String>| one_line(id.as_deref().unwrap_or("(unknown)"));
    let heading = match (item.matched, &item.message_id) {
        (MatchKind::DeadLetter, Some(_)) => "dead letter of message",
        (MatchKind::DeadLetter, None) => "dead letter of a message with unknown id",
        (MatchKind::Message, _) => "message",
        (MatchKind::Conversation, _) => "conversation",
        (MatchKind::Session, _) => "session of conversation",
    };
    let id = match (item.matched, &item.message_id) {
        (MatchKind::Conversation | MatchKind::Session, _) => name(&item.conversation_id),
        (_, Some(_)) => name(&item.message_id),
        (_, None) => String::new(),
    };
    let mut out = format!("{heading} {}\n", paint.text(Tone::Strong, &id));
    let mut line = |name: &str, tone: Tone, what: &str| {
        let name = paint.text(Tone::Dim, &format!("{name:<14}"));
        out.push_str(&format!("  {name}{}\n", paint.text(tone, what)));
    };
    line("tenant", Tone::Plain, &name(&item.tenant_id));
    if item.message_id.is_some() || item.matched == MatchKind::DeadLetter {
        line("conversation", Tone::Plain, &name(&item.conversation_id));
    }
    let (tone, now) = describe(item.state);
    line("now", tone, now);
    if let Some((tone, hot)) = hot_copy(&item.hot) {
        line("in Redis", tone, &hot);
    }
    let mut table =
        Table::new([("  when (UTC)", Side::Left), ("what", Side::Left), ("", Side::Left)]);
    for moment in &item.timeline {
        let tone = match moment.what {
            "failed" | "dead-lettered" | "dead letter stored" => Tone::Bad,
            "saved" | "archived" => Tone::Good,
            "replayed" | "discarded" | "operator" | "reopened" => Tone::Warn,
            _ => Tone::Plain,
        };
        let when = Cell::new(Tone::Dim, format!("  {}", precise(moment.at)));
        table.row([when, Cell::new(tone, moment.what), (&moment.text).into()]);
    }
    out.push('\n');
    out + &table.render(paint)
}

fn describe(state: State) -> (Tone, &'static str) {
    match state {
        State::Active => (Tone::Good, "stored in PostgreSQL; the conversation is active"),
        State::Closing => (Tone::Good, "stored in PostgreSQL; the conversation is being closed"),
        State::Archived => (Tone::Good, "stored in PostgreSQL; the conversation is archived"),
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
        HotCopyState::Unknown(cause) => (Tone::Warn, format!("unknown: {}", one_line(cause))),
        HotCopyState::NotChecked => return None,
    };
    Some((tone, text))
}

fn not_found(id: &str, traced: &TraceReport, style: &TextStyle) -> String {
    let not_found = format!("nothing in PostgreSQL has the id {}", one_line(id));
    let mut out = format!("{}\n", style.paint.text(Tone::Warn, &not_found));
    match (&traced.queues_unknown, traced.waiting.as_slice()) {
        (Some(cause), _) => {
            out.push_str(&format!("queues not checked: {}\n", one_line(cause)));
        }
        (None, []) => out.push_str("no message is ready in any queue\n"),
        (None, waiting) => {
            out.push_str("it may still be in a queue:\n");
            for it in waiting {
                out.push_str(&format!("  {} ready in {}\n", count(it.ready), it.queue));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use domain::time::Timestamp;
    use inspect::{QueueBacklog, TraceEvent};

    use super::*;
    use crate::output::Paint;

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
        render("m-1", traced, &TextStyle { paint: Paint::Plain, now: Timestamp::EARLIEST })
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
