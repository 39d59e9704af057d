//! The fleet headers: the `x-verbatim-*` headers, which carry the state of a message from copy to copy.
//!
//! A retry, a suspect, a dead letter and a replay are copies. Everything that a copy must keep is in these
//! headers. Headers that others set are not copied as such: a copied `x-death` makes a retry queue drop the
//! message silently (RabbitMQ takes it for a cycle), and a copied `CC` routes it to further queues. One fleet
//! header has all of them ([`SenderFields`](crate::SenderFields)).
//!
//! Invariant: fleet headers that are written and read back are equal.

use domain::envelope::Resolved;
use domain::failure::{DeadLetterReason, Refusal};
use domain::ids::{ConversationId, MessageId};
use domain::time::Timestamp;
use serde_json::{Map, Value};
use uuid::Uuid;

/// The state that a message carries from copy to copy. A first attempt has the
/// [default](FleetHeaders::default).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetHeaders {
    /// The identity that an earlier attempt resolved.
    pub resolved: Option<Resolved>,
    /// The number of the next attempt, from 1.
    pub attempt: u32,
    /// The failed attempts so far.
    pub history: History,
    /// The exchange and routing key of the first publish.
    pub origin: Option<Origin>,
    /// The original had no `message_id` property. That of the copy was generated and does not identify
    /// the message.
    pub anonymous: bool,
    /// The `user_id` property of the original, which RabbitMQ validated against the connection's user.
    pub validated_user: Option<String>,
    /// It was in a queue that is not the queue of its action, and was sent on to `domain.unrouted`. Not a second time:
    /// workers of two versions may disagree about the queue of an action.
    pub rerouted: bool,
    /// In a slow queue: which of the longer time limits it gets, from 1.
    pub slow_level: u32,
    /// How often an operator replayed it from the dead letters.
    pub replay_count: u32,
    /// The id of the dead letter that was last replayed.
    pub replay_of: Option<Uuid>,
    /// Why it is a dead letter, if it is one.
    pub dead_letter_info: Option<DeadLetterInfo>,
    /// Its id as a dead letter, if it is one.
    pub dead_letter: Option<Uuid>,
}

/// The failed attempts of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// The errors of the last eight failed attempts, the oldest first.
    pub reasons: Vec<String>,
    /// When the first attempt failed.
    pub first_failed_at: Option<Timestamp>,
    /// When the last attempt failed.
    pub last_failed_at: Option<Timestamp>,
}

/// The exchange and routing key to which a message was first published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
}

/// Why a message became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterInfo {
    /// The queue from which it was dead-lettered.
    pub queue: String,
    /// The reason, the field at fault and the detail.
    pub refusal: Refusal,
    /// RabbitMQ dead-lettered it, so no worker has replied to its sender.
    pub by_rabbitmq: bool,
}

/// The longest text that a header takes, in bytes. Headers travel in a single frame of at most
/// 128 KiB (RabbitMQ's `frame_max`), together with all other fleet headers.
const MAX_TEXT_BYTES: usize = 2048;
/// How many errors the history keeps, the newest. There are three retries by default; only queues that
/// retry for ever reach this limit.
const MAX_REASONS: usize = 8;

