//! The header `Verbatim-After`: a position of PostgreSQL from which on a reader wants to see what was written.
//!
//! Its text is opaque to clients: a version, the cluster, its timeline and the position, in hexadecimal digits. It is not
//! signed: it only chooses between the read replica and the primary.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use database::{History, Lsn, WalPosition};

use crate::problem::{Kind, Problem};

/// The header, in requests and in answers.
pub(crate) const AFTER: HeaderName = HeaderName::from_static("verbatim-after");

/// The version of the text. Another one is refused.
const VERSION: &str = "1";

/// The value of the header for this position.
pub(crate) fn value(position: WalPosition) -> String {
    let WalPosition { history: History { system, timeline }, lsn: Lsn(lsn) } = position;
    format!("{VERSION}-{system:016x}-{timeline:08x}-{lsn:016x}")
}

/// The position of this text, if it is one.
pub(crate) fn position(text: &str) -> Option<WalPosition> {
    let [VERSION, system, timeline, lsn] = *text.split('-').collect::<Vec<_>>() else {
        return None;
    };
    let position = WalPosition {
        history: History {
            system: u64::from_str_radix(system, 16).ok()?,
            timeline: u32::from_str_radix(timeline, 16).ok()?,
        },
        lsn: Lsn(u64::from_str_radix(lsn, 16).ok()?),
    };
    // One text for each position: no sign, no upper case, no missing zero.
    (value(position) == text).then_some(position)
}

/// The position that a request names.
///
/// # Errors
/// The header is given twice, or is none of ours.
pub(crate) fn of_request(headers: &HeaderMap) -> Result<Option<WalPosition>, Problem> {
    let mut values = headers.get_all(AFTER).iter();
    let Some(first) = values.next() else { return Ok(None) };
    let position = first.to_str().ok().and_then(|text| position(text.trim()));
    position.filter(|_| values.next().is_none()).map(Some).ok_or_else(|| {
        let detail = "the header Verbatim-After must be the value of this header in an answer of \
                      POST /api/actions?wait=durable, once; send it as it came, or leave it out";
        Problem::new(Kind::Invalid, detail)
    })
}

/// The header of an answer.
pub(crate) fn header(position: WalPosition) -> Option<HeaderValue> {
    HeaderValue::from_str(&value(position)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_written_and_read_and_anything_else_is_refused() {
        let history = History { system: 7_713_412_774_022_703_217, timeline: 10 };
        let written = WalPosition { history, lsn: Lsn(0x1_6B37_4D84) };
        let text = value(written);
        assert_eq!(text, "1-6b0b8c0cf1956871-0000000a-000000016b374d84");
        assert_eq!(position(&text), Some(written));
        for bad in [
            "",
            "0/16B374D8",
            "2-6b0b8c0cf1956871-0000000a-000000016b374d84",
            "1-6B0B8C0CF1956871-0000000A-000000016B374D84",
            "1-6b0b8c0cf1956871-+000000a-000000016b374d84",
            "1-6b0b8c0cf1956871-a-16b374d84",
            "1-6b0b8c0cf1956871-0000000a-000000016b374d84-1",
        ] {
            assert_eq!(position(bad), None, "{bad}");
        }
    }
}
