//! What would mend a dead letter, where its fault is obvious.

use archive::DeadLetterRow;
use domain::failure::DeadLetterReason;
use serde::Serialize;

use crate::validator::Validator;

/// What to do about a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Suggestion {
    /// In words.
    pub(crate) text: String,
    /// A command line that does it, where one can.
    pub(crate) command: Option<String>,
}

/// What to do about a letter, as far as it can be told from the letter alone.
pub(crate) fn suggest(letter: &DeadLetterRow, validator: &Validator) -> Option<Suggestion> {
    let reason = DeadLetterReason::parse(&letter.reason)?;
    let words = |text: &str| Some(Suggestion { text: text.to_owned(), command: None });
    match reason {
        DeadLetterReason::Schema
        | DeadLetterReason::UnknownAction
        | DeadLetterReason::MalformedJson
        | DeadLetterReason::TooLarge => of_its_form(letter, reason, validator),
        DeadLetterReason::Conflict => words(
            "another message has this id and other words; the first one stays. Its sender must give \
             each message an id of its own",
        ),
        DeadLetterReason::AttemptsExhausted => Some(Suggestion {
            text: "nobody foresaw this failure: the workers' logs of that time say more. Once its \
                   cause is gone, publish it again"
                .to_owned(),
            command: Some(publish(letter, None)),
        }),
        DeadLetterReason::DeliveryLimit => words(
            "workers gave it back or died with it again and again: look for restarts in their logs \
             of that time before you publish it again",
        ),
        DeadLetterReason::Expired => {
            words("its sender sets the AMQP property `expiration`; leave that out")
        }
    }
}

/// A letter whose body is at fault: the validator of this version says whether it still is.
fn of_its_form(
    letter: &DeadLetterRow,
    reason: DeadLetterReason,
    validator: &Validator,
) -> Option<Suggestion> {
    let Err(refusal) = validator.decode(&letter.body) else {
        let unhandled = reason == DeadLetterReason::UnknownAction;
        return Some(if unhandled {
            let text = "the action is known, but no worker handles it in this version; keep the \
                        letter until one does";
            Suggestion { text: text.to_owned(), command: None }
        } else {
            let text = "the workers of this version accept it: publish it again";
            Suggestion { text: text.to_owned(), command: Some(publish(letter, None)) }
        });
    };
    let meant = refusal.detail.rsplit_once("did you mean `").and_then(|(_, rest)| {
        // It becomes part of a command line: whatever a sender wrote must not.
        let meant = rest.strip_suffix("`?").filter(|meant| meant.chars().all(is_plain))?;
        Some((path(refusal.field.as_deref()?)?, meant))
    });
    if let Some((path, meant)) = meant {
        return Some(Suggestion {
            text: format!("set {} to {meant:?}, and mend the sender", &path[1..]),
            command: Some(publish(letter, Some(&format!("{path} = {meant:?}")))),
        });
    }
    let text = match refusal.reason {
        DeadLetterReason::TooLarge => {
            "send large contents by reference, or raise VERBATIM_MAX_BODY_BYTES for all workers"
        }
        DeadLetterReason::MalformedJson if letter.body.trim_ascii_start().starts_with(b"[") => {
            "publish each element of the array as an action of its own"
        }
        DeadLetterReason::MalformedJson if letter.body.starts_with(b"\xEF\xBB\xBF") => {
            "send UTF-8 without a byte order mark"
        }
        DeadLetterReason::Schema if refusal.detail.ends_with(" is missing") => {
            "add the field and publish it again; the wire contract has an example of every action"
        }
        _ => return None,
    };
    Some(Suggestion { text: text.to_owned(), command: None })
}

/// The command line that publishes a letter's body again, changed by a jq filter.
fn publish(letter: &DeadLetterRow, filter: Option<&str>) -> String {
    let show = format!("verbatim dead-letters show {} --json | jq -r .body", letter.id);
    let filter = filter.map(|filter| format!(" | jq -c '{filter}'"));
    format!("{show}{} | verbatim publish -", filter.unwrap_or_default())
}

/// The field as jq writes it; none if a name in it would need quotes.
fn path(field: &str) -> Option<String> {
    let first = field.chars().next()?;
    (field.chars().all(is_plain) && !first.is_ascii_digit()).then(|| format!(".{field}"))
}

/// What neither jq nor a shell takes for anything but itself, within single quotes.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '[' | ']')
}

#[cfg(test)]
mod tests {
    use domain::time::Timestamp;

    use super::*;
    use crate::commands::dead_letters_list::tests::row;

    fn suggestion(reason: &str, body: &str) -> Option<Suggestion> {
        let letter =
            DeadLetterRow { reason: reason.to_owned(), body: body.as_bytes().to_vec(), ..row() };
        let validator = Validator { now: Timestamp::EARLIEST, max_body_bytes: 200 };
        suggest(&letter, &validator)
    }

    #[test]
    fn a_role_of_another_system_is_translated() {
        let body = r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","data":{"role":"bot","content":"hi"}}"#;
        let found = suggestion("schema", body).unwrap();
        assert!(found.text.contains("role to \"assistant\""), "{found:?}");
        let command = found.command.unwrap();
        assert!(
            command.contains("role = \"assistant\"'") && command.ends_with("| verbatim publish -")
        );
    }

    #[test]
    fn a_misspelt_action_is_recognised() {
        let body = r#"{"action_type":"conversation.saveMessage","tenant_id":"t","session_id":"s"}"#;
        let found = suggestion("unknown_action", body).unwrap();
        assert!(found.text.starts_with("set action_type to \"conversation.save_message\""));
    }

    #[test]
    fn what_is_accepted_today_is_published_again() {
        let body =
            r#"{"action_type":"conversation.session_opened","tenant_id":"t","session_id":"s"}"#;
        let found = suggestion("schema", body).unwrap();
        assert!(found.command.is_some_and(|command| command.contains("jq -r .body | verbatim")));
        let body = r#"{"action_type":"conversation.erase","tenant_id":"t","session_id":"s"}"#;
        assert_eq!(suggestion("unknown_action", body).unwrap().command, None);
    }

    #[test]
    fn nothing_is_suggested_where_nothing_is_known() {
        assert_eq!(suggestion("malformed_json", "hello"), None);
        assert_eq!(suggestion("a reason of a later version", "hello"), None);
        for (reason, body, words) in [
            ("malformed_json", "[{}]", "each element"),
            ("schema", r#"{"action_type":"conversation.save_message"}"#, "add the field"),
            ("conflict", "{}", "an id of its own"),
            ("expired", "{}", "expiration"),
            ("delivery_limit", "{}", "restarts"),
            ("attempts_exhausted", "{}", "logs"),
            ("too_large", &format!("{:300}", ""), "by reference"),
        ] {
            let found = suggestion(reason, body).unwrap();
            assert!(found.text.contains(words), "{reason}: {found:?}");
        }
    }
}
