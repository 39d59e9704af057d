//! When a consumer received each delivery, so that messages without a `timestamp` in their body keep the order
//! of their receipt.
//!
//! Invariants, for the deliveries of one consumer in one process, across its sessions and whatever the system
//! clock does:
//!
//! - Receipt times strictly increase.
//! - Between the receipt time of an action of several messages and the next one there is a microsecond for each message.
//! - Of deliveries with the same AMQP timestamp, [`timestamp_micros`] strictly increase, up to 999 999.
//!
//! [`timestamp_micros`]: domain::envelope::Envelope::timestamp_micros

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use domain::time::Timestamp;

use crate::Delivery;

/// Assigns receipt times. Its lock is free: a consumer receives one delivery at a time.
#[derive(Default)]
pub(super) struct ReceiptTimes(Mutex<Assigned>);

#[derive(Default)]
struct Assigned {
    last_receipt: Option<Timestamp>,
    seconds: RecentSeconds,
}

impl ReceiptTimes {
    /// The delivery, received now by the system clock, or 1 µs after the one before it if that is later.
    ///
    /// Each of its `messages` takes a microsecond.
    pub(super) fn receive(
        &self,
        delivery: lapin::message::Delivery,
        clock: Timestamp,
        messages: usize,
    ) -> Delivery {
        if !failpoints::holds(failpoints::Guard::ReceiptOrder) {
            let mut delivery = Delivery::from_amqp(delivery, clock);
            delivery.timestamp_micros = 0;
            return delivery;
        }
        let mut assigned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let reserved = u32::try_from(messages).unwrap_or(u32::MAX).max(1);
        let mut delivery = Delivery::from_amqp(delivery, assigned.receipt(clock, reserved));
        let envelope = delivery.envelope();
        // A later attempt has the time of the first one.
        if let (Some(second), None) = (envelope.sent_second(), envelope.resolved) {
            let by_receipt = envelope.timestamp_micros;
            delivery.timestamp_micros = assigned.seconds.micros(second, by_receipt, reserved);
        }
        delivery
    }
}

impl Assigned {
    fn receipt(&mut self, clock: Timestamp, reserved: u32) -> Timestamp {
        let next =
            self.last_receipt.and_then(|last| Timestamp::from_micros(last.micros() + 1).ok());
        let receipt = next.map_or(clock, |next| next.max(clock));
        self.last_receipt = Some(receipt.later_by(reserved.saturating_sub(1) as usize));
        receipt
    }
}

/// The last microseconds assigned in each of the seconds that were used last.
#[derive(Default)]
struct RecentSeconds {
    newer: HashMap<u64, u32>,
    /// Replaced when `newer` is full. So the memory is bounded, and no lookup searches for the oldest second.
    older: HashMap<u64, u32>,
}

/// The last so many seconds at least are remembered, and twice as many at most, in some 70 KiB. A consumer
/// of live messages uses a few. Many are used at once by senders that publish old messages of several
/// conversations.
const SECONDS: usize = 1024;

/// The last microsecond of a second.
const LAST_MICRO: u32 = 999_999;

