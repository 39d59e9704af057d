//! A hot copy as it was read, and the decision whether it may be used.
//!
//! Pure: the same members and numbers give the same decision on every replica. A copy is used only
//! if a marker with exactly the current epoch and generation proves that it has the whole requested
//! window. Everything else is a miss, which costs a read of PostgreSQL and never a message.

use domain::message::{Message, Position};

use crate::encoding::DecodeError;
use crate::marker::{CompleteFrom, CompletenessMarker, Numbers};

/// Which messages to read: the newest ones, or the newest before a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The largest number of messages.
    pub newest: usize,
    /// Only those before this position.
    pub before: Option<Position>,
}

/// The result of one atomic read of a hot copy.
#[derive(Debug, Clone, PartialEq)]
pub struct HotCopy {
    /// The completeness markers that loads wrote.
    pub markers: Vec<CompletenessMarker>,
    /// The messages of the window that the copy has, oldest first, each id once.
    pub messages: Vec<Message>,
    /// Whether the messages fill the window.
    pub extent: Extent,
    /// Why the copy cannot be used, regardless of its markers.
    pub damage: Option<DecodeError>,
}

/// How much of the requested window was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// As many messages as were requested.
    Full,
    /// Fewer: the copy has no older ones.
    Exhausted,
    /// Fewer, although the copy may have more: too many messages have the same time to page by
    /// time.
    CutShort,
}

/// Why a copy was not used. [`Miss::as_str`] is the label in metrics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Miss {
    /// The copy has no marker, or there is no copy.
    #[error("the hot copy has no completeness marker")]
    NoMarker,
    /// It has markers, but none with the current epoch and generation.
    #[error("the hot copy was loaded under an epoch or generation that is no longer current")]
    Outdated,
    /// The window begins before the position from which the copy is complete.
    #[error("the window begins before the position from which the hot copy is complete")]
    BeforeCompleteFrom,
    /// More messages have the same time than are read at once.
    #[error("too many messages of the hot copy have the same time")]
    CutShort,
    /// The copy cannot be decoded.
    #[error(transparent)]
    Damaged(#[from] DecodeError),
}

impl HotCopy {
    /// The position from which the copy is complete: the earliest one of the markers with exactly
    /// these numbers. `None` if there is no such marker.
    #[must_use]
    pub fn complete_from(&self, numbers: Numbers) -> Option<&CompleteFrom> {
        self.markers
            .iter()
            .filter(|marker| marker.numbers == numbers)
            .map(|marker| &marker.complete_from)
            .min()
    }

    /// The messages of the window, oldest first: exactly what PostgreSQL would return.
    ///
    /// # Errors
    /// Why the copy must not be used.
    pub fn usable(self, numbers: Numbers) -> Result<Vec<Message>, Miss> {
        if let Some(damage) = self.damage {
            return Err(Miss::Damaged(damage));
        }
        let Some(complete_from) = self.complete_from(numbers).cloned() else {
            return Err(if self.markers.is_empty() { Miss::NoMarker } else { Miss::Outdated });
        };
        // The copy may contain a row before `complete_from` that was appended late; the rows around
        // it may be missing.
        let oldest_is_covered =
            self.messages.first().is_none_or(|message| complete_from.covers(&message.position()));
        match self.extent {
            Extent::CutShort => Err(Miss::CutShort),
            Extent::Full if oldest_is_covered => Ok(self.messages),
            Extent::Exhausted if complete_from == CompleteFrom::Beginning => Ok(self.messages),
            Extent::Full | Extent::Exhausted => Err(Miss::BeforeCompleteFrom),
        }
    }
}

impl Miss {
    /// The label in metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NoMarker => "no_marker",
            Self::Outdated => "outdated",
            Self::BeforeCompleteFrom => "before_complete_from",
            Self::CutShort => "cut_short",
            Self::Damaged(_) => "damaged",
        }
    }
}

