//! Text of others, made safe to print, and shortened.

use std::borrow::Cow;

/// A text on one line, with every control character made visible.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' => '⏎',
            '\t' => ' ',
            c => visible(c),
        })
        .collect()
}

/// A text of several lines, each indented by `indent`, with every other control character made
/// visible. Ends with a line break; an empty text is one empty line.
pub(crate) fn block(text: &str, indent: &str) -> String {
    let mut out = String::with_capacity(text.len() + indent.len() + 1);
    for line in text.split('\n') {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let start = out.len();
        out.push_str(indent);
        out.extend(line.chars().map(|c| if c == '\t' { c } else { visible(c) }));
        out.truncate(out.trim_end().len().max(start));
        out.push('\n');
    }
    out
}

/// At most `limit` bytes of a text, then how many more there are, and what prints `all` of them.
pub(crate) fn shortened<'a>(text: &'a str, limit: usize, all: &str) -> Cow<'a, str> {
    if text.len() <= limit {
        return text.into();
    }
    let (shown, rest) = text.split_at(text.floor_char_boundary(limit));
    format!("{shown}\n… {} more bytes; {all} prints all", count(rest.len() as u64)).into()
}

/// `1 message`, `2 messages`.
pub(crate) fn plural(count: impl Into<i128>, noun: &str) -> String {
    let count = count.into();
    let s = if count == 1 { "" } else { "s" };
    format!("{} {noun}{s}", self::count(count))
}

/// A number with its thousands separated: `12 345`.
pub(crate) fn count(count: impl Into<i128>) -> String {
    let digits = count.into().to_string();
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |rest| ("-", rest));
    let mut out = sign.to_owned();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n) % 3 == 0 {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// A control character as its picture (Unicode's block 2400, "control pictures").
fn visible(c: char) -> char {
    match c {
        '\0'..='\u{1f}' => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
        '\u{7f}' => '␡',
        '\u{80}'..='\u{9f}' => '\u{fffd}',
        // Bidirectional controls: they reorder the rest of the line.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_moves_the_cursor() {
        assert_eq!(one_line("a\u{1b}[2J\r\nb\u{9b}c\u{202e}d"), "a␛[2J␍⏎b\u{fffd}c\u{fffd}d");
        assert_eq!(block("a\u{7}\r\n\n\tb", "  "), "  a␇\n\n  \tb\n");
        assert_eq!(block("", "  "), "\n");
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!(count(7), "7");
        assert_eq!(count(1_234_567), "1 234 567");
        assert_eq!(count(-1_000), "-1 000");
        assert_eq!(plural(1, "message"), "1 message");
        assert_eq!(plural(0, "message"), "0 messages");
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_how_much_is_missing() {
        assert_eq!(shortened("äöü", 6, "--full"), "äöü");
        assert_eq!(shortened("äöü", 5, "--full"), "äö\n… 2 more bytes; --full prints all");
    }

    #[test]
    fn an_excerpt_is_cut_between_characters() {
        assert_eq!(crate::output::excerpt("äöü", 2), "äö…");
        assert_eq!(crate::output::excerpt("äöü", 3), "äöü");
    }
}
