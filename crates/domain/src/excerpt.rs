//! The beginning of a text.

use std::borrow::Cow;

/// At most `chars` characters of a text; an ellipsis stands for the rest.
#[must_use]
pub fn excerpt(text: &str, chars: usize) -> Cow<'_, str> {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}
