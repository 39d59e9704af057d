//! How to fix a dead letter, where its fault is obvious.

use broker::topology::queue_of;
use database::{DeadLetterDetail, DeadLetterStatus};
use domain::action::ActionKind;
use domain::failure::{DeadLetterReason, Hint};
use domain::fleet::worker_of_action;

use super::DeadLetterValidator;
use super::correction::Correction;

/// What to do about a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suggestion {
    /// The advice, as text.
    pub text: String,
    /// The step that carries it out.
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
    /// Correct the body of the copy, then replay it.
    Correct(Correction),
    /// Replay it as it is.
    Replay,
    /// Something that no command does, such as changing the sender.
    Manual,
}

impl DeadLetterValidator {
    /// What to do about an open dead letter, as far as the dead letter alone shows it.
    #[must_use]
    pub fn suggest(&self, detail: &DeadLetterDetail) -> Option<Suggestion> {
        if detail.state.status != DeadLetterStatus::Open {
            return None;
        }
        let reason = DeadLetterReason::parse(&detail.dead_letter.reason)?;
        // Which tenants its user may name is a setting of the workers.
        let is_decidable = reason != DeadLetterReason::Forbidden;
        let edited = detail.edit.edited_body.as_deref().filter(|_| is_decidable);
        if edited.is_some_and(|body| self.decode(detail, body).is_ok()) {
            return suggestion("the workers accept its edited copy: replay it", Step::Replay);
        }
        match reason {
            DeadLetterReason::Schema
            | DeadLetterReason::UnknownAction
            | DeadLetterReason::MalformedJson
            | DeadLetterReason::TooLarge => self.for_body(detail, reason),
            DeadLetterReason::Conflict => manual(
                "another message with this id and different content is stored, and stays. The sender \
                 must give each message its own id. To store this content too, edit message_id and replay",
            ),
            DeadLetterReason::AttemptsExhausted => suggestion(
                "this failure has no known class: see the workers' logs of that time. When its cause \
                 is fixed, replay the dead letter",
                Step::Replay,
            ),
            DeadLetterReason::DeliveryLimit => manual(
                "it was redelivered too often, because workers requeued it or crashed: look for restarts in \
                 their logs of that time before you replay it",
            ),
            DeadLetterReason::Unreadable => manual(
                "its sender must set AMQP properties and headers that are UTF-8 and nested at most 32 levels deep. \
                 A replay is sent without the properties that cannot be read; `--json` shows their bytes",
            ),
            DeadLetterReason::Expired => manual(
                "its sender sets the AMQP property `expiration`; a replay is sent without it",
            ),
            DeadLetterReason::Forbidden => manual(
                "if its AMQP user may send for this tenant: add the tenant to `amqp_users` of all workers, restart \
                 them, and replay it. A replay has the user of the original. Without a user it cannot be replayed: its \
                 sender sends it again with the property `user_id`, or you publish its body with `verbatim publish`",
            ),
        }
    }

    /// For a dead letter that was refused because of its body: whether this version still refuses it, and how
    /// to fix it.
    fn for_body(&self, detail: &DeadLetterDetail, reason: DeadLetterReason) -> Option<Suggestion> {
        let refusal = match self.decode(detail, detail.body_to_send()) {
            Err(refusal) => refusal,
            Ok(action) if reason == DeadLetterReason::UnknownAction => {
                return for_known_action(action.kind(), &detail.dead_letter.queue);
            }
            Ok(_) => {
                return suggestion(
                    "the workers of this version accept it: replay it",
                    Step::Replay,
                );
            }
        };
        if let (Some(field), Some(Hint::DidYouMean(meant))) = (&refusal.field, &refusal.hint) {
            let text = format!("set {field} to {meant:?}, and fix the sender");
            let step = Step::Set { field: field.clone(), value: meant.clone() };
            return suggestion(&text, step);
        }
        match refusal.hint {
            Some(Hint::ToUtf8) => {
                let text =
                    "convert the body to UTF-8 without a byte order mark, and fix the sender";
                return suggestion(text, Step::Correct(Correction::ToUtf8));
            }
            Some(Hint::ReplaceUnstorable) => {
                let text = if refusal.reason == DeadLetterReason::MalformedJson {
                    "replace each NaN and Infinity, which JSON does not have, by null"
                } else {
                    "replace each U+0000 and each half of a surrogate pair by U+FFFD, the replacement \
                     character; --replace-unstorable=TEXT takes another text"
                };
                let correction = Correction::ReplaceUnstorable("\u{fffd}".to_owned());
                return suggestion(text, Step::Correct(correction));
            }
            Some(Hint::DidYouMean(_) | Hint::AddField) | None => {}
        }
        match refusal.reason {
            DeadLetterReason::TooLarge => manual(
                "send large contents by reference, or raise VERBATIM_MAX_BODY_BYTES for all workers",
            ),
            DeadLetterReason::MalformedJson
                if detail.message.body.trim_ascii_start().starts_with(b"[")
                    && !refusal.detail.contains("Celery") =>
            {
                manual("publish each element of the array as an action of its own")
            }
            DeadLetterReason::Schema if refusal.hint == Some(Hint::AddField) => {
                manual("add the field; the wire contract has an example of every action")
            }
            _ => None,
        }
    }
}

fn suggestion(text: &str, step: Step) -> Option<Suggestion> {
    Some(Suggestion { text: text.to_owned(), step })
}

fn manual(text: &str) -> Option<Suggestion> {
    suggestion(text, Step::Manual)
}

