//! Output of commands: text in columns, or one JSON document.
//!
//! Output quotes messages of others. In text every control character is made visible, so that no message
//! can send escape sequences to the terminal; JSON escapes them anyway.

mod paint;
mod progress;
mod table;
mod text;
mod times;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::ValueEnum;
use domain::time::Timestamp;
use serde::Serialize;

pub(crate) use domain::excerpt::excerpt;
pub(crate) use paint::{Paint, Tone};
pub(crate) use progress::{bar, spinner};
pub(crate) use table::Cell;
pub(crate) use text::{block, count, one_line, plural, shortened};
pub(crate) use times::{ago, moment, precise, span};

use crate::exit::Failure;

/// Rows of a table of failures; JSON lists more.
pub(crate) const LISTED: usize = 20;
/// Characters of an error in a table.
pub(crate) const ERROR: usize = 120;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colour {
    /// On a terminal, unless `NO_COLOR` is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    /// For scripts: one document.
    Json,
}

#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) form: Form,
    pub(crate) paint: Paint,
    /// When the command began.
    pub(crate) now: Timestamp,
}

impl Output {
    /// Prints a result: as JSON, or as the text that `write` writes.
    ///
    /// # Errors
    /// Writing failed.
    pub(crate) fn show<T: Serialize>(
        &self,
        value: &T,
        write: impl FnOnce(&mut Text),
    ) -> Result<(), Failure> {
        match self.form {
            Form::Text => print(self.text(write).as_bytes()),
            Form::Json => {
                let mut json = serde_json::to_vec_pretty(value).map_err(|error| {
                    Failure::plain(format!("cannot serialise the result as JSON: {error}"))
                })?;
                json.push(b'\n');
                print(&json)
            }
        }
    }

    /// The text that `write` writes.
    pub(crate) fn text(&self, write: impl FnOnce(&mut Text)) -> String {
        let mut text = Text { paint: self.paint, now: self.now, written: String::new() };
        write(&mut text);
        text.written
    }
}

/// The text of a command while it is written.
#[derive(Debug)]
pub(crate) struct Text {
    paint: Paint,
    /// The current time, from which "3 min ago" is computed.
    pub(crate) now: Timestamp,
    written: String,
}

impl Text {
    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        self.paint.text(tone, text)
    }

    pub(crate) fn push(&mut self, text: impl AsRef<str>) {
        self.written.push_str(text.as_ref());
    }

    /// A piece of a line.
    pub(crate) fn piece(&mut self, tone: Tone, text: impl AsRef<str>) {
        self.push(self.paint(tone, text.as_ref()));
    }

    /// A whole line.
    pub(crate) fn line(&mut self, tone: Tone, text: impl AsRef<str>) {
        self.piece(tone, text);
        self.push("\n");
    }

    /// The name of an attribute and its value, on a line.
    pub(crate) fn field(&mut self, name: &str, tone: Tone, value: impl AsRef<str>) {
        let name = self.paint(Tone::Dim, &format!("{name:<14}"));
        self.push(format!("  {name}"));
        self.line(tone, one_line(value.as_ref()));
    }

    /// A heading over an indented text, after an empty line.
    pub(crate) fn section(&mut self, tone: Tone, heading: &str, text: &str) {
        self.push("\n");
        self.line(tone, heading);
        self.push(block(text, "  "));
    }

    pub(crate) fn table<const N: usize>(
        &mut self,
        titles: [&str; N],
        rows: impl IntoIterator<Item = [Cell; N]>,
    ) {
        self.push(table::table(titles, rows, self.paint));
    }

    /// The first [`LISTED`] rows, how many more JSON lists, and an empty line; nothing if there are no rows.
    pub(crate) fn first_rows<const N: usize>(
        &mut self,
        titles: [&str; N],
        rows: impl ExactSizeIterator<Item = [Cell; N]>,
    ) {
        let all = rows.len();
        if all == 0 {
            return;
        }
        self.table(titles, rows.take(LISTED));
        if all > LISTED {
            self.push(format!("… and {} more; --json lists them\n", count((all - LISTED) as u64)));
        }
        self.push("\n");
    }

    /// Each number that is not 0, after a comma.
    pub(crate) fn counts<const N: usize>(&mut self, tone: Tone, counts: [(u64, &str); N]) {
        for (number, what) in counts.into_iter().filter(|(number, _)| *number > 0) {
            self.piece(tone, format!(", {} {what}", count(number)));
        }
    }
}

impl Colour {
    /// Whether standard output is coloured (<https://no-color.org>).
    pub(crate) fn paint(self, environment: &BTreeMap<OsString, OsString>) -> Paint {
        let variable = |name: &str| environment.get(OsStr::new(name));
        let unwanted = variable("NO_COLOR").is_some_and(|value| !value.is_empty())
            || variable("TERM").is_some_and(|term| term == "dumb");
        match self {
            Self::Always => Paint::Colours,
            Self::Auto if !unwanted && io::stdout().is_terminal() => Paint::Colours,
            Self::Auto | Self::Never => Paint::Plain,
        }
    }
}

pub(crate) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    written(out.write_all(bytes).and_then(|()| out.flush()))
}

/// The result of writing the output. A reader that closed the pipe (`| head`) has what it wants, so the exit code
/// stays that of the command.
pub(crate) fn written(result: io::Result<()>) -> Result<(), Failure> {
    result.or_else(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(Failure::plain(format!("cannot write the output: {error}"))),
    })
}

/// Prints on standard error why a command could not do its work, and returns the exit code.
pub(crate) fn print_error(failure: &Failure) -> ExitCode {
    // Where standard error is closed, the exit code is all that can be reported; `eprint!` would panic.
    io::stderr().write_all(error_lines(failure).as_bytes()).ok();
    failure.exit.code()
}

/// The text may quote a sender or a server, so its control characters are made visible.
fn error_lines(failure: &Failure) -> String {
    let mut out = String::new();
    for (n, line) in failure.text.lines().enumerate() {
        let indent = if n == 0 { "" } else { "  " };
        out.push_str(&format!("verbatim: {indent}{}\n", one_line(line)));
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn control_characters_in_a_quoted_message_do_not_reach_the_terminal() {
        let failure = Failure::problem("refused: `\u{1b}[2Jbot`", "see \u{9b}below");
        let expected = "verbatim: refused: `␛[2Jbot`\nverbatim:   see \u{fffd}below\n";
        assert_eq!(error_lines(&failure), expected);
    }

    #[test]
    fn only_a_reader_that_closed_the_pipe_is_no_failure() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(written(Err(closed)).is_ok());
        let full = written(Err(io::Error::from(io::ErrorKind::StorageFull))).unwrap_err();
        assert!(full.text.starts_with("cannot write the output"), "{full:?}");
    }

    /// A text without colours, at noon.
    pub(crate) fn plain(write: impl FnOnce(&mut Text)) -> String {
        let now = Timestamp::parse("2026-11-20T12:00:00Z").unwrap();
        Output { form: Form::Text, paint: Paint::Plain, now }.text(write)
    }
}
