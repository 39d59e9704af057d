//! JSON over several lines.

use super::tokens::tokens;

/// A JSON text with each value on its own line; names and values stay byte for byte.
#[must_use]
pub fn indented(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut depth = 0_usize;
    let new_line = |out: &mut String, depth| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    let mut tokens = tokens(text).map(|token| token.text).peekable();
    while let Some(token) = tokens.next() {
        if matches!(token, "}" | "]") {
            depth = depth.saturating_sub(1);
            new_line(&mut out, depth);
        }
        out.push_str(token);
        match token {
            "{" | "[" => match tokens.next_if(|next| matches!(*next, "}" | "]")) {
                Some(close) => out.push_str(close),
                None => {
                    depth += 1;
                    new_line(&mut out, depth);
                }
            },
            "," => new_line(&mut out, depth),
            ":" => out.push(' '),
            _ => {}
        }
    }
    out
}
