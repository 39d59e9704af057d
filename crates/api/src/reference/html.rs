//! Writing HTML.

use std::fmt::{Arguments, Write as _};

use serde_json::Value;

/// A text of the document.
pub(super) fn text(value: &Value) -> String {
    escaped(value.as_str().unwrap_or_default())
}

/// A text with what has a meaning in HTML escaped; what is between backticks is code.
pub(super) fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    let mut is_code = false;
    for character in text.chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '`' => {
                html.push_str(if is_code { "</code>" } else { "<code>" });
                is_code = !is_code;
            }
            other => html.push(other),
        }
    }
    if is_code {
        html.push_str("</code>");
    }
    html
}

/// Appends.
pub(super) fn put(html: &mut String, arguments: Arguments<'_>) {
    // Writing to a String does not fail.
    html.write_fmt(arguments).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        assert_eq!(
            escaped("<a href=\"x\">`b`&`c"),
            "&lt;a href=&quot;x&quot;&gt;<code>b</code>&amp;<code>c</code>"
        );
    }
}
