//! The members with score −∞ in a hot copy: completeness markers and load tokens.
//!
//! | member | meaning | bytes |
//! |---|---|---|
//! | completeness marker (short: marker) | the copy is complete from this position on, loaded under these two numbers | see [`CompletenessMarker::encode`] |
//! | load token | a load is running | byte 2, a nonce of 16 bytes, milliseconds in decimal; written by `begin_load.lua` |
//!
//! They are members of the same key as the rows, so they are removed with it: no marker can outlive
//! its rows. They begin with a control character, which no id contains, so they never equal a
//! message.

use domain::ids::MessageId;
use domain::message::Position;
use domain::time::Timestamp;

/// The first byte of a marker; the second is its format.
const MARKER: u8 = 1;
/// The format of markers that this code writes.
const FORMAT: u8 = 1;

/// The two random numbers under which a copy was loaded. One of them is changed in PostgreSQL
/// whenever a copy may lack a row. A copy is valid only while both are current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Numbers {
    /// `hot_epoch`: one for all conversations; changed when the Redis server changes, or PostgreSQL lost
    /// commits.
    pub epoch: i64,
    /// `hot_generation`: one for each conversation; changed when an append to its copy may have
    /// failed.
    pub generation: i64,
}

/// The position from which a copy is complete. The beginning sorts first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CompleteFrom {
    /// The copy has the whole conversation.
    Beginning,
    /// The copy has every message at this position and after it.
    At(Position),
}

/// Proof that a copy is complete, written by the load that filled it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CompletenessMarker {
    /// The numbers as they were when the rows were read.
    pub numbers: Numbers,
    /// The position from which the copy is complete.
    pub complete_from: CompleteFrom,
}

impl CompleteFrom {
    /// Whether a position is in the complete part of the copy.
    #[must_use]
    pub fn covers(&self, position: &Position) -> bool {
        match self {
            Self::Beginning => true,
            Self::At(complete_from) => position >= complete_from,
        }
    }
}

impl CompletenessMarker {
    /// The member: byte 1, format, epoch, generation (big endian); then nothing for the beginning,
    /// else the position's microseconds (big endian) and id.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut member = vec![MARKER, FORMAT];
        member.extend_from_slice(&self.numbers.epoch.to_be_bytes());
        member.extend_from_slice(&self.numbers.generation.to_be_bytes());
        if let CompleteFrom::At(position) = &self.complete_from {
            member.extend_from_slice(&position.created_at.micros().to_be_bytes());
            member.extend_from_slice(position.id.as_str().as_bytes());
        }
        member
    }

    /// The marker in a member, or `None` for a load token, a marker of a later format or any other
    /// bytes. Ignoring an unknown member is always safe: it only makes the copy unusable.
    pub(crate) fn decode(member: &[u8]) -> Option<Self> {
        let rest = member.strip_prefix(&[MARKER, FORMAT])?;
        let (epoch, rest) = rest.split_first_chunk::<8>()?;
        let (generation, rest) = rest.split_first_chunk::<8>()?;
        let numbers = Numbers {
            epoch: i64::from_be_bytes(*epoch),
            generation: i64::from_be_bytes(*generation),
        };
        if rest.is_empty() {
            return Some(Self { numbers, complete_from: CompleteFrom::Beginning });
        }
        let (micros, id) = rest.split_first_chunk::<8>()?;
        let created_at = Timestamp::from_micros(i64::from_be_bytes(*micros)).ok()?;
        let id = MessageId::new(std::str::from_utf8(id).ok()?).ok()?;
        Some(Self { numbers, complete_from: CompleteFrom::At(Position { created_at, id }) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(micros: i64, id: &str) -> CompleteFrom {
        CompleteFrom::At(Position {
            created_at: Timestamp::from_micros(micros).unwrap(),
            id: MessageId::new(id).unwrap(),
        })
    }

    #[test]
    fn the_stored_markers_decode_for_ever() {
        let numbers = Numbers { epoch: 0x0102_0304_0506_0708, generation: -2 };
        for (bytes, complete_from) in [
            (&include_bytes!("../fixtures/marker-v1-beginning.bin")[..], CompleteFrom::Beginning),
            (
                &include_bytes!("../fixtures/marker-v1-complete-from.bin")[..],
                at(1_700_000_000_123_456, "größe/1"),
            ),
        ] {
            let marker = CompletenessMarker { numbers, complete_from };
            assert_eq!(CompletenessMarker::decode(bytes), Some(marker.clone()));
            assert_eq!(marker.encode(), bytes);
        }
    }

    #[test]
    fn a_load_token_is_not_a_marker() {
        assert_eq!(
            CompletenessMarker::decode(include_bytes!("../fixtures/load-token-v1.bin")),
            None
        );
    }

    #[test]
    fn a_marker_of_an_unknown_format_is_ignored() {
        let mut member = CompletenessMarker {
            numbers: Numbers { epoch: 1, generation: 2 },
            complete_from: CompleteFrom::Beginning,
        }
        .encode();
        member[1] = 2;
        assert_eq!(CompletenessMarker::decode(&member), None);
    }

    #[test]
    fn the_beginning_is_before_every_position() {
        assert!(CompleteFrom::Beginning < at(0, " "));
        assert!(at(1, "a") < at(1, "b"));
        assert!(at(1, "b") < at(2, "a"));
    }

    proptest! {
        #[test]
        fn any_marker_is_decoded_as_it_was_encoded(
            epoch: i64, generation: i64,
            complete_from in proptest::option::of((0..7_258_118_400_000_000i64, "[^\\p{Cc}]{1,32}")),
        ) {
            let complete_from = complete_from.map_or(CompleteFrom::Beginning, |(micros, id)| at(micros, &id));
            let marker = CompletenessMarker { numbers: Numbers { epoch, generation }, complete_from };
            prop_assert_eq!(CompletenessMarker::decode(&marker.encode()), Some(marker));
        }

        #[test]
        fn no_bytes_make_decoding_panic(member: Vec<u8>) {
            let decoded = CompletenessMarker::decode(&member);
            prop_assert_eq!(decoded.map(|marker| marker.encode()).unwrap_or(member.clone()), member);
        }
    }
}
