//! What happened to a message or a conversation, in order of time. Pure.

use chrono::{DateTime, SecondsFormat, Utc};
use database::{
    AuditEntry, ConversationTrace, ConversationView, DeadLetter, DeadLetterStatus,
    DeadLetterSummary, MessageTrace,
};
use domain::status::ConversationStatus;

use super::TraceEvent;

/// Everything about one message or conversation, oldest first; events of the same time in their usual order.
pub(super) fn of(
    message: Option<&MessageTrace>,
    conversation: Option<&ConversationTrace>,
    dead_letters: &[DeadLetterSummary],
    audit: &[AuditEntry],
) -> Vec<TraceEvent> {
    let mut events = Vec::new();
    if let Some(message) = message {
        saved(message, &mut events);
    }
    if let Some(conversation) = conversation {
        if message.is_none() {
            started(&conversation.conversation, &mut events);
        }
        closed(conversation, &mut events);
    }
    for dead_letter in dead_letters {
        dead_lettered(dead_letter, message.is_none() && conversation.is_some(), &mut events);
    }
    for line in audit {
        events.push(event(line.at, "operator", audit_text(line)));
    }
    events.sort_by_key(|event| event.at);
    events
}

fn saved(message: &MessageTrace, events: &mut Vec<TraceEvent>) {
    if let Some(action) = &message.deleted_by {
        events.push(event(message.created_at, "deleted", format!("by the action {action}")));
        return;
    }
    let clock = match message.created_at == message.received_at {
        true => "the sender gave no time",
        false => "time of the sender's clock",
    };
    events.push(event(message.created_at, "published", format!("role {}; {clock}", message.role)));
    events.push(event(message.received_at, "received", "by a worker".to_owned()));
    let actor = match (&message.saver, &message.saver_instance) {
        (Some(process), Some(instance)) => {
            let since =
                message.saver_started_at.map(|at| format!(", running since {}", seconds(at)));
            format!("by {process} {instance}{}", since.unwrap_or_default())
        }
        _ => "by a process without a recorded name".to_owned(),
    };
    let (at, actor) = match message.committed_at {
        Some(at) => (at, actor),
        // Received may be the time of the first attempt: after a replay the message was saved later.
        None => (
            message.received_at,
            format!("{actor}; at this time or later (track_commit_timestamp is off)"),
        ),
    };
    events.push(event(at, "saved", actor));
}

fn started(conversation: &ConversationView, events: &mut Vec<TraceEvent>) {
    let session = format!("by session {}", conversation.session_id);
    events.push(event(conversation.created_at, "started", session));
    if let Some(at) = conversation.last_message_at {
        let count = conversation.message_count;
        events.push(event(at, "last message", format!("{count} messages, as last counted")));
    }
}

fn closed(trace: &ConversationTrace, events: &mut Vec<TraceEvent>) {
    let ConversationTrace { conversation, touched_at, statistics_at, erased_at } = trace;
    let ConversationView { close_requested_at, closed_at, finalised_at, .. } = conversation;
    let reason = conversation.close_reason.as_deref();
    let because = reason.map(|reason| format!("reason: {reason}")).unwrap_or_default();
    if let Some(at) = close_requested_at {
        let actor = match reason {
            Some("idle") => "by the closing sweep: the conversation was idle".to_owned(),
            _ if because.is_empty() => {
                "its last session closed, or a message came after archiving".to_owned()
            }
            _ => format!("its last session closed; {because}"),
        };
        events.push(event(*at, "close requested", actor));
    }
    if let Some(at) = closed_at {
        events.push(event(*at, "close started", "after the grace period".to_owned()));
    }
    if let Some(at) = finalised_at {
        let count = conversation.message_count;
        let text = format!("the conversation, which has {count} messages now");
        events.push(event(*at, "archived", text));
    }
    if finalised_at.is_some() && conversation.status != ConversationStatus::Archived {
        let text =
            "the conversation: a message or session came after archiving, at this time or before";
        events.push(event(*touched_at, "reopened", text.to_owned()));
    }
    if let Some(at) = statistics_at {
        events.push(event(*at, "statistics computed", "of the conversation".to_owned()));
    }
    if let Some(at) = erased_at {
        events.push(event(*at, "erased", "all messages up to this time".to_owned()));
    }
}

fn dead_lettered(summary: &DeadLetterSummary, name_message: bool, events: &mut Vec<TraceEvent>) {
    let DeadLetterSummary { dead_letter, state, .. } = summary;
    let DeadLetter { first_failed_at, last_failed_at, queue, reason, .. } = dead_letter;
    let of = match &dead_letter.message_id {
        Some(message) if name_message => format!("message {message}: "),
        _ => String::new(),
    };
    if dead_letter.attempts > 1 {
        let text = format!("{of}the first of {} attempts, in {queue}", dead_letter.attempts);
        events.push(event(*first_failed_at, "failed", text));
    }
    let field = dead_letter.field.as_ref().map(|field| format!(" ({field})")).unwrap_or_default();
    let text = format!("{of}{reason}{field} in {queue}: {}", dead_letter.error);
    events.push(event(*last_failed_at, "dead-lettered", text));
    let mut text = format!("{of}as {}", dead_letter.id);
    if let Some(origin) = dead_letter.replay_of {
        text += &format!(": the replay of {origin} failed again");
    } else if dead_letter.replay_count > 0 {
        text += &format!(", after {} replays", dead_letter.replay_count);
    }
    if state.copies > 1 {
        text += &format!(", received {} times", state.copies);
    }
    events.push(event(state.stored_at, "dead letter stored", text));
    if state.status == DeadLetterStatus::Open {
        return;
    }
    let why = state.status_reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let at = state.status_changed_at.unwrap_or(state.stored_at);
    events.push(event(at, state.status.as_str(), format!("{of}{}{why}", dead_letter.id)));
}

fn audit_text(line: &AuditEntry) -> String {
    let detail = line.detail.as_ref().map(|detail| format!(" {detail}")).unwrap_or_default();
    format!("{} by {}{detail}", line.action, line.actor)
}

fn event(at: DateTime<Utc>, what: &'static str, text: String) -> TraceEvent {
    TraceEvent { at, what, text }
}

/// A time without fractions of a second.
fn seconds(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}