const PREFIX: &str = "x-verbatim-";
const ID: &str = "x-verbatim-id";
const CONVERSATION: &str = "x-verbatim-conversation";
const TIMESTAMP: &str = "x-verbatim-timestamp-us";
const RECEIVED: &str = "x-verbatim-received-us";
const ATTEMPT: &str = "x-verbatim-attempt";
const REASONS: &str = "x-verbatim-reasons";
const FIRST_FAILED: &str = "x-verbatim-first-failed-us";
const LAST_FAILED: &str = "x-verbatim-last-failed-us";
const EXCHANGE: &str = "x-verbatim-exchange";
const ROUTING_KEY: &str = "x-verbatim-routing-key";
const ANONYMOUS: &str = "x-verbatim-anonymous";
const USER: &str = "x-verbatim-user";
const REROUTED: &str = "x-verbatim-rerouted";
const SLOW_LEVEL: &str = "x-verbatim-slow-level";
const REPLAYS: &str = "x-verbatim-replays";
const REPLAY_OF: &str = "x-verbatim-replay-of";
const INFO_QUEUE: &str = "x-verbatim-queue";
const INFO_REASON: &str = "x-verbatim-reason";
const INFO_FIELD: &str = "x-verbatim-field";
const INFO_DETAIL: &str = "x-verbatim-detail";
const INFO_BY_RABBITMQ: &str = "x-verbatim-by-rabbitmq";
const DEAD_LETTER: &str = "x-verbatim-dead-letter";
/// The header with what the sender of the message set. It is read only where that is needed.
pub(crate) const SENT: &str = "x-verbatim-sent";
/// The header of a copy that says how many bytes of its body are what the client library could not read of the
/// message ([`RawMessage`](crate::raw_message::RawMessage)).
pub(crate) const RAW_BYTES: &str = "x-verbatim-raw-bytes";

pub(crate) static FIRST_ATTEMPT: FleetHeaders = FleetHeaders {
    resolved: None,
    attempt: 1,
    history: History { reasons: Vec::new(), first_failed_at: None, last_failed_at: None },
    origin: None,
    anonymous: false,
    validated_user: None,
    rerouted: false,
    slow_level: 0,
    replay_count: 0,
    replay_of: None,
    dead_letter_info: None,
    dead_letter: None,
};

impl Default for FleetHeaders {
    fn default() -> Self {
        FIRST_ATTEMPT.clone()
    }
}

impl FleetHeaders {
    /// Whether a header is one of ours.
    #[must_use]
    pub fn owns(header: &str) -> bool {
        header.starts_with(PREFIX)
    }

    /// The fleet headers of a copy that is no dead letter, and is in no slow queue.
    #[must_use]
    pub fn not_dead_lettered(self) -> Self {
        Self { dead_letter_info: None, dead_letter: None, slow_level: 0, ..self }
    }

    /// The fleet headers of a replay of this dead letter: identity and origin stay; attempts, history, whether it
    /// was rerouted, the dead-letter info and its id are reset.
    #[must_use]
    pub fn replayed(self, dead_letter: Uuid) -> Self {
        Self {
            attempt: 1,
            history: History::default(),
            rerouted: false,
            replay_count: self.replay_count.saturating_add(1),
            replay_of: Some(dead_letter),
            ..self.not_dead_lettered()
        }
    }