/// Sorts messages and removes repetitions. Two different messages with the same id are an error:
/// only one of them can be the committed row.
pub(crate) fn in_order(mut messages: Vec<Message>) -> Result<Vec<Message>, DecodeError> {
    messages.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    messages.dedup();
    let ids: std::collections::HashSet<_> = messages.iter().map(|message| &message.id).collect();
    if ids.len() < messages.len() {
        return Err(DecodeError::TwoOfOneId);
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{message, position};

    const NOW: Numbers = Numbers { epoch: 7, generation: 8 };

    fn copy(markers: Vec<CompletenessMarker>, extent: Extent) -> HotCopy {
        let messages = vec![message("a", 10), message("b", 20)];
        HotCopy { markers, messages, extent, damage: None }
    }

    fn marker(numbers: Numbers, complete_from: CompleteFrom) -> CompletenessMarker {
        CompletenessMarker { numbers, complete_from }
    }

    #[test]
    fn a_copy_without_a_marker_is_never_complete() {
        for extent in [Extent::Full, Extent::Exhausted, Extent::CutShort] {
            assert_eq!(copy(vec![], extent).usable(NOW), Err(Miss::NoMarker));
        }
    }

    #[test]
    fn a_marker_with_another_number_is_not_accepted() {
        for other in [Numbers { epoch: 1, ..NOW }, Numbers { generation: 1, ..NOW }] {
            let copy = copy(vec![marker(other, CompleteFrom::Beginning)], Extent::Full);
            assert_eq!(copy.complete_from(NOW), None);
            assert_eq!(copy.usable(NOW), Err(Miss::Outdated));
        }
    }

    #[test]
    fn the_earliest_complete_from_of_the_current_markers_counts() {
        let old = Numbers { epoch: 1, generation: 1 };
        let copy = copy(
            vec![
                marker(NOW, CompleteFrom::At(position("b", 20))),
                marker(NOW, CompleteFrom::At(position("a", 10))),
                marker(old, CompleteFrom::Beginning),
            ],
            Extent::Full,
        );
        assert_eq!(copy.complete_from(NOW), Some(&CompleteFrom::At(position("a", 10))));
    }

    #[test]
    fn nothing_before_complete_from_is_used() {
        let markers = vec![marker(NOW, CompleteFrom::At(position("b", 20)))];
        assert_eq!(copy(markers, Extent::Full).usable(NOW), Err(Miss::BeforeCompleteFrom));
        let markers = vec![marker(NOW, CompleteFrom::At(position("a", 10)))];
        assert_eq!(copy(markers, Extent::Full).usable(NOW).map(|all| all.len()), Ok(2));
    }

    #[test]
    fn an_exhausted_copy_is_used_only_if_it_is_complete_from_the_beginning() {
        let markers = vec![marker(NOW, CompleteFrom::At(position("a", 10)))];
        assert_eq!(copy(markers, Extent::Exhausted).usable(NOW), Err(Miss::BeforeCompleteFrom));
        let markers = vec![marker(NOW, CompleteFrom::Beginning)];
        assert_eq!(copy(markers, Extent::Exhausted).usable(NOW).map(|all| all.len()), Ok(2));
    }

    #[test]
    fn an_empty_copy_with_a_marker_of_the_beginning_is_an_empty_conversation() {
        let empty = HotCopy {
            markers: vec![marker(NOW, CompleteFrom::Beginning)],
            messages: vec![],
            extent: Extent::Exhausted,
            damage: None,
        };
        assert_eq!(empty.usable(NOW), Ok(vec![]));
    }

    #[test]
    fn a_window_that_was_cut_short_is_a_miss() {
        let markers = vec![marker(NOW, CompleteFrom::Beginning)];
        assert_eq!(copy(markers, Extent::CutShort).usable(NOW), Err(Miss::CutShort));
    }

    #[test]
    fn a_damaged_copy_is_a_miss() {
        let mut copy = copy(vec![marker(NOW, CompleteFrom::Beginning)], Extent::Full);
        copy.damage = Some(DecodeError::CutOff);
        assert_eq!(copy.usable(NOW), Err(Miss::Damaged(DecodeError::CutOff)));
    }

    #[test]
    fn one_message_in_two_encodings_is_one_message() {
        let twice = vec![message("b", 20), message("a", 10), message("b", 20)];
        assert_eq!(in_order(twice), Ok(vec![message("a", 10), message("b", 20)]));
    }

    #[test]
    fn two_messages_of_one_id_are_damage() {
        assert_eq!(
            in_order(vec![message("a", 10), message("b", 15), message("a", 20)]),
            Err(DecodeError::TwoOfOneId)
        );
    }
}
