//! What the chores print: plain lines, bold headings where a terminal can show them.

use std::io::{IsTerminal, Write};

/// A heading.
pub(crate) fn heading(text: &str) {
    line(&styled("1", text));
}

/// An ordinary line. A closed pipe is not worth an error: the work goes on.
pub(crate) fn line(text: &str) {
    writeln!(std::io::stdout(), "{text}").ok();
}

/// A line for something that stands beside the main thing.
pub(crate) fn aside(text: &str) {
    line(&styled("2", text));
}

/// A line about what is going on, beside the result: it goes to standard error.
pub(crate) fn note(text: &str) {
    writeln!(std::io::stderr(), "{text}").ok();
}

/// What went wrong, with its causes.
pub(crate) fn failure(error: &anyhow::Error) {
    writeln!(std::io::stderr(), "{} {error:#}", styled("1;31", "error:")).ok();
}

fn styled(style: &str, text: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some() || !std::io::stdout().is_terminal();
    if plain { text.to_owned() } else { format!("\x1b[{style}m{text}\x1b[0m") }
}