    /// The headers as JSON; this is also the form in which dead letters are stored.
    #[must_use]
    pub fn to_headers(&self) -> Map<String, Value> {
        let text = |text: &str| Some(Value::from(shortened(text)));
        let time = |time: Option<Timestamp>| Some(Value::from(time?.micros()));
        let resolved = self.resolved.as_ref();
        let History { reasons, first_failed_at, last_failed_at } = &self.history;
        let origin = self.origin.as_ref();
        let info = self.dead_letter_info.as_ref();
        let refusal = info.map(|info| &info.refusal);
        let headers = [
            (ID, resolved.and_then(|it| text(it.id.as_str()))),
            (CONVERSATION, resolved.and_then(|it| text(it.conversation.as_str()))),
            (TIMESTAMP, time(resolved.map(|it| it.timestamp))),
            (RECEIVED, time(resolved.map(|it| it.received_at))),
            (ATTEMPT, (self.attempt != 1).then(|| self.attempt.into())),
            (REASONS, (!reasons.is_empty()).then(|| reasons.iter().map(|it| text(it)).collect())),
            (FIRST_FAILED, time(*first_failed_at)),
            (LAST_FAILED, time(*last_failed_at)),
            (EXCHANGE, origin.and_then(|it| text(&it.exchange))),
            (ROUTING_KEY, origin.and_then(|it| text(&it.routing_key))),
            (ANONYMOUS, self.anonymous.then_some(Value::Bool(true))),
            (USER, self.validated_user.as_deref().and_then(text)),
            (REROUTED, self.rerouted.then_some(Value::Bool(true))),
            (SLOW_LEVEL, (self.slow_level != 0).then(|| self.slow_level.into())),
            (REPLAYS, (self.replay_count != 0).then(|| self.replay_count.into())),
            (REPLAY_OF, self.replay_of.map(|id| id.to_string().into())),
            (INFO_QUEUE, info.and_then(|it| text(&it.queue))),
            (INFO_REASON, refusal.and_then(|it| text(it.reason.as_str()))),
            (INFO_FIELD, refusal.and_then(|it| text(it.field.as_deref()?))),
            (INFO_DETAIL, refusal.and_then(|it| text(&it.detail))),
            (INFO_BY_RABBITMQ, info.and_then(|it| it.by_rabbitmq.then_some(Value::Bool(true)))),
            (DEAD_LETTER, self.dead_letter.map(|id| id.to_string().into())),
        ];
        let present = headers.into_iter().filter_map(|(name, value)| Some((name, value?)));
        present.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Reads fleet headers. A header that is missing or invalid counts as absent: the message is then
    /// handled as without that header.
    pub(crate) fn from_headers(headers: &Map<String, Value>) -> Self {
        let text = |name: &str| headers.get(name).and_then(Value::as_str);
        let owned = |name: &str| text(name).map(str::to_owned);
        let count = |name: &str| {
            headers.get(name).and_then(Value::as_u64).and_then(|count| u32::try_from(count).ok())
        };
        let time = |name: &str| {
            headers.get(name).and_then(Value::as_i64).and_then(|t| Timestamp::from_micros(t).ok())
        };
        let uuid = |name: &str| text(name).and_then(|id| Uuid::parse_str(id).ok());
        let resolved = || {
            Some(Resolved {
                id: MessageId::new(text(ID)?).ok()?,
                conversation: ConversationId::new(text(CONVERSATION)?).ok()?,
                timestamp: time(TIMESTAMP)?,
                received_at: time(RECEIVED)?,
            })
        };
        let origin =
            || Some(Origin { exchange: owned(EXCHANGE)?, routing_key: owned(ROUTING_KEY)? });
        let dead_letter_info = || {
            let reason = DeadLetterReason::parse(text(INFO_REASON)?)?;
            let (field, detail) = (owned(INFO_FIELD), owned(INFO_DETAIL)?);
            let refusal = Refusal { reason, hint: None, field, detail };
            let by_rabbitmq = headers.get(INFO_BY_RABBITMQ) == Some(&Value::Bool(true));
            Some(DeadLetterInfo { queue: owned(INFO_QUEUE)?, refusal, by_rabbitmq })
        };
        let reasons = headers.get(REASONS).and_then(Value::as_array).into_iter().flatten();
        Self {
            resolved: resolved(),
            attempt: count(ATTEMPT).unwrap_or(1).max(1),
            history: History {
                reasons: reasons.filter_map(Value::as_str).map(str::to_owned).collect(),
                first_failed_at: time(FIRST_FAILED),
                last_failed_at: time(LAST_FAILED),
            },
            origin: origin(),
            anonymous: headers.get(ANONYMOUS) == Some(&Value::Bool(true)),
            validated_user: owned(USER),
            rerouted: headers.get(REROUTED) == Some(&Value::Bool(true)),
            slow_level: count(SLOW_LEVEL).unwrap_or(0),
            replay_count: count(REPLAYS).unwrap_or(0),
            replay_of: uuid(REPLAY_OF),
            dead_letter_info: dead_letter_info(),
            dead_letter: uuid(DEAD_LETTER),
        }
    }
}

impl History {
    /// Adds a failed attempt, and drops the oldest error when there are eight.
    pub fn record(&mut self, reason: &str, at: Timestamp) {
        if self.reasons.len() >= MAX_REASONS {
            self.reasons.remove(0);
        }
        self.reasons.push(shortened(reason).to_owned());
        self.first_failed_at.get_or_insert(at);
        self.last_failed_at = Some(at);
    }
}

fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> FleetHeaders {
        let at = |micros| Timestamp::from_micros(micros).unwrap();
        let mut history = History::default();
        history.record("the first error", at(3_000_000));
        history.record("the second error", at(4_000_001));
        FleetHeaders {
            resolved: Some(Resolved {
                id: MessageId::new("m-1").unwrap(),
                conversation: ConversationId::new("c:/{}1").unwrap(),
                timestamp: at(1),
                received_at: at(2),
            }),
            attempt: 3,
            history,
            origin: Some(Origin {
                exchange: "domain.actions".to_owned(),
                routing_key: "conversation.save_message".to_owned(),
            }),
            anonymous: true,
            validated_user: Some("agent".to_owned()),
            rerouted: true,
            slow_level: 2,
            replay_count: 2,
            replay_of: Some(Uuid::from_u128(7)),
            dead_letter_info: Some(DeadLetterInfo {
                queue: "conversation.save_message".to_owned(),
                refusal: Refusal {
                    reason: DeadLetterReason::Conflict,
                    hint: None,
                    field: Some("message_id".to_owned()),
                    detail: "taken".to_owned(),
                },
                by_rabbitmq: true,
            }),
            dead_letter: Some(Uuid::from_u128(9)),
        }
    }

