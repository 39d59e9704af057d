//! Output of commands: text in columns, or one JSON document.
//!
//! Output quotes messages of others. In text every control character is made visible, so that no message
//! can send escape sequences to the terminal; JSON escapes them anyway.

mod paint;
mod progress;
mod table;
mod text;
mod times;

use std::io::{IsTerminal as _, Write as _};

use clap::ValueEnum;
use domain::time::Timestamp;
use serde::Serialize;

pub(crate) use paint::{Paint, Tone};
pub(crate) use progress::{bar, spinner};
pub(crate) use table::{Cell, Side, Table};
pub(crate) use text::{block, count, excerpt, one_line, plural};
pub(crate) use times::{ago, moment, precise, span};

use crate::exit::Failure;

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

#[derive(Debug, Clone, Copy)]
pub(crate) struct TextStyle {
    pub(crate) paint: Paint,
    /// The current time, from which "3 min ago" is computed.
    pub(crate) now: Timestamp,
}

#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) form: Form,
    pub(crate) style: TextStyle,
}

impl TextStyle {
    /// A whole line.
    pub(crate) fn line(&self, tone: Tone, text: &str) -> String {
        format!("{}\n", self.paint.text(tone, text))
    }
}

impl Output {
    pub(crate) fn new(form: Form, colour: Colour, no_color: NoColor, now: Timestamp) -> Self {
        Self { form, style: TextStyle { paint: paint(colour, no_color), now } }
    }

    /// Prints a result: as JSON, or as the text that `text` renders.
    ///
    /// # Errors
    /// Writing failed; [`Failure::ClosedPipe`] if the reader closed the pipe.
    pub(crate) fn show<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&TextStyle) -> String,
    ) -> Result<(), Failure> {
        match self.form {
            Form::Text => print(text(&self.style).as_bytes()),
            Form::Json => {
                let mut json = serde_json::to_vec_pretty(value).map_err(|error| {
                    Failure::plain(format!("cannot serialise the result as JSON: {error}"))
                })?;
                json.push(b'\n');
                print(&json)
            }
        }
    }
}

/// Whether standard output is coloured.
pub(crate) fn paint(colour: Colour, no_color: NoColor) -> Paint {
    match colour {
        Colour::Always => Paint::Colours,
        Colour::Auto if no_color == NoColor::Unset && std::io::stdout().is_terminal() => {
            Paint::Colours
        }
        Colour::Auto | Colour::Never => Paint::Plain,
    }
}

/// Whether the environment turns colours off (<https://no-color.org>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoColor {
    /// `NO_COLOR` is not set, or empty.
    Unset,
    /// `NO_COLOR` is set, or `TERM` is `dumb`.
    Set,
}

pub(crate) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(())
}
