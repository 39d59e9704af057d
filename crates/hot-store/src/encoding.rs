//! The encoding of a message in Redis: id, NUL, format byte, JSON.
//!
//! Redis sorts members of equal score by their bytes. The id comes first and ends with NUL, the
//! lowest byte. So the order of members is the order of ids, even if one id is a prefix of another.
//!
//! The bytes are a pure function of the committed row: appending a row twice, from any process,
//! gives one member. Every format that was ever written must be decoded for ever (see `fixtures/`);
//! a new format gets a new byte.

use domain::ids::{AgentId, InvalidId, MessageId, UserId};
use domain::json::{Json, Object};
use domain::message::{Content, Details, Message, Role};
use domain::time::{InvalidTimestamp, Timestamp};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// JSON of [`Stored`] without the fields of [`Details`].
const FORMAT: u8 = 1;

/// JSON of [`Stored`] with some of them.
const FORMAT_WITH_DETAILS: u8 = 2;

/// Why a member is not a message. A copy with such a member is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There is no NUL after the id, or nothing after the NUL.
    #[error("a member of the hot copy is truncated")]
    CutOff,
    /// The id is invalid.
    #[error("a member of the hot copy has an id that {0}")]
    Id(#[from] InvalidId),
    /// The id is not UTF-8.
    #[error("a member of the hot copy has an id that is not UTF-8")]
    IdNotText,
    /// The score is not a valid time.
    #[error("a member of the hot copy has a score that is not a valid time: {0}")]
    Score(String),
    /// A stored time is invalid.
    #[error("a member of the hot copy has an invalid time: {0}")]
    Time(#[from] InvalidTimestamp),
    /// A later version of this code wrote it.
    #[error("a member of the hot copy has the unknown format {0}")]
    Format(u8),
    /// The JSON does not match the format. The text is not shown: it may contain message content.
    #[error("a member of the hot copy has invalid JSON at column {column}")]
    Json {
        /// The column at which the parser stopped.
        column: usize,
    },
    /// The key is not a sorted set.
    #[error("the hot copy is not a sorted set")]
    NotASortedSet,
    /// Two members have one id and differ.
    #[error("the hot copy has two different messages with the same id")]
    TwoOfOneId,
}

/// Formats 1 and 2. Names are short because they are stored with every message. An additional field
/// requires a new format: a reader that ignores it would return less than was saved.
///
/// [`encode`] writes the fields in this order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(rename = "r")]
    role: Role,
    /// The text; if there are parts, the text of the text parts.
    #[serde(rename = "c")]
    text: String,
    #[serde(rename = "p", default, deserialize_with = "present")]
    parts: Option<Json>,
    #[serde(rename = "tc", default, deserialize_with = "present")]
    tool_calls: Option<Json>,
    #[serde(rename = "ti")]
    tool_call_id: Option<String>,
    #[serde(rename = "te")]
    tokens_estimate: Option<i64>,
    #[serde(rename = "u")]
    user_id: Option<String>,
    #[serde(rename = "a")]
    agent_id: Option<String>,
    #[serde(rename = "m")]
    model_name: Option<String>,
    #[serde(rename = "pt", default, deserialize_with = "exact")]
    processing_time_ms: Option<f64>,
    /// Microseconds since 1970.
    #[serde(rename = "ra")]
    received_at: i64,
    #[serde(rename = "md", default, deserialize_with = "present")]
    metadata: Option<Json>,
    #[serde(rename = "it", default, deserialize_with = "present")]
    item: Option<Json>,
    #[serde(rename = "us", default, deserialize_with = "present")]
    usage: Option<Json>,
    #[serde(rename = "fr")]
    finish_reason: Option<String>,
    #[serde(rename = "ri")]
    response_id: Option<String>,
    #[serde(rename = "pm")]
    parent_message_id: Option<String>,
    #[serde(rename = "ch")]
    context_hash: Option<String>,
}

