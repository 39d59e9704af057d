//! A list, and why it may not be stored.

use domain::action::SyncMessages;

/// A list, and the body from which it was decoded.
#[derive(Debug, Clone, Copy)]
pub struct ListToSync<'a> {
    /// The list.
    pub action: &'a SyncMessages,
    /// The body of its action.
    pub body: &'a [u8],
}

/// Why a list is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncRefusal {
    /// It has nothing in common with its conversation.
    NothingInCommon,
    /// It goes on from an earlier message, and its sender wants no branch. The position of the first new message.
    NoBranch(usize),
    /// Two of its messages have the same id: the position of the second one.
    RepeatedId(usize),
    /// No message has the id from which it goes on.
    AfterUnknown,
}
