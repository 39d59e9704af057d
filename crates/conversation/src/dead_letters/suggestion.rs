//! What would mend a dead letter, where its fault is obvious.

use database::{DeadLetterRow, DeadLetterStatus};
use domain::failure::{DeadLetterReason, Hint};

use super::DeadLetterValidator;

/// What to do about a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suggestion {
    /// In words.
    pub text: String,
    /// What does it.
    pub step: Step,
}

/// What an operator can do about a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Set a field of the copy, then replay it.
    Set {
        /// The field, as [`super::set`] takes it.
        field: String,
        /// The value that was meant.
        value: String,
    },
    /// Replay it as it is.
    Replay,
    /// Nothing with the dead letter alone.
    Think,
}

impl DeadLetterValidator {
    /// What to do about an open dead letter, as far as it can be told from the dead letter alone.
    #[must_use]
    pub fn suggest(&self, dead_letter: &DeadLetterRow) -> Option<Suggestion> {
        if dead_letter.status != DeadLetterStatus::Open {
            return None;
        }
        let reason = DeadLetterReason::parse(&dead_letter.reason)?;
        let edited = dead_letter.edited_body.as_deref();
        if edited.is_some_and(|body| self.decode(dead_letter, body).is_ok()) {
            return suggestion("the workers accept its edited copy: replay it", Step::Replay);
        }
        match reason {
            DeadLetterReason::Schema
            | DeadLetterReason::UnknownAction
            | DeadLetterReason::MalformedJson
            | DeadLetterReason::TooLarge => self.of_its_form(dead_letter, reason),
            DeadLetterReason::Conflict => think(
                "another message has this id and other words; the first one stays. Its sender must \
                 give each message an id of its own. To keep these words too, edit message_id",
            ),
            DeadLetterReason::AttemptsExhausted => suggestion(
                "nobody foresaw this failure: the workers' logs of that time say more. Once its \
                 cause is gone, replay it",
                Step::Replay,
            ),
            DeadLetterReason::DeliveryLimit => think(
                "workers gave it back or died with it again and again: look for restarts in their \
                 logs of that time before you replay it",
            ),
            DeadLetterReason::Expired => {
                think("its sender sets the AMQP property `expiration`; a replay goes without it")
            }
        }
    }

    /// A dead letter whose body is at fault: the validator of this version says whether it still is.
    fn of_its_form(
        &self,
        dead_letter: &DeadLetterRow,
        reason: DeadLetterReason,
    ) -> Option<Suggestion> {
        let Err(refusal) = self.decode(dead_letter, dead_letter.body_to_send()) else {
            return if reason == DeadLetterReason::UnknownAction {
                think(
                    "the action is known, but no worker handles it in this version; keep the dead letter \
                     until one does",
                )
            } else {
                suggestion("the workers of this version accept it: replay it", Step::Replay)
            };
        };
        let field = refusal.field.as_deref().filter(|field| is_plain(field));
        let meant = match &refusal.hint {
            // It becomes part of a command line, where quotes and spaces would be dangerous.
            Some(Hint::DidYouMean(meant)) if is_plain(meant) => field.zip(Some(meant)),
            _ => None,
        };
        if let Some((field, meant)) = meant {
            let text = format!("set {field} to {meant:?}, and mend the sender");
            let step = Step::Set { field: field.to_owned(), value: meant.clone() };
            return suggestion(&text, step);
        }
        match refusal.reason {
            DeadLetterReason::TooLarge => think(
                "send large contents by reference, or raise VERBATIM_MAX_BODY_BYTES for all workers",
            ),
            DeadLetterReason::MalformedJson
                if dead_letter.body.trim_ascii_start().starts_with(b"[") =>
            {
                think("publish each element of the array as an action of its own")
            }
            DeadLetterReason::MalformedJson if dead_letter.body.starts_with(b"\xEF\xBB\xBF") => {
                think("send UTF-8 without a byte order mark")
            }
            DeadLetterReason::Schema if refusal.hint == Some(Hint::AddField) => {
                think("add the field; the wire contract has an example of every action")
            }
            _ => None,
        }
    }
}

fn suggestion(text: &str, step: Step) -> Option<Suggestion> {
    Some(Suggestion { text: text.to_owned(), step })
}

fn think(text: &str) -> Option<Suggestion> {
    suggestion(text, Step::Think)
}

/// Whether a shell takes it for nothing but itself, within single quotes.
fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '[' | ']');
    !text.is_empty() && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::fixtures::dead_letter;

    fn suggested(reason: &str, body: &str) -> Option<Suggestion> {
        let dead_letter = DeadLetterRow { reason: reason.to_owned(), ..dead_letter(body) };
        DeadLetterValidator { max_body_bytes: 200 }.suggest(&dead_letter)
    }

    fn to_set(field: &str, value: &str) -> Step {
        Step::Set { field: field.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn a_role_of_another_system_is_translated() {
        let flat = r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"bot","content":"hi"}"#;
        let nested = r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","data":{"role":"bot","content":"hi"}}"#;
        for body in [flat, nested] {
            let found = suggested("schema", body).unwrap();
            assert!(found.text.contains("role to \"assistant\""), "{found:?}");
            let Step::Set { field, value } = found.step else { panic!("{body}") };
            let mended = crate::dead_letters::set(body.as_bytes(), &field, &value).unwrap();
            assert_eq!(String::from_utf8(mended).unwrap(), body.replace("bot", "assistant"));
        }
    }

    #[test]
    fn a_misspelt_action_is_recognised() {
        let body = r#"{"action_type":"conversation.saveMessage","tenant_id":"t","session_id":"s"}"#;
        let found = suggested("unknown_action", body).unwrap();
        assert_eq!(found.step, to_set("action_type", "conversation.save_message"));
    }

    #[test]
    fn what_is_accepted_today_is_replayed() {
        let body =
            r#"{"action_type":"conversation.session_opened","tenant_id":"t","session_id":"s"}"#;
        assert_eq!(suggested("schema", body).unwrap().step, Step::Replay);
        let erase = r#"{"action_type":"conversation.erase","tenant_id":"t","session_id":"s"}"#;
        assert_eq!(suggested("unknown_action", erase).unwrap().step, Step::Think);
        let edited = DeadLetterRow { edited_body: Some(body.into()), ..dead_letter("{broken") };
        let validator = DeadLetterValidator { max_body_bytes: 200 };
        assert_eq!(validator.suggest(&edited).unwrap().step, Step::Replay);
        let replayed = DeadLetterRow { status: DeadLetterStatus::Replayed, ..edited };
        assert_eq!(validator.suggest(&replayed), None);
    }

    #[test]
    fn nothing_is_suggested_where_nothing_is_known() {
        assert_eq!(suggested("malformed_json", "hello"), None);
        assert_eq!(suggested("a reason of a later version", "hello"), None);
        for (reason, body, words) in [
            ("malformed_json", "[{}]", "each element"),
            ("schema", r#"{"action_type":"conversation.save_message"}"#, "add the field"),
            ("conflict", "{}", "an id of its own"),
            ("expired", "{}", "expiration"),
            ("delivery_limit", "{}", "restarts"),
            ("attempts_exhausted", "{}", "logs"),
            ("too_large", &format!("{:300}", ""), "by reference"),
        ] {
            let found = suggested(reason, body).unwrap();
            assert!(found.text.contains(words), "{reason}: {found:?}");
        }
    }
}
