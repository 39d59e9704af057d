//! Completes an AMQP timestamp, which has whole seconds, with microseconds.
//!
//! Within its second a message has the position that its receipt gives it. Without the microseconds, all messages
//! of one second would have one time, and their ids alone would decide their order.
//!
//! Two messages of one second may be received a little before and a little after its end, or much later, from a
//! backlog. So the last fifth of the second is compressed to make room behind it:
//!
//! | received | microseconds |
//! |---|---|
//! | before the second: the sender's clock is ahead | 0 |
//! | in its first 800 ms | those of the receipt |
//! | in its last 200 ms | 800 000 to 849 999 |
//! | up to 400 s after it | 850 000 to 899 999 |
//! | later | 900 000 |
//!
//! A consumer moves a message that is not behind the one before it by 1 µs, which needs the room above 900 000.

use domain::envelope::Resolved;
use domain::time::Timestamp;

const SECOND: i64 = 1_000_000;
/// Up to here the microseconds are those of the receipt.
const EXACT: i64 = 800_000;
/// Where the messages begin that were received after the end of their second.
const LATE: i64 = 850_000;
/// Where the messages begin that were received so late that the delay no longer determines their order.
const BACKLOG: i64 = 900_000;
/// Microseconds of delay for each microsecond between [`LATE`] and [`BACKLOG`].
const DELAY: i64 = 8_000;

/// The microseconds, up to 900 000, of a message with the AMQP timestamp `second`. An earlier attempt may have
/// resolved its time: then those of that time, if it is in this second.
pub(crate) fn micros(second: u64, received_at: Timestamp, resolved: Option<&Resolved>) -> u32 {
    let Ok(start) = Timestamp::from_seconds(second) else { return 0 };
    let after_start = |moment: Timestamp| moment.micros() - start.micros();
    let micros = match resolved {
        Some(it) if (0..SECOND).contains(&after_start(it.timestamp)) => after_start(it.timestamp),
        Some(it) => by_receipt(after_start(it.received_at)),
        None => by_receipt(after_start(received_at)),
    };
    u32::try_from(micros).unwrap_or(0)
}

/// The microseconds of a message that was received so many microseconds after the start of its second.
fn by_receipt(received: i64) -> i64 {
    match received {
        ..0 => 0,
        0..EXACT => received,
        EXACT..SECOND => EXACT + (received - EXACT) * (LATE - EXACT) / (SECOND - EXACT),
        _ => (LATE + (received - SECOND) / DELAY).min(BACKLOG),
    }
}

#[cfg(test)]
mod tests {
    use domain::ids::{ConversationId, MessageId};

    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(5 * SECOND + micros).unwrap()
    }

    #[test]
    fn later_receipts_have_later_microseconds_within_the_second() {
        let received = [-SECOND, 0, 1, 799_999, 800_000, 999_999, SECOND, 1_007_999, 1_008_000];
        let expected = [0, 0, 1, 799_999, 800_000, 849_999, 850_000, 850_000, 850_001];
        assert_eq!(received.map(|micros| super::micros(5, at(micros), None)), expected);
        assert_eq!([401, 3_600].map(|s| micros(5, at(s * SECOND), None)), [900_000, 900_000]);
    }

    #[test]
    fn a_time_that_an_earlier_attempt_resolved_stays() {
        let resolved = |timestamp| Resolved {
            id: MessageId::new("m").unwrap(),
            conversation: ConversationId::new("c").unwrap(),
            timestamp,
            received_at: at(1),
        };
        assert_eq!(micros(5, at(9), Some(&resolved(at(900_007)))), 900_007);
        assert_eq!(micros(5, at(9), Some(&resolved(at(SECOND)))), 1, "the time of another second");
    }

    #[test]
    fn a_timestamp_that_is_out_of_range_has_no_microseconds() {
        assert_eq!(micros(u64::MAX, at(9), None), 0);
    }
}