    #[test]
    fn fleet_headers_are_read_back_as_written() {
        for fleet_headers in [FleetHeaders::default(), full()] {
            assert_eq!(FleetHeaders::from_headers(&fleet_headers.to_headers()), fleet_headers);
        }
    }

    #[test]
    fn a_replay_keeps_the_identity_and_resets_the_history() {
        let dead_letter = Uuid::from_u128(8);
        let replayed = full().replayed(dead_letter);
        let expected = FleetHeaders {
            attempt: 1,
            history: History::default(),
            rerouted: false,
            slow_level: 0,
            replay_count: 3,
            replay_of: Some(dead_letter),
            dead_letter_info: None,
            dead_letter: None,
            ..full()
        };
        assert_eq!(replayed, expected);
    }

    #[test]
    fn a_first_attempt_needs_no_headers() {
        assert!(FleetHeaders::default().to_headers().is_empty());
    }

    #[test]
    fn every_fleet_header_is_recognised() {
        assert!(full().to_headers().keys().all(|name| FleetHeaders::owns(name)));
        assert!(!FleetHeaders::owns("x-death") && !FleetHeaders::owns("CC"));
    }

    #[test]
    fn an_invalid_header_counts_as_absent() {
        let mut headers = full().to_headers();
        headers.insert(ID.to_owned(), "".into());
        headers.insert(ATTEMPT.to_owned(), "many".into());
        headers.insert(FIRST_FAILED.to_owned(), Value::from(-1));
        let fleet_headers = FleetHeaders::from_headers(&headers);
        assert_eq!((fleet_headers.resolved, fleet_headers.attempt), (None, 1));
        assert_eq!(fleet_headers.history.first_failed_at, None);
    }

    #[test]
    fn long_errors_are_cut_and_the_oldest_are_dropped() {
        let mut history = History::default();
        for n in 0..20 {
            let at = Timestamp::from_micros(n).unwrap();
            history.record(&format!("{n}{}", "ä".repeat(5_000)), at);
        }
        assert_eq!(history.reasons.len(), MAX_REASONS);
        assert!(history.reasons.iter().all(|reason| reason.len() <= MAX_TEXT_BYTES));
        assert!(history.reasons[0].starts_with("12"));
        assert_eq!(history.first_failed_at.map(Timestamp::micros), Some(0));
        assert_eq!(history.last_failed_at.map(Timestamp::micros), Some(19));
    }
}
