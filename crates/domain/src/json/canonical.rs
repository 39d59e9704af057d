//! A canonical form of JSON: texts of equal meaning have equal forms and so equal hashes.
//!
//! Hashes of this form are stored in PostgreSQL and compared for ever: the form must never change.
//! So it is written here, where no feature or version of a library can change it: no white space;
//! members sorted by key in byte order; strings with the fewest escapes; numbers by value (`1`,
//! `1.0` and `10e-1` are one). Integers without a point and an exponent are exact, whatever their size; so are
//! numbers that no double is near to, such as `1e400`. Other numbers are as exact as a double.

use std::borrow::Cow;
use std::fmt::Write;

use super::faults::MAX_DEPTH;
use super::members::string;
use super::numbers::Decimal;
use super::tokens::{Token, Tokens, tokens};

/// The canonical form of a JSON text. A text that is not JSON, is nested deeper than any action may be, or has an
/// exponent of more than 38 digits, is returned unchanged.
pub(crate) fn canonical(text: &str) -> Cow<'_, str> {
    canonical_without(text, |_, _| false)
}

/// The canonical form without the members, at any depth, for whose name and canonical value `is_left_out` holds.
pub(crate) fn canonical_without(
    text: &str,
    is_left_out: fn(name: &str, value: &str) -> bool,
) -> Cow<'_, str> {
    let mut tokens = tokens(text);
    let mut out = String::with_capacity(text.len());
    let first = tokens.next();
    match first.and_then(|first| write_value(&mut tokens, first, 1, is_left_out, &mut out)) {
        Some(()) => Cow::Owned(out),
        None => Cow::Borrowed(text),
    }
}

/// Writes the value that begins with a token; an object or array would be at nesting level `depth`.
fn write_value<'a>(
    tokens: &mut Tokens<'a>,
    first: Token<'a>,
    depth: usize,
    is_left_out: fn(&str, &str) -> bool,
    out: &mut String,
) -> Option<()> {
    match first.first() {
        b'{' | b'[' if depth > MAX_DEPTH => None,
        b'{' => write_object(tokens, depth, is_left_out, out),
        b'[' => {
            out.push('[');
            tokens.items(b']', |tokens, first| {
                write_value(tokens, first, depth + 1, is_left_out, out)?;
                out.push(',');
                Some(())
            })?;
            close(']', out);
            Some(())
        }
        b'"' => {
            write_string(&string(first.text)?, out);
            Some(())
        }
        b'-' | b'0'..=b'9' => write_number(first.text, out),
        _ => matches!(first.text, "null" | "true" | "false").then(|| out.push_str(first.text)),
    }
}

fn write_object(
    tokens: &mut Tokens<'_>,
    depth: usize,
    is_left_out: fn(&str, &str) -> bool,
    out: &mut String,
) -> Option<()> {
    // Each value is written to its own text, to be sorted afterwards.
    let mut members = Vec::new();
    tokens.items(b'}', |tokens, name| {
        tokens.next().filter(|token| token.first() == b':')?;
        let mut value = String::new();
        let first = tokens.next()?;
        write_value(tokens, first, depth + 1, is_left_out, &mut value)?;
        let name = string(name.text)?;
        if !is_left_out(&name, &value) {
            members.push((name, value));
        }
        Some(())
    })?;
    // Stable: repeated keys, which no decoded body has, keep their order.
    members.sort_by(|(a, _), (b, _)| a.cmp(b));
    out.push('{');
    for (name, value) in &members {
        write_string(name, out);
        out.extend([":", value, ","]);
    }
    close('}', out);
    Some(())
}

/// Writes a closing bracket in place of the comma behind the last item.
fn close(bracket: char, out: &mut String) {
    if out.ends_with(',') {
        out.pop();
    }
    out.push(bracket);
}

fn write_number(token: &str, out: &mut String) -> Option<()> {
    if let Ok(integer) = token.parse::<i64>() {
        return write!(out, "{integer}").ok();
    }
    if token.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit()) {
        out.push_str(token);
        return Some(());
    }
    let number: f64 = token.parse().ok()?;
    let is_zero = || token.bytes().take_while(|b| !b"eE".contains(b)).all(|b| b"-.0".contains(&b));
    // Rust prints the shortest digits that read back as the same double, and a whole number without
    // a point, just as an integer. Without exponents 1e300 would take 301 digits.
    match number.abs() {
        0.0 if is_zero() => write!(out, "0").ok(),
        0.0 | f64::INFINITY => write_decimal(&Decimal::parse(token)?, out),
        1e-6..9.3e18 => write!(out, "{number}").ok(),
        _ => write!(out, "{number:e}").ok(),
    }
}

/// Writes a number other than 0 as Rust writes a double with an exponent, but with all of its digits.
fn write_decimal(number: &Decimal, out: &mut String) -> Option<()> {
    let Decimal { negative, digits, exponent } = number;
    let sign = if *negative { "-" } else { "" };
    let (first, rest) = digits.split_at_checked(1)?;
    let point = if rest.is_empty() { "" } else { "." };
    write!(out, "{sign}{first}{point}{rest}e{exponent}").ok()
}

fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            // Writing to a string cannot fail.
            '\0'..='\u{1f}' => {
                write!(out, "\\u{:04x}", u32::from(character)).unwrap_or_default();
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn texts_that_mean_the_same_have_one_form() {
        let cases = [
            (
                r#" { "b" : [ 1 , 2.0 , { } , [ ] ] , "a" : null } "#,
                r#"{"a":null,"b":[1,2,{},[]]}"#,
            ),
            (r#"["\u00e9\/\n\u0001\"\\","é"]"#, "[\"é/\\u000a\\u0001\\\"\\\\\",\"é\"]"),
            ("[1,1.0,10e-1,-0,-0.0,0e5]", "[1,1,1,0,0,0]"),
            (
                "[9223372036854775807,0.1,15e299,-2.50,1E-09]",
                "[9223372036854775807,0.1,1.5e300,-2.5,1e-9]",
            ),
            (
                "[9223372036854775808,-123456789012345678901234567890,1e30]",
                "[9223372036854775808,-123456789012345678901234567890,1e30]",
            ),
            ("[10e399,-0.1E401,1e-400,12.50e-401,0e999]", "[1e400,-1e400,1e-400,1.25e-400,0]"),
            (r#"{"\u0061":1,"A":true,"é":false}"#, r#"{"A":true,"a":1,"é":false}"#),
            (r#"{"a":2,"a":1}"#, r#"{"a":2,"a":1}"#),
        ];
        for (text, form) in cases {
            assert_eq!(canonical(text), form, "{text}");
        }
    }

    #[test]
    fn a_text_that_is_no_json_or_too_deep_is_unchanged() {
        let huge = "[1e9999999999999999999999999999999999999999, 1]";
        let deep = "[".repeat(500) + &"]".repeat(500);
        for text in
            ["", "{", "[1 2]", "[1,]", "[,]", "{\"a\" 1}", "nul", "\"\\", huge, deep.as_str()]
        {
            assert_eq!(canonical(text), text);
        }
    }
}
