//! What befell a message or a conversation, in the order in which it did. Pure.

use chrono::{DateTime, SecondsFormat, Utc};
use database::{AuditEntry, ConversationTrace, DeadLetterStatus, ListedDeadLetter, MessageTrace};

use super::TraceEvent;

/// Everything about one message or conversation, oldest first; at the same time in the order of a life.
pub(super) fn of(
    message: Option<&MessageTrace>,
    conversation: Option<&ConversationTrace>,
    dead_letters: &[ListedDeadLetter],
    audit: &[AuditEntry],
) -> Vec<TraceEvent> {
    let mut events = Vec::new();
    if let Some(message) = message {
        saved(message, &mut events);
    }
    if let Some(conversation) = conversation {
        if message.is_none() {
            begun(conversation, &mut events);
        }
        closed(conversation, &mut events);
    }
    for dead_letter in dead_letters {
        died(dead_letter, message.is_none() && conversation.is_some(), &mut events);
    }
    for line in audit {
        events.push(moment(line.at, "operator", by_an_operator(line)));
    }
    events.sort_by_key(|moment| moment.at);
    events
}

fn saved(message: &MessageTrace, events: &mut Vec<TraceEvent>) {
    let clock = match message.created_at == message.received_at {
        true => "its sender gave no time",
        false => "by its sender's clock",
    };
    events.push(moment(
        message.created_at,
        "published",
        format!("said by {}; {clock}", message.role),
    ));
    events.push(moment(message.received_at, "received", "by a worker".to_owned()));
    let actor = match (&message.saver, &message.saver_instance) {
        (Some(process), Some(instance)) => {
            let since = message.saver_started_at.map(|at| format!(", at work since {}", told(at)));
            format!("by {process} {instance}{}", since.unwrap_or_default())
        }
        _ => "by a process that did not say who it is".to_owned(),
    };
    let (at, actor) = match message.committed_at {
        Some(at) => (at, actor),
        // The time of a replay, which comes later, is that of its dead letter.
        None => {
            (message.received_at, format!("{actor}; then or later (track_commit_timestamp is off)"))
        }
    };
    events.push(moment(at, "saved", actor));
}

fn begun(conversation: &ConversationTrace, events: &mut Vec<TraceEvent>) {
    let session = format!("by session {}", conversation.session_id);
    events.push(moment(conversation.created_at, "began", session));
    if let Some(at) = conversation.last_message_at {
        let count = conversation.messages;
        events.push(moment(at, "last message", format!("of {count}, as far as is known")));
    }
}

fn closed(conversation: &ConversationTrace, events: &mut Vec<TraceEvent>) {
    let ConversationTrace { close_requested_at, closed_at, finalised_at, .. } = conversation;
    let reason = conversation.close_reason.as_deref();
    let because = reason.map(|reason| format!("reason: {reason}")).unwrap_or_default();
    if let Some(at) = close_requested_at {
        let actor = match reason {
            Some("idle") => "by the sweep: nothing came for long".to_owned(),
            _ if because.is_empty() => "its last session closed, or a message came late".to_owned(),
            _ => format!("its last session closed; {because}"),
        };
        events.push(moment(*at, "close asked", actor));
    }
    if let Some(at) = closed_at {
        events.push(moment(*at, "close began", "after the grace period".to_owned()));
    }
    if let Some(at) = finalised_at {
        let count = conversation.messages;
        let text = format!("its conversation, with {count} messages now");
        events.push(moment(*at, "archived", text));
    }
    if let (Some(_), "active" | "closing") = (finalised_at, conversation.status.as_str()) {
        let text = "its conversation: something came after archiving, by then at the latest";
        events.push(moment(conversation.touched_at, "reopened", text.to_owned()));
    }
    if let Some(at) = conversation.statistics_at {
        events.push(moment(at, "statistics", "of its conversation computed".to_owned()));
    }
    if let Some(at) = conversation.erased_at {
        events.push(moment(at, "erased", "what was said until then".to_owned()));
    }
}

fn died(dead_letter: &ListedDeadLetter, name_message: bool, events: &mut Vec<TraceEvent>) {
    let ListedDeadLetter { first_failed_at, last_failed_at, queue, reason, .. } = dead_letter;
    let of = match &dead_letter.message_id {
        Some(message) if name_message => format!("message {message}: "),
        _ => String::new(),
    };
    if dead_letter.attempts > 1 {
        let text = format!("{of}the first of {} attempts, in {queue}", dead_letter.attempts);
        events.push(moment(*first_failed_at, "failed", text));
    }
    let field = dead_letter.field.as_ref().map(|field| format!(" ({field})")).unwrap_or_default();
    let text = format!("{of}{reason}{field} in {queue}: {}", dead_letter.error);
    events.push(moment(*last_failed_at, "given up", text));
    let mut text = format!("{of}kept as {}", dead_letter.id);
    if let Some(origin) = dead_letter.replay_of {
        text += &format!(": the replay of {origin} came back");
    } else if dead_letter.replay_count > 0 {
        text += &format!(", after {} replays", dead_letter.replay_count);
    }
    if dead_letter.copies > 1 {
        text += &format!(", which came {} times", dead_letter.copies);
    }
    events.push(moment(dead_letter.stored_at, "dead letter", text));
    if dead_letter.status == DeadLetterStatus::Open {
        return;
    }
    let why = dead_letter.status_reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let at = dead_letter.status_changed_at.unwrap_or(dead_letter.stored_at);
    events.push(moment(at, dead_letter.status.as_str(), format!("{of}{}{why}", dead_letter.id)));
}

fn by_an_operator(line: &AuditEntry) -> String {
    let detail = line.detail.as_ref().map(|detail| format!(" {detail}")).unwrap_or_default();
    format!("{} by {}{detail}", line.action, line.actor)
}

fn moment(at: DateTime<Utc>, what: &'static str, text: String) -> TraceEvent {
    TraceEvent { at, what, text }
}

fn told(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}
