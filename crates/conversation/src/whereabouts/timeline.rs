//! What befell a message or a conversation, in the order in which it did. Pure.

use archive::{AuditEntry, ConversationTrace, DeadLetterStatus, ListedDeadLetter, MessageTrace};
use chrono::{DateTime, SecondsFormat, Utc};

use super::Moment;

/// Everything about one message or conversation, oldest first; at the same time in the order of a life.
pub(super) fn of(
    message: Option<&MessageTrace>,
    conversation: Option<&ConversationTrace>,
    letters: &[ListedDeadLetter],
    audit: &[AuditEntry],
) -> Vec<Moment> {
    let mut moments = Vec::new();
    if let Some(message) = message {
        saved(message, &mut moments);
    }
    if let Some(conversation) = conversation {
        if message.is_none() {
            begun(conversation, &mut moments);
        }
        closed(conversation, &mut moments);
    }
    for letter in letters {
        died(letter, message.is_none() && conversation.is_some(), &mut moments);
    }
    for line in audit {
        moments.push(moment(line.at, "operator", by_an_operator(line)));
    }
    moments.sort_by_key(|moment| moment.at);
    moments
}

fn saved(message: &MessageTrace, moments: &mut Vec<Moment>) {
    let clock = match message.created_at == message.received_at {
        true => "its sender gave no time",
        false => "by its sender's clock",
    };
    moments.push(moment(
        message.created_at,
        "published",
        format!("said by {}; {clock}", message.role),
    ));
    moments.push(moment(message.received_at, "received", "by a worker".to_owned()));
    let by = match (&message.saver, &message.saver_instance) {
        (Some(process), Some(instance)) => {
            let since = message.saver_started_at.map(|at| format!(", at work since {}", told(at)));
            format!("by {process} {instance}{}", since.unwrap_or_default())
        }
        _ => "by a process that did not say who it is".to_owned(),
    };
    let (at, by) = match message.committed_at {
        Some(at) => (at, by),
        // The time of a replay, which comes later, is that of its letter.
        None => {
            (message.received_at, format!("{by}; then or later (track_commit_timestamp is off)"))
        }
    };
    moments.push(moment(at, "saved", by));
}

fn begun(conversation: &ConversationTrace, moments: &mut Vec<Moment>) {
    let session = format!("by session {}", conversation.session_id);
    moments.push(moment(conversation.created_at, "began", session));
    if let Some(at) = conversation.last_message_at {
        let count = conversation.messages;
        moments.push(moment(at, "last message", format!("of {count}, as far as is known")));
    }
}

fn closed(conversation: &ConversationTrace, moments: &mut Vec<Moment>) {
    let ConversationTrace { close_requested_at, closed_at, finalised_at, .. } = conversation;
    let reason = conversation.close_reason.as_deref();
    let because = reason.map(|reason| format!("reason: {reason}")).unwrap_or_default();
    if let Some(at) = close_requested_at {
        let by = match reason {
            Some("idle") => "by the sweep: nothing came for long".to_owned(),
            _ if because.is_empty() => "its last session closed, or a message came late".to_owned(),
            _ => format!("its last session closed; {because}"),
        };
        moments.push(moment(*at, "close asked", by));
    }
    if let Some(at) = closed_at {
        moments.push(moment(*at, "close began", "after the grace period".to_owned()));
    }
    if let Some(at) = finalised_at {
        let count = conversation.messages;
        let text = format!("its conversation, with {count} messages now");
        moments.push(moment(*at, "archived", text));
    }
    if let (Some(_), "active" | "closing") = (finalised_at, conversation.status.as_str()) {
        let text = "its conversation: something came after archiving, by then at the latest";
        moments.push(moment(conversation.touched_at, "reopened", text.to_owned()));
    }
    if let Some(at) = conversation.statistics_at {
        moments.push(moment(at, "statistics", "of its conversation computed".to_owned()));
    }
    if let Some(at) = conversation.erased_at {
        moments.push(moment(at, "erased", "what was said until then".to_owned()));
    }
}

fn died(letter: &ListedDeadLetter, name_message: bool, moments: &mut Vec<Moment>) {
    let ListedDeadLetter { first_failed_at, last_failed_at, queue, reason, .. } = letter;
    let of = match &letter.message_id {
        Some(message) if name_message => format!("message {message}: "),
        _ => String::new(),
    };
    if letter.attempts > 1 {
        let text = format!("{of}the first of {} attempts, in {queue}", letter.attempts);
        moments.push(moment(*first_failed_at, "failed", text));
    }
    let field = letter.field.as_ref().map(|field| format!(" ({field})")).unwrap_or_default();
    let text = format!("{of}{reason}{field} in {queue}: {}", letter.error);
    moments.push(moment(*last_failed_at, "given up", text));
    let mut text = format!("{of}kept as {}", letter.id);
    if let Some(origin) = letter.replay_of {
        text += &format!(": the replay of {origin} came back");
    } else if letter.replay_count > 0 {
        text += &format!(", after {} replays", letter.replay_count);
    }
    if letter.copies > 1 {
        text += &format!(", which came {} times", letter.copies);
    }
    moments.push(moment(letter.stored_at, "dead letter", text));
    if letter.status == DeadLetterStatus::Open {
        return;
    }
    let why = letter.status_reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let at = letter.status_changed_at.unwrap_or(letter.stored_at);
    moments.push(moment(at, letter.status.as_str(), format!("{of}{}{why}", letter.id)));
}

fn by_an_operator(line: &AuditEntry) -> String {
    let detail = line.detail.as_ref().map(|detail| format!(" {detail}")).unwrap_or_default();
    format!("{} by {}{detail}", line.action, line.actor)
}

fn moment(at: DateTime<Utc>, what: &'static str, text: String) -> Moment {
    Moment { at, what, text }
}

fn told(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}
