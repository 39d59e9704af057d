//! The answer as people get it: what it is, where it is now, then its life.

use conversation::{HotPlace, Life, Matched, State, Traced};

use crate::look::{Cell, Look, Side, Table, Tone, count, one_line, plural, precise};

pub(super) fn told(id: &str, traced: &Traced, look: &Look) -> String {
    if traced.lives.is_empty() {
        return unknown(id, traced, look);
    }
    let mut out = String::new();
    if traced.lives.len() > 1 {
        out.push_str(&format!(
            "{} go by {}\n\n",
            plural(traced.lives.len() as u64, "thing"),
            one_line(id)
        ));
    }
    let lives: Vec<String> = traced.lives.iter().map(|life| of(life, look)).collect();
    out + &lives.join("\n")
}

fn of(life: &Life, look: &Look) -> String {
    let paint = look.paint;
    let name = |id: &Option<String>| one_line(id.as_deref().unwrap_or("(unknown)"));
    let heading = match (life.matched, &life.message_id) {
        (Matched::DeadLetter, Some(_)) => "dead letter of message",
        (Matched::DeadLetter, None) => "dead letter of a message without a known id",
        (Matched::Message, _) => "message",
        (Matched::Conversation, _) => "conversation",
        (Matched::Session, _) => "session of conversation",
    };
    let id = match (life.matched, &life.message_id) {
        (Matched::Conversation | Matched::Session, _) => name(&life.conversation_id),
        (_, Some(_)) => name(&life.message_id),
        (_, None) => String::new(),
    };
    let mut out = format!("{heading} {}\n", paint.text(Tone::Strong, &id));
    let mut line = |name: &str, tone: Tone, what: &str| {
        let name = paint.text(Tone::Dim, &format!("{name:<14}"));
        out.push_str(&format!("  {name}{}\n", paint.text(tone, what)));
    };
    line("tenant", Tone::Plain, &name(&life.tenant_id));
    if life.message_id.is_some() || life.matched == Matched::DeadLetter {
        line("conversation", Tone::Plain, &name(&life.conversation_id));
    }
    let (tone, now) = state(life.state);
    line("now", tone, now);
    if let Some((tone, hot)) = hot(&life.hot) {
        line("in Redis", tone, &hot);
    }
    let mut table =
        Table::new([("  when (UTC)", Side::Left), ("what", Side::Left), ("", Side::Left)]);
    for moment in &life.timeline {
        let tone = match moment.what {
            "failed" | "given up" | "dead letter" => Tone::Bad,
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

fn hot(place: &HotPlace) -> Option<(Tone, String)> {
    let (tone, text) = match place {
        HotPlace::InCopy => (Tone::Plain, "in the hot copy".to_owned()),
        HotPlace::BelowCopy => (Tone::Plain, "no: the hot copy begins after it".to_owned()),
        HotPlace::NoCopy => (Tone::Plain, "no: there is no valid hot copy".to_owned()),
        HotPlace::Missing => {
            (Tone::Bad, "no, although the hot copy is valid: see `verbatim verify`".to_owned())
        }
        HotPlace::Unknown(cause) => (Tone::Warn, format!("unknown: {}", one_line(cause))),
        HotPlace::NotAsked => return None,
    };
    Some((tone, text))
}

fn unknown(id: &str, traced: &Traced, look: &Look) -> String {
    let not_known = format!("{} is not known here", one_line(id));
    let mut out = format!("{}\n", look.paint.text(Tone::Warn, &not_known));
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
    use conversation::{Moment, Waiting};
    use domain::time::Timestamp;

    use super::*;
    use crate::look::Paint;

    fn moment(at: &str, what: &'static str, text: &str) -> Moment {
        Moment { at: Timestamp::parse(at).unwrap().into(), what, text: text.to_owned() }
    }

    fn life() -> Life {
        Life {
            matched: Matched::Message,
            tenant_id: Some("acme".to_owned()),
            conversation_id: Some("c-1".to_owned()),
            message_id: Some("m-1".to_owned()),
            state: State::Active,
            hot: HotPlace::InCopy,
            timeline: vec![
                moment("2026-11-20T10:00:00Z", "published", "said by user; by its sender's clock"),
                moment("2026-11-20T10:00:00.25Z", "saved", "by message-save-worker host:7"),
            ],
        }
    }

    fn shown(traced: &Traced) -> String {
        told("m-1", traced, &Look { paint: Paint::Plain, now: Timestamp::EARLIEST })
    }

    #[test]
    fn a_life_is_told_in_order_and_each_match_by_itself() {
        let dead = Life {
            matched: Matched::DeadLetter,
            tenant_id: Some("umbrella".to_owned()),
            conversation_id: None,
            state: State::DeadLetter,
            hot: HotPlace::NotAsked,
            timeline: vec![moment("2026-11-20T10:00:01Z", "given up", "schema (role)")],
            ..life()
        };
        let traced = Traced { lives: vec![life(), dead], waiting: vec![], queues_unknown: None };
        insta::assert_snapshot!(shown(&traced));
    }

    #[test]
    fn what_nobody_knows_may_be_queued() {
        let waiting = vec![Waiting { queue: "conversation.save_message", ready: 1_234 }];
        let traced = Traced { lives: vec![], waiting, queues_unknown: None };
        insta::assert_snapshot!(shown(&traced));
        let traced = Traced {
            lives: vec![],
            waiting: vec![],
            queues_unknown: Some("AMQP_URL is not set".to_owned()),
        };
        insta::assert_snapshot!(shown(&traced));
    }
}
