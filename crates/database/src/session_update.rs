//! A session event or feedback, and the conversation in which it is recorded.

use std::sync::Arc;

use domain::action::{ActionKind, TimeSource};
use domain::ids::ConversationKey;
use domain::session_event::SessionEvent;
use domain::time::Timestamp;

/// One session event or feedback to record in a conversation.
#[derive(Debug, Clone)]
pub struct SessionUpdate {
    /// The conversation that the event names, else the one that is derived from its session.
    pub key: ConversationKey,
    /// Whether the event names no conversation. Then a close closes the session in every conversation in
    /// which it is open.
    pub everywhere: bool,
    /// Where the time of the event comes from.
    pub time_source: TimeSource,
    /// The event as it was sent. Updates of several conversations share it.
    pub event: Arc<SessionEvent>,
}

impl SessionUpdate {
    pub(crate) fn closes_everywhere(&self) -> bool {
        self.everywhere && self.event.kind == ActionKind::SessionClosed
    }

    pub(crate) fn session(&self) -> &str {
        self.event.session.as_str()
    }

    /// When it happened.
    pub(crate) fn at(&self) -> Timestamp {
        self.event.created_at
    }

    /// The order of the events of one session: by time, and `opened` after `closed` at the same time, so
    /// that a page that reloads within a second stays connected.
    pub(crate) fn rank(&self) -> (Timestamp, bool) {
        (self.at(), self.is_opened())
    }

    pub(crate) fn is_opened(&self) -> bool {
        self.event.kind == ActionKind::SessionOpened
    }

    pub(crate) fn is_feedback(&self) -> bool {
        self.event.kind == ActionKind::Feedback
    }
}
