//! The phases of a session: consuming, filling the prefetch, cancelled, stopped; and what follows a cancel.
//!
//! [`Phase::on`] is the whole table: for each phase and event the next phase, and what the session does. It has
//! no I/O and reads no clock.

use std::time::Duration;

use tokio::time::Instant;

/// Whether the consumer gets deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is registered; finished deliveries are acknowledged.
    Consuming,
    /// It is registered; nothing is acknowledged, until the prefetch is full or the queue is empty.
    FillingPrefetch(AfterCancel, PrefetchFill),
    /// It is cancelled; deliveries that RabbitMQ sent before are still received.
    Cancelled(AfterCancel),
    /// Its stream has ended; received deliveries are being finished.
    Stopped(AfterCancel),
}

/// Since when the prefetch is being filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PrefetchFill {
    began: Instant,
    last_delivery: Instant,
}

/// What a consumer is cancelled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterCancel {
    /// To register with a larger prefetch.
    GrowPrefetch,
    /// To register with a smaller prefetch, once all received deliveries are finished: with them the
    /// byte limit may be reached.
    ShrinkPrefetch,
    /// To handle suspects, while nothing else is being handled.
    HandleSuspects,
    /// To disconnect: the slow queue has been empty for some time.
    Disconnect,
    /// To drain for a shutdown.
    Shutdown,
    /// To reconnect: RabbitMQ cancelled the consumer. Received deliveries are finished first, because
    /// with a deleted queue RabbitMQ has no other copy of them.
    Reconnect,
}

/// After this time without a delivery, while the prefetch is not full, the queue is taken as empty. A
/// delivery takes much less from queue to consumer, also on a busy machine.
const IDLE_LIMIT: Duration = Duration::from_millis(200);
/// The most time for filling the prefetch. It applies when single messages arrive more often than
/// [`IDLE_LIMIT`]; then few of them are being sent at the cancel.
const FILL_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The consumer is to be cancelled for this, once no delivery would be requeued by it; and the time.
    Cancel(AfterCancel, Instant),
    /// The consumer is to be cancelled for this at once.
    CancelNow(AfterCancel),
    /// The prefetch is full, or the queue is empty.
    Filled,
    /// The stream has ended, during a hold or not. After a cancel of the session, or because RabbitMQ
    /// cancelled the consumer.
    StreamEnded {
        holding: bool,
    },
    /// Every received delivery is settled.
    AllSettled,
    Registered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// It sends `basic.cancel`.
    Cancel,
    /// It acknowledges what was finished while the prefetch was being filled.
    Acknowledge,
    /// It reports that it is no longer registered.
    ReportConnecting,
    /// It registers a consumer with the current prefetch.
    Register,
    /// It handles suspects, then registers a consumer.
    HandleSuspects,
    /// It ends: the shutdown is done.
    EndDrained,
    /// It ends: the slow queue is empty.
    EndQueueEmpty,
    /// It ends, and another session follows.
    EndForReconnect,
}

impl Phase {
    /// What the consumer was cancelled for, or is about to be.
    fn next(self) -> Option<AfterCancel> {
        match self {
            Self::Consuming => None,
            Self::FillingPrefetch(next, _) | Self::Cancelled(next) | Self::Stopped(next) => {
                Some(next)
            }
        }
    }

    /// Whether a shutdown has begun.
    pub(super) fn is_shutting_down(self) -> bool {
        self.next() == Some(AfterCancel::Shutdown)
    }

