//! A session event or feedback, the conversation in which it is recorded, and the time at which it counts.
//!
//! Events compete by their times, which clocks of senders give. A clock that is far ahead would make every later event
//! of other clocks lose. So an event counts at the time that its sender gave, but at most one minute after it was first
//! stored, by PostgreSQL's clock. That time is stored with the event (`effective_at`), and nothing else is compared.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use domain::action::{ActionKind, ConversationSource, TimeSource};
use domain::ids::ConversationKey;
use domain::session_event::SessionEvent;
use domain::time::Timestamp;

/// How far ahead of PostgreSQL's clock an event may count, in microseconds: one minute, more than clocks differ that
/// are synchronised.
const TOLERANCE: i64 = 60_000_000;

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
    /// When it counts.
    effective_at: Timestamp,
}

impl SessionUpdate {
    /// A new event; `source` is where its conversation comes from.
    #[must_use]
    pub fn new(
        key: ConversationKey,
        source: ConversationSource,
        time_source: TimeSource,
        event: Arc<SessionEvent>,
    ) -> Self {
        let everywhere = source == ConversationSource::FromSession;
        let effective_at = event.created_at;
        Self { key, everywhere, time_source, event, effective_at }
    }

    /// A close that names no conversation, in one of those that it concerns. It counts at the same time in each.
    pub(crate) fn close_everywhere(
        key: ConversationKey,
        event: Arc<SessionEvent>,
        effective_at: Timestamp,
    ) -> Self {
        Self { key, everywhere: true, time_source: TimeSource::Body, event, effective_at }
    }

    pub(crate) fn closes_everywhere(&self) -> bool {
        self.everywhere && self.event.kind == ActionKind::SessionClosed
    }

    pub(crate) fn session(&self) -> &str {
        self.event.session.as_str()
    }

    /// When it happened, by its sender. Only the identity of an event depends on it.
    pub(crate) fn sent_at(&self) -> Timestamp {
        self.event.created_at
    }

    /// When it counts.
    pub(crate) fn at(&self) -> Timestamp {
        self.effective_at
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

/// Limits the times at which new events count; `now` is PostgreSQL's. Events beyond the limit keep their order: the
/// last one counts at the limit, the one before it a microsecond earlier, and so on.
pub(crate) fn limit_times(updates: &mut [SessionUpdate], now: Timestamp) {
    let limit = now.micros().saturating_add(TOLERANCE);
    let is_beyond = |update: &SessionUpdate| update.sent_at().micros() > limit;
    let beyond = updates.iter().filter(|it| is_beyond(it)).map(SessionUpdate::sent_at);
    let times: BTreeSet<Timestamp> = beyond.collect();
    let later = times.into_iter().rev().zip(0..).map(|(sent_at, earlier)| {
        let at = Timestamp::from_micros(limit.saturating_sub(earlier));
        (sent_at, at.unwrap_or(Timestamp::LATEST))
    });
    let effective: HashMap<Timestamp, Timestamp> = later.collect();
    for update in updates {
        if let Some(at) = effective.get(&update.sent_at()) {
            update.effective_at = *at;
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::ids::{MessageId, SessionId};

    use super::*;

    /// Closes sent at these seconds, limited by a server whose clock shows `now`: the times at which they count.
    fn limited(sent: &[i64], now: i64) -> Vec<i64> {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000).unwrap();
        let mut updates: Vec<SessionUpdate> = sent
            .iter()
            .map(|seconds| {
                let event = SessionEvent {
                    id: MessageId::new("e").unwrap(),
                    kind: ActionKind::SessionClosed,
                    session: SessionId::new("s").unwrap(),
                    created_at: at(*seconds),
                    received_at: at(now),
                    reason: None,
                    satisfaction: None,
                    user_id: None,
                    agent_id: None,
                    model_name: None,
                    tenant_tier: None,
                    metadata: None,
                };
                let key = ConversationKey::parse("t", "c").unwrap();
                SessionUpdate::new(
                    key,
                    ConversationSource::Explicit,
                    TimeSource::Body,
                    Arc::new(event),
                )
            })
            .collect();
        limit_times(&mut updates, at(now));
        updates.iter().map(|it| it.at().micros()).collect()
    }

    #[test]
    fn an_event_counts_a_minute_after_its_storage_at_most() {
        let now = 1_800_000_000;
        let sent = [now - 5, now + 60, 0, now + 61];
        let micros = |seconds: i64| seconds * 1_000_000;
        let counted = [micros(now - 5), micros(now + 60), 0, micros(now + 60)];
        assert_eq!(limited(&sent, now), counted);
    }

    #[test]
    fn events_of_a_clock_that_is_ahead_keep_their_order() {
        let now = 1_800_000_000;
        let limit = (now + 60) * 1_000_000;
        let sent = [now + 9_000, now + 7_000, now + 9_000, now + 8_000];
        assert_eq!(limited(&sent, now), [limit, limit - 2, limit, limit - 1]);
    }
}