impl RecentSeconds {
    /// The microseconds for the next message of a second: `by_receipt`, or 1 more than the message before it if
    /// that is later.
    fn micros(&mut self, second: u64, by_receipt: u32, reserved: u32) -> u32 {
        let last = self.newer.get(&second).or_else(|| self.older.get(&second));
        let micros = last.map_or(by_receipt, |last| by_receipt.max(last + 1).min(LAST_MICRO));
        if self.newer.len() >= SECONDS && !self.newer.contains_key(&second) {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(second, micros.saturating_add(reserved - 1).min(LAST_MICRO));
        micros
    }
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use proptest::prelude::*;

    use super::*;

    /// A second in the time of these tests.
    const SECOND: u64 = 1_795_168_800;

    fn at(second: u64, micros: i64) -> Timestamp {
        let start = Timestamp::from_seconds(second).unwrap();
        Timestamp::from_micros(start.micros() + micros).unwrap()
    }

    /// The receipt time of a delivery with this AMQP timestamp, and its microseconds.
    fn receive(times: &ReceiptTimes, second: Option<u64>, clock: Timestamp) -> (Timestamp, u32) {
        receive_several(times, second, clock, 1)
    }

    /// As [`receive`], of a delivery with so many messages.
    fn receive_several(
        times: &ReceiptTimes,
        second: Option<u64>,
        clock: Timestamp,
        messages: usize,
    ) -> (Timestamp, u32) {
        let body = b"{}".to_vec();
        let mut amqp = lapin::message::Delivery::mock(1, "".into(), "".into(), false, body);
        if let Some(second) = second {
            amqp.properties = BasicProperties::default().with_timestamp(second);
        }
        let delivery = times.receive(amqp, clock, messages);
        (delivery.received_at, delivery.envelope().timestamp_micros)
    }

    #[test]
    fn receipt_times_increase_when_the_clock_stands_still_or_steps_back() {
        let times = ReceiptTimes::default();
        let received = [5, 5, 5, 2, 6, 9].map(|micros| receive(&times, None, at(SECOND, micros)).0);
        assert_eq!(received, [5, 6, 7, 8, 9, 10].map(|micros| at(SECOND, micros)));
    }

    #[test]
    fn messages_of_10_000_deliveries_of_one_microsecond_keep_their_order() {
        for second in [None, Some(SECOND)] {
            let (times, mut next) = (ReceiptTimes::default(), 0);
            for messages in (0..10_000).map(|n| 1 + n % 7) {
                let received = receive_several(&times, second, at(SECOND, 0), messages);
                let first = match second {
                    Some(_) => i64::from(received.1),
                    None => received.0.micros() - at(SECOND, 0).micros(),
                };
                assert_eq!(first, next, "no message of another delivery comes between");
                next += i64::try_from(messages).unwrap();
            }
        }
    }

    #[test]
    fn messages_of_one_amqp_second_keep_their_order_across_its_end_and_in_a_backlog() {
        let times = ReceiptTimes::default();
        let micros = |clock| receive(&times, Some(SECOND), clock).1;
        let ahead = at(SECOND - 3, 0);
        assert_eq!([micros(ahead), micros(ahead)], [0, 1], "the sender's clock is ahead");
        assert_eq!(micros(at(SECOND, 250_000)), 250_000);
        assert_eq!(micros(at(SECOND, 250_000)), 250_001);
        assert_eq!(micros(at(SECOND, 900_000)), 825_000);
        assert_eq!(micros(at(SECOND, 999_999)), 849_999);
        assert_eq!(micros(at(SECOND + 1, 0)), 850_000);
        assert_eq!(micros(at(SECOND + 1, 80_000)), 850_010);
        assert_eq!(micros(at(SECOND + 600, 0)), 900_000);
        assert_eq!(micros(at(SECOND + 600, 1)), 900_001);
    }

    #[test]
    fn the_microseconds_of_a_second_end_with_its_last() {
        let mut seconds = RecentSeconds::default();
        let assigned = [LAST_MICRO - 1, 0, 0].map(|micros| seconds.micros(SECOND, micros, 1));
        assert_eq!(assigned, [LAST_MICRO - 1, LAST_MICRO, LAST_MICRO]);
    }

    #[test]
    fn a_second_is_remembered_while_a_thousand_others_are_used() {
        let mut seconds = RecentSeconds::default();
        let mut last = seconds.micros(0, 7, 1);
        for round in 0..5 {
            for other in 1..SECONDS as u64 {
                seconds.micros(round * 10_000 + other, 0, 1);
            }
            let next = seconds.micros(0, 0, 1);
            assert_eq!(next, last + 1, "round {round}");
            last = next;
        }
        assert!(seconds.newer.len() + seconds.older.len() <= 2 * SECONDS);
    }

    proptest! {
        #[test]
        fn any_deliveries_keep_their_order(
            deliveries in prop::collection::vec(
                (prop::option::of(0..4_u64), -3_000_000..700_000_000_i64), 1..200,
            ),
        ) {
            let times = ReceiptTimes::default();
            let mut last_receipt = None;
            let mut last_of_second = HashMap::new();
            for (second, micros) in deliveries {
                let second = second.map(|n| SECOND + n);
                let (receipt, micros) = receive(&times, second, at(SECOND, micros));
                prop_assert!(last_receipt < Some(receipt));
                last_receipt = Some(receipt);
                prop_assert!(micros <= LAST_MICRO);
                if let Some(second) = second {
                    let before = last_of_second.insert(second, micros);
                    prop_assert!(before < Some(micros), "{before:?} and then {micros}");
                }
            }
        }
    }
}