    pub(super) fn on(self, event: Event) -> (Self, Action) {
        use AfterCancel::{
            Disconnect, GrowPrefetch, HandleSuspects, Reconnect, ShrinkPrefetch, Shutdown,
        };
        let then = |next| if self.is_shutting_down() { Shutdown } else { next };
        match (self, event) {
            (Self::Consuming, Event::Cancel(next, now)) => {
                (Self::FillingPrefetch(next, PrefetchFill::begin(now)), Action::Nothing)
            }
            (Self::FillingPrefetch(_, fill), Event::Cancel(next, _)) => {
                (Self::FillingPrefetch(then(next), fill), Action::Nothing)
            }
            (Self::Consuming | Self::FillingPrefetch(..), Event::CancelNow(next)) => {
                (Self::Cancelled(then(next)), Action::Cancel)
            }
            (Self::Cancelled(_), Event::Cancel(next, _) | Event::CancelNow(next)) => {
                (Self::Cancelled(then(next)), Action::Nothing)
            }
            (Self::Stopped(_), Event::Cancel(next, _) | Event::CancelNow(next)) => {
                (Self::Stopped(then(next)), Action::Nothing)
            }
            (Self::FillingPrefetch(next, _), Event::Filled) => {
                (Self::Cancelled(next), Action::Cancel)
            }
            (Self::Consuming, Event::StreamEnded { holding: false }) => {
                (Self::Stopped(Reconnect), Action::ReportConnecting)
            }
            (Self::Consuming, Event::StreamEnded { holding: true }) => {
                (Self::Stopped(Reconnect), Action::Nothing)
            }
            // During a hold no new consumer is registered.
            (Self::Cancelled(GrowPrefetch), Event::StreamEnded { holding: false }) => {
                (self, Action::Register)
            }
            (Self::FillingPrefetch(next, _) | Self::Cancelled(next), Event::StreamEnded { .. }) => {
                (Self::Stopped(next), Action::Acknowledge)
            }
            (Self::Stopped(_), Event::StreamEnded { .. }) => (self, Action::EndForReconnect),
            (Self::Stopped(next), Event::AllSettled) => {
                let action = match next {
                    GrowPrefetch | ShrinkPrefetch => Action::Register,
                    HandleSuspects => Action::HandleSuspects,
                    Shutdown => Action::EndDrained,
                    Disconnect => Action::EndQueueEmpty,
                    Reconnect => Action::EndForReconnect,
                };
                (self, action)
            }
            (_, Event::Registered) => (Self::Consuming, Action::Nothing),
            (_, Event::Filled | Event::AllSettled) => (self, Action::Nothing),
        }
    }
}

impl PrefetchFill {
    fn begin(now: Instant) -> Self {
        Self { began: now, last_delivery: now }
    }

    pub(super) fn on_delivery(&mut self, at: Instant) {
        self.last_delivery = at;
    }