/// Appends the member of a message to a buffer. A processing time that is not finite is left out;
/// no decoded message has one.
pub(crate) fn encode(message: &Message, member: &mut Vec<u8>) {
    // Destructured, so that a new field of a message causes a compile error here.
    let Message {
        id,
        role,
        content,
        tool_calls,
        tool_call_id,
        tokens_estimate,
        user_id,
        agent_id,
        model_name,
        processing_time_ms,
        created_at: _, // the score
        received_at,
        metadata,
        details,
    } = message;
    member.extend_from_slice(id.as_str().as_bytes());
    let format = if details.is_some() { FORMAT_WITH_DETAILS } else { FORMAT };
    member.extend_from_slice(&[0, format]);
    let mut stored = Object::begin(member);
    stored.text("r", role.as_str());
    stored.text("c", content.text());
    stored.json("p", content.parts());
    stored.json("tc", tool_calls.as_ref());
    stored.text("ti", tool_call_id.as_deref());
    stored.number("te", *tokens_estimate);
    stored.text("u", user_id.as_ref().map(UserId::as_str));
    stored.text("a", agent_id.as_ref().map(AgentId::as_str));
    stored.text("m", model_name.as_deref());
    stored.number("pt", processing_time_ms.filter(|time| time.is_finite()));
    stored.number("ra", Some(received_at.micros()));
    stored.json("md", metadata.as_ref());
    if let Some(details) = details {
        let Details { item, usage, finish_reason, response_id, parent_message_id, context_hash } =
            &**details;
        stored.json("it", item.as_ref());
        stored.json("us", usage.as_ref());
        stored.text("fr", finish_reason.as_deref());
        stored.text("ri", response_id.as_deref());
        stored.text("pm", parent_message_id.as_ref().map(MessageId::as_str));
        stored.text("ch", context_hash.as_deref());
    }
    stored.end();
}

/// The message in a member, with its score as its time.
pub(crate) fn decode(member: &[u8], score: f64) -> Result<Message, DecodeError> {
    let end = member.iter().position(|&byte| byte == 0).ok_or(DecodeError::CutOff)?;
    let (id, rest) = member.split_at(end);
    let id = std::str::from_utf8(id).map_err(|_| DecodeError::IdNotText)?;
    let id = MessageId::new(id)?;
    let created_at = time_of(score)?;
    match rest {
        [0, FORMAT, json @ ..] => {
            let message = decode_json(id, created_at, json)?;
            // A format has the fields that it was defined with.
            if message.details.is_some() {
                Err(DecodeError::Json { column: 0 })
            } else {
                Ok(message)
            }
        }
        [0, FORMAT_WITH_DETAILS, json @ ..] => decode_json(id, created_at, json),
        [0, format, ..] => Err(DecodeError::Format(*format)),
        _ => Err(DecodeError::CutOff),
    }
}

fn decode_json(id: MessageId, created_at: Timestamp, json: &[u8]) -> Result<Message, DecodeError> {
    let stored: Stored = serde_json::from_slice(json)
        .map_err(|error| DecodeError::Json { column: error.column() })?;
    Ok(Message {
        id,
        role: stored.role,
        content: match stored.parts {
            Some(json) => Content::Parts { json, text: stored.text },
            None => Content::Text(stored.text),
        },
        tool_calls: stored.tool_calls,
        tool_call_id: stored.tool_call_id,
        tokens_estimate: stored.tokens_estimate,
        user_id: stored.user_id.map(UserId::new).transpose()?,
        agent_id: stored.agent_id.map(AgentId::new).transpose()?,
        model_name: stored.model_name,
        processing_time_ms: stored.processing_time_ms,
        created_at,
        received_at: Timestamp::from_micros(stored.received_at)?,
        metadata: stored.metadata,
        details: Details {
            item: stored.item,
            usage: stored.usage,
            finish_reason: stored.finish_reason,
            response_id: stored.response_id,
            parent_message_id: stored.parent_message_id.map(MessageId::new).transpose()?,
            context_hash: stored.context_hash,
        }
        .boxed(),
    })
}

/// The time of a score. Every valid time is a whole number that fits a double exactly.
fn time_of(score: f64) -> Result<Timestamp, DecodeError> {
    let bad = || DecodeError::Score(score.to_string());
    if score.fract() != 0.0 {
        return Err(bad());
    }
    #[expect(clippy::cast_possible_truncation, reason = "saturates; the range is checked next")]
    Timestamp::from_micros(score as i64).map_err(|_| bad())
}

/// A present field with the value `null` stays `null`: `Option` alone would read it as absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

