//! Names a place in a JSON text.

use super::tokens::tokens;

/// The path to an offset in a JSON text, such as `metadata.a[3].b`. For an offset within a key the
/// path ends with that key, as it is written.
pub(crate) fn path_to(text: &str, offset: usize) -> String {
    enum Frame<'a> {
        Object { key: &'a str, expects_key: bool },
        Array { index: usize },
    }
    let mut stack: Vec<Frame<'_>> = Vec::new();
    for token in tokens(text).take_while(|token| token.at < offset) {
        match (token.text, stack.last_mut()) {
            ("{", _) => stack.push(Frame::Object { key: "", expects_key: true }),
            ("[", _) => stack.push(Frame::Array { index: 0 }),
            ("}" | "]", _) => drop(stack.pop()),
            (",", Some(Frame::Object { expects_key, .. })) => *expects_key = true,
            (",", Some(Frame::Array { index })) => *index += 1,
            (name, Some(Frame::Object { key, expects_key: expects_key @ true })) => {
                *key = name.trim_matches('"');
                *expects_key = false;
            }
            _ => {}
        }
    }
    let mut path = String::new();
    for frame in &stack {
        match frame {
            Frame::Object { key, .. } if path.is_empty() => path.push_str(key),
            Frame::Object { key, .. } => path.extend([".", key]),
            Frame::Array { index } => path.push_str(&format!("[{index}]")),
        }
    }
    path
}