    pub(super) fn ends(&self) -> Instant {
        (self.last_delivery + IDLE_LIMIT).min(self.began + FILL_LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_event_in_each_phase_has_its_next_phase_and_its_action() {
        use Action::{
            Acknowledge, Cancel, EndDrained, EndForReconnect, EndQueueEmpty, Nothing, Register,
            ReportConnecting,
        };
        use AfterCancel::{
            Disconnect, GrowPrefetch, HandleSuspects, Reconnect, ShrinkPrefetch, Shutdown,
        };
        use Phase::{Cancelled, Consuming, FillingPrefetch, Stopped};
        let now = Instant::now();
        let filling = |next| FillingPrefetch(next, PrefetchFill::begin(now));
        let ended = |holding| Event::StreamEnded { holding };
        for (phase, event, next, action) in [
            (Consuming, Event::Cancel(GrowPrefetch, now), filling(GrowPrefetch), Nothing),
            (filling(GrowPrefetch), Event::Cancel(Shutdown, now), filling(Shutdown), Nothing),
            (Cancelled(GrowPrefetch), Event::Cancel(Shutdown, now), Cancelled(Shutdown), Nothing),
            (Stopped(HandleSuspects), Event::Cancel(Shutdown, now), Stopped(Shutdown), Nothing),
            (Stopped(Shutdown), Event::Cancel(GrowPrefetch, now), Stopped(Shutdown), Nothing),
            (Consuming, Event::CancelNow(ShrinkPrefetch), Cancelled(ShrinkPrefetch), Cancel),
            (
                filling(HandleSuspects),
                Event::CancelNow(ShrinkPrefetch),
                Cancelled(ShrinkPrefetch),
                Cancel,
            ),
            (filling(Shutdown), Event::CancelNow(Shutdown), Cancelled(Shutdown), Cancel),
            (
                Cancelled(GrowPrefetch),
                Event::CancelNow(ShrinkPrefetch),
                Cancelled(ShrinkPrefetch),
                Nothing,
            ),
            (filling(HandleSuspects), Event::Filled, Cancelled(HandleSuspects), Cancel),
            (Consuming, Event::Filled, Consuming, Nothing),
            (Consuming, ended(false), Stopped(Reconnect), ReportConnecting),
            (Consuming, ended(true), Stopped(Reconnect), Nothing),
            (filling(GrowPrefetch), ended(false), Stopped(GrowPrefetch), Acknowledge),
            (Cancelled(GrowPrefetch), ended(false), Cancelled(GrowPrefetch), Register),
            (Cancelled(GrowPrefetch), ended(true), Stopped(GrowPrefetch), Acknowledge),
            (Cancelled(ShrinkPrefetch), ended(false), Stopped(ShrinkPrefetch), Acknowledge),
            (Stopped(ShrinkPrefetch), ended(false), Stopped(ShrinkPrefetch), EndForReconnect),
            (Consuming, Event::AllSettled, Consuming, Nothing),
            (Cancelled(ShrinkPrefetch), Event::AllSettled, Cancelled(ShrinkPrefetch), Nothing),
            (Stopped(GrowPrefetch), Event::AllSettled, Stopped(GrowPrefetch), Register),
            (Stopped(ShrinkPrefetch), Event::AllSettled, Stopped(ShrinkPrefetch), Register),
            (
                Stopped(HandleSuspects),
                Event::AllSettled,
                Stopped(HandleSuspects),
                Action::HandleSuspects,
            ),
            (Stopped(Shutdown), Event::AllSettled, Stopped(Shutdown), EndDrained),
            (Stopped(Disconnect), Event::AllSettled, Stopped(Disconnect), EndQueueEmpty),
            (Stopped(Disconnect), Event::Cancel(Shutdown, now), Stopped(Shutdown), Nothing),
            (Stopped(Reconnect), Event::AllSettled, Stopped(Reconnect), EndForReconnect),
            (Stopped(GrowPrefetch), Event::Registered, Consuming, Nothing),
        ] {
            assert_eq!(phase.on(event), (next, action), "{phase:?} on {event:?}");
        }
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let now = Instant::now();
        let reasons = prop::sample::select(vec![
            AfterCancel::GrowPrefetch,
            AfterCancel::ShrinkPrefetch,
            AfterCancel::HandleSuspects,
            AfterCancel::Disconnect,
        ]);
        let event = prop_oneof![
            reasons.clone().prop_map(move |next| Event::Cancel(next, now)),
            reasons.prop_map(Event::CancelNow),
            Just(Event::Filled),
            any::<bool>().prop_map(|holding| Event::StreamEnded { holding }),
            Just(Event::AllSettled),
        ];
        prop::collection::vec(event, 0..30)
    }

    proptest! {
        #[test]
        fn after_a_shutdown_began_no_consumer_is_registered_again(
            before in events(),
            after in events(),
        ) {
            let mut phase = Phase::Consuming;
            for event in before {
                let (next, action) = phase.on(event);
                let registers = matches!(action, Action::Register | Action::HandleSuspects);
                phase = if registers { next.on(Event::Registered).0 } else { next };
            }
            (phase, _) = phase.on(Event::Cancel(AfterCancel::Shutdown, Instant::now()));
            prop_assert!(phase.is_shutting_down());
            for event in after {
                let (next, action) = phase.on(event);
                prop_assert!(!matches!(action, Action::Register | Action::HandleSuspects));
                prop_assert!(next.is_shutting_down());
                phase = next;
            }
        }
    }
}