/// Reads a double exactly: serde_json may differ by one unit in the last place.
fn exact<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let text = <&RawValue>::deserialize(deserializer)?;
    text.get().parse().map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::{any_message, full_message, message, message_with_details};

    fn encoded(message: &Message) -> Vec<u8> {
        let mut member = Vec::new();
        encode(message, &mut member);
        member
    }

    #[expect(clippy::cast_precision_loss, reason = "every valid time is an exact double")]
    fn score(message: &Message) -> f64 {
        message.created_at.micros() as f64
    }

    #[test]
    fn the_stored_members_decode_for_ever() {
        for (stored, expected) in [
            (
                &include_bytes!("../fixtures/message-v1-plain.bin")[..],
                message("m-1", 1_700_000_000_000_001),
            ),
            (&include_bytes!("../fixtures/message-v1-full.bin")[..], full_message()),
            (&include_bytes!("../fixtures/message-v2-details.bin")[..], message_with_details()),
        ] {
            assert_eq!(decode(stored, score(&expected)), Ok(expected.clone()));
            assert_eq!(
                String::from_utf8_lossy(&encoded(&expected)),
                String::from_utf8_lossy(stored)
            );
        }
    }

    #[test]
    fn json_is_kept_byte_for_byte_and_null_stays_null() {
        let mut original = message("m", 5);
        original.metadata = Some(Json::parse("null".to_owned()).unwrap());
        let item = Some(Json::parse(" null".to_owned()).unwrap());
        original.details = Details { item, ..Details::default() }.boxed();
        original.tool_calls =
            Some(Json::parse("[ 1.0 ,\n {\"b\":1,\"a\":1e2} ]".to_owned()).unwrap());
        assert_eq!(decode(&encoded(&original), 5.0), Ok(original));
    }

    #[test]
    fn a_damaged_member_is_a_typed_error() {
        let good = encoded(&message("m", 5));
        for (member, error) in [
            (&b""[..], DecodeError::CutOff),
            (b"m", DecodeError::CutOff),
            (b"m\0", DecodeError::CutOff),
            (b"\0\x01{}", DecodeError::Id(InvalidId::Empty)),
            (b"\xff\0\x01{}", DecodeError::IdNotText),
            (b"m\0\x03{}", DecodeError::Format(3)),
            (
                b"m\0\x01{\"r\":\"user\",\"c\":\"\",\"ra\":1,\"fr\":\"stop\"}",
                DecodeError::Json { column: 0 },
            ),
            (b"m\0\x01{}", DecodeError::Json { column: 2 }),
            (&good[..good.len() - 1], DecodeError::Json { column: good.len() - 4 }),
        ] {
            assert_eq!(decode(member, 5.0), Err(error), "{member:?}");
        }
        for score in [f64::NEG_INFINITY, f64::NAN, -1.0, 0.5, 1e300] {
            assert!(matches!(decode(&good, score), Err(DecodeError::Score(_))), "{score}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused_rather_than_lost() {
        let member = b"m\0\x01{\"r\":\"user\",\"c\":\"\",\"ra\":1,\"new\":1}";
        assert!(matches!(decode(member, 5.0), Err(DecodeError::Json { .. })));
    }

    #[test]
    fn members_sort_as_their_ids_do() {
        let mut ids = ["a", "ab", "a b", "a!", "A", "é", "z", "aé", "a\u{10ffff}", "😀"];
        ids.sort_unstable();
        let members = ids.map(|id| encoded(&message(id, 1)));
        assert!(members.is_sorted(), "{members:?}");
    }

    proptest! {
        #[test]
        fn any_message_is_decoded_as_it_was_and_encoded_to_the_same_bytes(original in any_message()) {
            let member = encoded(&original);
            let back = decode(&member, score(&original)).unwrap();
            prop_assert_eq!(&back, &original);
            prop_assert_eq!(encoded(&back), member);
        }

        #[test]
        fn the_order_of_members_is_the_order_of_ids(
            one in "[^\\p{Cc}]{1,8}", other in "[^\\p{Cc}]{1,8}",
        ) {
            let (a, b) = (message(&one, 1), message(&other, 1));
            prop_assert_eq!(
                encoded(&a).cmp(&encoded(&b)),
                if a.id == b.id { std::cmp::Ordering::Equal } else { a.id.cmp(&b.id) }
            );
        }

        #[test]
        fn no_bytes_make_decoding_panic(member: Vec<u8>, json: String, score: f64) {
            let noise = decode(&member, score);
            prop_assert!(noise.is_err() || noise.is_ok());
            let almost = [b"m\0\x01", json.as_bytes()].concat();
            prop_assert!(decode(&almost, 1.0).is_err() || json.contains("\"r\""));
        }
    }
}
