//! What would mend a dead letter, where its fault is obvious.

use archive::DeadLetterRow;
use domain::failure::DeadLetterReason;

use super::Examiner;

/// What to do about a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suggestion {
    /// In words.
    pub text: String,
    /// What does it.
    pub step: Step,
}

/// What an operator can do about a letter.
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
    /// Nothing with the letter alone.
    Think,
}

impl Examiner {
    /// What to do about a letter, as far as it can be told from the letter alone.
    #[must_use]
    pub fn suggest(&self, letter: &DeadLetterRow) -> Option<Suggestion> {
        let reason = DeadLetterReason::parse(&letter.reason)?;
        let edited = letter.edited_body.as_deref();
        if edited.is_some_and(|body| self.decode(letter, body).is_ok()) {
            return suggestion("the workers accept its edited copy: replay it", Step::Replay);
        }
        match reason {
            DeadLetterReason::Schema
            | DeadLetterReason::UnknownAction
            | DeadLetterReason::MalformedJson
            | DeadLetterReason::TooLarge => self.of_its_form(letter, reason),
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

    /// A letter whose body is at fault: the validator of this version says whether it still is.
    fn of_its_form(&self, letter: &DeadLetterRow, reason: DeadLetterReason) -> Option<Suggestion> {
        let Err(refusal) = self.decode(letter, letter.body_to_send()) else {
            return if reason == DeadLetterReason::UnknownAction {
                think(
                    "the action is known, but no worker handles it in this version; keep the letter \
                     until one does",
                )
            } else {
                suggestion("the workers of this version accept it: replay it", Step::Replay)
            };
        };
        let meant = refusal.detail.rsplit_once("did you mean `").and_then(|(_, rest)| {
            // It becomes part of a command line: whatever a sender wrote must not.
            let meant = rest.strip_suffix("`?").filter(|meant| is_plain(meant))?;
            Some((refusal.field.as_deref().filter(|field| is_plain(field))?, meant))
        });
        if let Some((field, meant)) = meant {
            let text = format!("set {field} to {meant:?}, and mend the sender");
            let step = Step::Set { field: field.to_owned(), value: meant.to_owned() };
            return suggestion(&text, step);
        }
        match refusal.reason {
            DeadLetterReason::TooLarge => think(
                "send large contents by reference, or raise VERBATIM_MAX_BODY_BYTES for all workers",
            ),
            DeadLetterReason::MalformedJson if letter.body.trim_ascii_start().starts_with(b"[") => {
                think("publish each element of the array as an action of its own")
            }
            DeadLetterReason::MalformedJson if letter.body.starts_with(b"\xEF\xBB\xBF") => {
                think("send UTF-8 without a byte order mark")
            }
            DeadLetterReason::Schema if refusal.detail.ends_with(" is missing") => {
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
