//! The answer as people get it: what it is, where it is now, then its life.

use conversation::{HotCopyState, MatchKind, State, TraceReport, TracedItem};

use crate::output::{Cell, Side, Table, TextStyle, Tone, count, one_line, plural, precise};

pub(super) fn told(id: &str, traced: &TraceReport, style: &TextStyle) -> String {
    if traced.items.is_empty() {
        return unknown(id, traced, style);
    }
    let mut out = String::new();
    if traced.items.len() > 1 {
        out.push_str(&format!(
            "{} go by {}\n\n",
            plural(traced.items.len() as u64, "thing"),
            one_line(id)
        ));
    }
    let items: Vec<String> = traced.items.iter().map(|item| of(item, style)).collect();
    out + &items.join("\n")
}

fn of(item: &TracedItem, style: &TextStyle) -> String {
    let paint = style.paint;
    let name = |id: &Option<String>| one_line(id.as_deref().unwrap_or("(unknown)"));
    let heading = match (item.matched, &item.message_id) {
        (MatchKind::DeadLetter, Some(_)) => "dead letter of message",
        (MatchKind::DeadLetter, None) => "dead letter of a message without a known id",
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
    let (tone, now) = state(item.state);
    line("now", tone, now);
    if let Some((tone, hot)) = hot(&item.hot) {
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

fn state(state: State) -> (Tone, &'static str) {
    match state {
        State::Active => (Tone::Good, "stored in PostgreSQL; the conversation is active"),
        State::Closing => (Tone::Good, "stored in PostgreSQL; the conversation is being closed"),
        State::Archived => (Tone::Good, "stored in PostgreSQL; the conversation is archived"),
        State::DeadLetter => {
            (Tone::Bad, "not stored: a dead letter, which waits for `verbatim dead-letters`")
        }
        State::Replayed => (Tone::Warn, "not stored: its dead letter was replayed"),
        State::Discarded => (Tone::Warn, "not stored: its dead letter was discarded"),
    }
}

fn hot(place: &HotCopyState) -> Option<(Tone, String)> {
    let (tone, text) = match place {
        HotCopyState::InHotCopy => (Tone::Plain, "in the hot copy".to_owned()),
        HotCopyState::OlderThanHotCopy => {
            (Tone::Plain, "no: the hot copy begins after it".to_owned())
        }
        HotCopyState::NoHotCopy => (Tone::Plain, "no: there is no valid hot copy".to_owned()),
        HotCopyState::Missing => {
            (Tone::Bad, "no, although the hot copy is valid: see `verbatim verify`".to_owned())
        }
        HotCopyState::Unknown(cause) => (Tone::Warn, format!("unknown: {}", one_line(cause))),
        HotCopyState::NotChecked => return None,
    };
    Some((tone, text))
}

fn unknown(id: &str, traced: &TraceReport, style: &TextStyle) -> String {
    let not_known = format!("{} is not known here", one_line(id));
    let mut out = format!("{}\n", style.paint.text(Tone::Warn, &not_known));
    match (&traced.queues_unknown, traced.waiting.as_slice()) {
        (Some(cause), _) => {
            out.push_str(&format!(
                "whether it is still queued is not known: {}\n",
                one_line(cause)
            ));
        }
        (None, []) => out.push_str("and no message waits in any queue\n"),
        (None, waiting) => {
            out.push_str("it may still be queued:\n");
            for it in waiting {
                out.push_str(&format!("  {} ready in {}\n", count(it.ready), it.queue));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use conversation::{QueueBacklog, TraceEvent};
    use domain::time::Timestamp;

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
                moment("2026-11-20T10:00:00Z", "published", "said by user; by its sender's clock"),
                moment("2026-11-20T10:00:00.25Z", "saved", "by message-save-worker host:7"),
            ],
        }
    }

    fn shown(traced: &TraceReport) -> String {
        told("m-1", traced, &TextStyle { paint: Paint::Plain, now: Timestamp::EARLIEST })
    }

    #[test]
    fn a_life_is_told_in_order_and_each_match_by_itself() {
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
    fn what_nobody_knows_may_be_queued() {
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