/// For an action that the worker of `failed_in` does not handle, although this version knows it.
fn for_known_action(kind: ActionKind, failed_in: &str) -> Option<Suggestion> {
    let queue = queue_of(kind);
    if queue == failed_in || worker_of_action(kind).is_none() {
        return manual(
            "the action is known, but no worker of this version handles it; leave the dead letter open \
             until one does",
        );
    }
    let text =
        format!("it was published to another queue than its own: a replay sends it to {queue}");
    suggestion(&text, Step::Replay)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::dead_letter;

    fn suggested(reason: &str, body: &str) -> Option<Suggestion> {
        let mut detail = dead_letter(body);
        reason.clone_into(&mut detail.dead_letter.reason);
        DeadLetterValidator { max_body_bytes: 200 }.suggest(&detail)
    }

    fn to_set(field: &str, value: &str) -> Step {
        Step::Set { field: field.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn for_a_role_of_another_system_the_right_role_is_suggested() {
        let flat = r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"bot","content":"hi"}"#;
        let nested = r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","data":{"role":"bot","content":"hi"}}"#;
        for body in [flat, nested] {
            let found = suggested("schema", body).unwrap();
            assert!(found.text.contains("role to \"assistant\""), "{found:?}");
            let Step::Set { field, value } = found.step else { panic!("{body}") };
            let edited = crate::set(body.as_bytes(), &field, &value).unwrap();
            assert_eq!(String::from_utf8(edited).unwrap(), body.replace("bot", "assistant"));
        }
    }

    #[test]
    fn no_replay_of_a_forbidden_action_is_suggested_although_it_can_be_decoded() {
        let body = r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"user","content":"hi"}"#;
        let mut detail = dead_letter(body);
        "forbidden".clone_into(&mut detail.dead_letter.reason);
        let validator = DeadLetterValidator { max_body_bytes: 200 };
        for edited in [None, Some(body.replace("hi", "ho").into_bytes())] {
            detail.edit.edited_body = edited;
            let found = validator.suggest(&detail).unwrap();
            assert_eq!(found.step, Step::Manual);
            assert!(found.text.contains("`amqp_users`"), "{found:?}");
        }
    }

    #[test]
    fn for_a_misspelt_action_the_right_name_is_suggested() {
        let body = r#"{"action_type":"conversation.saveMessage","tenant_id":"t","session_id":"s"}"#;
        let found = suggested("unknown_action", body).unwrap();
        assert_eq!(found.step, to_set("action_type", "conversation.save_message"));
    }

    #[test]
    fn for_a_byte_order_mark_and_for_what_cannot_be_stored_a_correction_is_suggested() {
        let start = r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"user","content":"#;
        let step = |reason, body: &str| suggested(reason, body).unwrap().step;
        let marked = format!("\u{feff}{start}\"hi\"}}");
        assert_eq!(step("malformed_json", &marked), Step::Correct(Correction::ToUtf8));
        for content in ["\\u0000", "\\ud83d"] {
            let found = step("schema", &format!("{start}\"{content}\"}}"));
            let correction = Correction::ReplaceUnstorable("\u{fffd}".to_owned());
            assert_eq!(found, Step::Correct(correction), "{content}");
        }
        let celery = r#"[[],{},{"callbacks":null,"errbacks":null}]"#;
        assert_eq!(suggested("malformed_json", celery), None, "no array of actions");
    }

    #[test]
    fn for_a_body_that_is_accepted_now_a_replay_is_suggested() {
        let body =
            r#"{"action_type":"conversation.session_opened","tenant_id":"t","session_id":"s"}"#;
        assert_eq!(suggested("schema", body).unwrap().step, Step::Replay);
        let mut edited = dead_letter("{broken");
        edited.edit.edited_body = Some(body.into());
        let validator = DeadLetterValidator { max_body_bytes: 200 };
        assert_eq!(validator.suggest(&edited).unwrap().step, Step::Replay);
        edited.state.status = DeadLetterStatus::Replayed;
        assert_eq!(validator.suggest(&edited), None);
    }

    #[test]
    fn a_replay_is_suggested_for_an_action_in_the_queue_of_others_and_not_for_one_without_a_worker()
    {
        let step = |action: &str, failed_in: &str| {
            let mut detail = dead_letter(&format!(
                r#"{{"action_type":"{action}","tenant_id":"t","session_id":"s","role":"user","content":"hi"}}"#
            ));
            "unknown_action".clone_into(&mut detail.dead_letter.reason);
            failed_in.clone_into(&mut detail.dead_letter.queue);
            DeadLetterValidator { max_body_bytes: 200 }.suggest(&detail).unwrap().step
        };
        let (saves, sessions) = ("conversation.save_message", "conversation.session");
        assert_eq!(step(saves, sessions), Step::Replay);
        assert_eq!(step("conversation.session_opened", saves), Step::Replay);
        assert_eq!(step("conversation.erase", sessions), Step::Manual);
        assert_eq!(step("conversation.erase", saves), Step::Manual);
        assert_eq!(step("conversation.get_context", saves), Step::Manual, "it would expire");
    }

    #[test]
    fn a_suggestion_is_made_only_for_known_faults() {
        assert_eq!(suggested("malformed_json", "hello"), None);
        assert_eq!(suggested("a reason of a later version", "hello"), None);
        for (reason, body, text) in [
            ("malformed_json", "[{}]", "each element"),
            ("schema", r#"{"action_type":"conversation.save_message"}"#, "add the field"),
            ("conflict", "{}", "its own id"),
            ("expired", "{}", "expiration"),
            ("delivery_limit", "{}", "restarts"),
            ("attempts_exhausted", "{}", "logs"),
            ("too_large", &format!("{:300}", ""), "by reference"),
        ] {
            let found = suggested(reason, body).unwrap();
            assert!(found.text.contains(text), "{reason}: {found:?}");
        }
    }
}
