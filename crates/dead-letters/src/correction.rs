//! Corrections of a whole body that need no knowledge of its fields: its encoding, characters that PostgreSQL cannot
//! store, and numbers that JSON does not have. The rest of the body stays byte for byte.

use domain::json::replace_unstorable;

use crate::edit::EditFault;

/// A correction of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Correction {
    /// Convert UTF-16 to UTF-8, and remove a byte order mark.
    ToUtf8,
    /// Replace each U+0000 and each half of a surrogate pair by this text, and each number that JSON does not have by
    /// null.
    ReplaceUnstorable(String),
}

impl Correction {
    /// Its name in the audit log: that of the option of `verbatim dead-letters edit`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ToUtf8 => "to-utf8",
            Self::ReplaceUnstorable(_) => "replace-unstorable",
        }
    }

    /// The corrected body; the same if there is nothing to correct.
    pub(crate) fn applied_to(&self, body: &[u8]) -> Result<Vec<u8>, EditFault> {
        match self {
            Self::ToUtf8 => to_utf8(body),
            Self::ReplaceUnstorable(replacement) => {
                let text = std::str::from_utf8(body).map_err(|_| EditFault::NotAnObject)?;
                Ok(replace_unstorable(text, replacement).into_bytes())
            }
        }
    }
}

fn to_utf8(body: &[u8]) -> Result<Vec<u8>, EditFault> {
    match body {
        [0xEF, 0xBB, 0xBF, text @ ..] => Ok(text.to_vec()),
        [0xFF, 0xFE, units @ ..] => from_utf16(units, u16::from_le_bytes),
        [0xFE, 0xFF, units @ ..] => from_utf16(units, u16::from_be_bytes),
        // JSON begins with an ASCII character, which has one zero byte.
        [1..=0xFF, 0, ..] => from_utf16(body, u16::from_le_bytes),
        [0, 1..=0xFF, ..] => from_utf16(body, u16::from_be_bytes),
        _ => Ok(body.to_vec()),
    }
}

fn from_utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<Vec<u8>, EditFault> {
    let (units, rest) = bytes.as_chunks::<2>();
    let units: Vec<u16> = units.iter().copied().map(unit).collect();
    match String::from_utf16(&units) {
        Ok(text) if rest.is_empty() => Ok(text.into_bytes()),
        _ => Err(EditFault::NotUtf16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_in_utf16_or_behind_a_byte_order_mark_becomes_utf8() {
        let text = "{\"text\":\"ñ😀\"}";
        let utf16 = |text: &str, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            text.encode_utf16().flat_map(bytes).collect()
        };
        let marked = format!("\u{feff}{text}");
        for body in [
            text.as_bytes().to_vec(),
            marked.as_bytes().to_vec(),
            utf16(text, u16::to_le_bytes),
            utf16(text, u16::to_be_bytes),
            utf16(&marked, u16::to_le_bytes),
            utf16(&marked, u16::to_be_bytes),
        ] {
            assert_eq!(Correction::ToUtf8.applied_to(&body).unwrap(), text.as_bytes());
        }
        for body in [&b""[..], b"\xff", b"\0\0"] {
            assert_eq!(Correction::ToUtf8.applied_to(body).unwrap(), body);
        }
        for broken in [&b"{\0}"[..], b"{\0\0\xd8"] {
            assert_eq!(Correction::ToUtf8.applied_to(broken), Err(EditFault::NotUtf16));
        }
    }

    #[test]
    fn what_cannot_be_stored_is_replaced_and_the_rest_stays() {
        let correction = Correction::ReplaceUnstorable("\u{fffd}".to_owned());
        let body = r#"{"a\u0000":"\ud800 \\u0000 \ud83d\ude00\udc00","n":1.50}"#;
        let expected = "{\"a\u{fffd}\":\"\u{fffd} \\\\u0000 \\ud83d\\ude00\u{fffd}\",\"n\":1.50}";
        assert_eq!(correction.applied_to(body.as_bytes()).unwrap(), expected.as_bytes());
        assert_eq!(correction.applied_to(b"\xff"), Err(EditFault::NotAnObject));
    }
}
