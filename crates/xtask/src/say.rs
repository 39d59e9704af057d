//! Output of the commands: plain lines, and bold headings on terminals.

use std::io::{IsTerminal, Write};

/// Prints a heading.
pub(crate) fn heading(text: &str) {
    line(&styled("1", text));
}

/// Prints a line. A closed pipe is ignored: the work continues.
pub(crate) fn line(text: &str) {
    writeln!(std::io::stdout(), "{text}").ok();
}

/// Prints a line of secondary information, dimmed on terminals.
pub(crate) fn aside(text: &str) {
    line(&styled("2", text));
}

/// Prints a line about the progress to standard error.
pub(crate) fn note(text: &str) {
    writeln!(std::io::stderr(), "{text}").ok();
}

/// Prints an error with its causes to standard error.
pub(crate) fn failure(error: &anyhow::Error) {
    writeln!(std::io::stderr(), "{} {error:#}", styled("1;31", "error:")).ok();
}

fn styled(style: &str, text: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some() || !std::io::stdout().is_terminal();
    if plain { text.to_owned() } else { format!("\x1b[{style}m{text}\x1b[0m") }
}
