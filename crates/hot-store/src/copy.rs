//! What was read from a hot copy, and whether it may be believed.
//!
//! Pure: the same members and numbers give the same verdict on every replica. A copy is believed
//! only where a mark of exactly the current numbers vouches for the whole window that was asked for.
//! All else is a miss, which costs a read of PostgreSQL and never a message.

use domain::message::{Message, Position};

use crate::encoding::DecodeError;
use crate::mark::{Floor, Mark, Numbers};

/// Which messages to read: the newest ones, or the newest before a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// At most so many.
    pub newest: usize,
    /// Only those before this position.
    pub before: Option<Position>,
}

/// One atomic look at a hot copy.
#[derive(Debug, Clone, PartialEq)]
pub struct HotCopy {
    /// What loads stated about the copy.
    pub marks: Vec<Mark>,
    /// The messages of the window that the copy holds, oldest first, each id once.
    pub messages: Vec<Message>,
    /// Whether the window is filled, or goes on below the messages.
    pub extent: Extent,
    /// Why the copy cannot be used whatever its marks say.
    pub damage: Option<DecodeError>,
}

/// How a look at a copy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// As many messages as were asked for.
    Full,
    /// Fewer: the copy holds no older ones.
    Exhausted,
    /// Fewer, although the copy may hold more: too many messages share one time to page by it.
    CutShort,
}

/// Why a copy was not used. Names a metric's label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Miss {
    /// No load has vouched for the copy, or there is none.
    #[error("no mark vouches for the hot copy")]
    NoMark,
    /// Loads have vouched for it, under numbers that have changed since.
    #[error("the hot copy was loaded under numbers that are no longer current")]
    Outdated,
    /// The window reaches below the floor of the copy.
    #[error("the window reaches below the floor of the hot copy")]
    BelowFloor,
    /// More messages share one time than are read at once.
    #[error("too many messages of the hot copy share one time")]
    CutShort,
    /// The copy cannot be read.
    #[error(transparent)]
    Damaged(#[from] DecodeError),
}

impl HotCopy {
    /// From where on the copy is complete under these numbers: the lowest floor among the marks that
    /// have exactly them. `None`: nothing vouches for it.
    #[must_use]
    pub fn complete_from(&self, numbers: Numbers) -> Option<&Floor> {
        self.marks.iter().filter(|mark| mark.numbers == numbers).map(|mark| &mark.floor).min()
    }

    /// The messages of the window, oldest first: exactly what PostgreSQL would answer. Or why the
    /// copy cannot say.
    pub fn usable(self, numbers: Numbers) -> Result<Vec<Message>, Miss> {
        if let Some(damage) = self.damage {
            return Err(Miss::Damaged(damage));
        }
        let Some(floor) = self.complete_from(numbers).cloned() else {
            return Err(if self.marks.is_empty() { Miss::NoMark } else { Miss::Outdated });
        };
        // A row below the floor may be there, appended late; its neighbours need not be.
        let oldest_is_covered =
            self.messages.first().is_none_or(|message| floor.covers(&message.position()));
        match self.extent {
            Extent::CutShort => Err(Miss::CutShort),
            Extent::Full if oldest_is_covered => Ok(self.messages),
            Extent::Exhausted if floor == Floor::Beginning => Ok(self.messages),
            Extent::Full | Extent::Exhausted => Err(Miss::BelowFloor),
        }
    }
}

impl Miss {
    /// The label in metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NoMark => "no_mark",
            Self::Outdated => "outdated",
            Self::BelowFloor => "below_floor",
            Self::CutShort => "cut_short",
            Self::Damaged(_) => "damaged",
        }
    }
}

/// Puts messages in order and leaves one of each id. Two messages of one id that differ are damage:
/// both claim to be the committed row.
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
    use crate::samples::{message, position};

    const NOW: Numbers = Numbers { epoch: 7, generation: 8 };

    fn copy(marks: Vec<Mark>, extent: Extent) -> HotCopy {
        let messages = vec![message("a", 10), message("b", 20)];
        HotCopy { marks, messages, extent, damage: None }
    }

    fn mark(numbers: Numbers, floor: Floor) -> Mark {
        Mark { numbers, floor }
    }

    #[test]
    fn a_copy_without_a_mark_is_never_complete() {
        for extent in [Extent::Full, Extent::Exhausted, Extent::CutShort] {
            assert_eq!(copy(vec![], extent).usable(NOW), Err(Miss::NoMark));
        }
    }

    #[test]
    fn a_mark_with_another_number_is_not_accepted() {
        for other in [Numbers { epoch: 1, ..NOW }, Numbers { generation: 1, ..NOW }] {
            let copy = copy(vec![mark(other, Floor::Beginning)], Extent::Full);
            assert_eq!(copy.complete_from(NOW), None);
            assert_eq!(copy.usable(NOW), Err(Miss::Outdated));
        }
    }

    #[test]
    fn the_lowest_floor_among_current_marks_counts() {
        let old = Numbers { epoch: 1, generation: 1 };
        let copy = copy(
            vec![
                mark(NOW, Floor::At(position("b", 20))),
                mark(NOW, Floor::At(position("a", 10))),
                mark(old, Floor::Beginning),
            ],
            Extent::Full,
        );
        assert_eq!(copy.complete_from(NOW), Some(&Floor::At(position("a", 10))));
    }

    #[test]
    fn nothing_below_the_floor_is_used() {
        let marks = vec![mark(NOW, Floor::At(position("b", 20)))];
        assert_eq!(copy(marks, Extent::Full).usable(NOW), Err(Miss::BelowFloor));
        let marks = vec![mark(NOW, Floor::At(position("a", 10)))];
        assert_eq!(copy(marks, Extent::Full).usable(NOW).map(|all| all.len()), Ok(2));
    }

    #[test]
    fn an_exhausted_copy_answers_only_if_it_reaches_the_beginning() {
        let marks = vec![mark(NOW, Floor::At(position("a", 10)))];
        assert_eq!(copy(marks, Extent::Exhausted).usable(NOW), Err(Miss::BelowFloor));
        let marks = vec![mark(NOW, Floor::Beginning)];
        assert_eq!(copy(marks, Extent::Exhausted).usable(NOW).map(|all| all.len()), Ok(2));
    }

    #[test]
    fn an_empty_copy_with_a_mark_of_the_beginning_is_an_empty_conversation() {
        let empty = HotCopy {
            marks: vec![mark(NOW, Floor::Beginning)],
            messages: vec![],
            extent: Extent::Exhausted,
            damage: None,
        };
        assert_eq!(empty.usable(NOW), Ok(vec![]));
    }

    #[test]
    fn a_window_that_was_cut_short_is_a_miss() {
        let marks = vec![mark(NOW, Floor::Beginning)];
        assert_eq!(copy(marks, Extent::CutShort).usable(NOW), Err(Miss::CutShort));
    }

    #[test]
    fn a_damaged_copy_is_a_miss() {
        let mut copy = copy(vec![mark(NOW, Floor::Beginning)], Extent::Full);
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
