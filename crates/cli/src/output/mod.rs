//! How output looks: text in columns for people, JSON for machines.
//!
//! What is shown was written by others. In text every control character is made visible, so that no
//! message can play tricks with a terminal; JSON escapes them anyway.

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

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colour {
    /// On a terminal, unless `NO_COLOR` is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// What the output is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// People.
    Text,
    /// Machines: one document.
    Json,
}

/// What a text needs to know of the world around it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TextStyle {
    /// With colours or without.
    pub(crate) paint: Paint,
    /// What "3 min ago" is measured from.
    pub(crate) now: Timestamp,
}

/// Standard output, in the form that was asked for.
#[derive(Debug)]
pub(crate) struct Screen {
    pub(crate) form: Form,
    pub(crate) style: TextStyle,
}

impl Screen {
    pub(crate) fn new(form: Form, colour: Colour, no_color: NoColor, now: Timestamp) -> Self {
        let colours = match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => no_color == NoColor::Unset && std::io::stdout().is_terminal(),
        };
        Self {
            form,
            style: TextStyle { paint: if colours { Paint::Colours } else { Paint::Plain }, now },
        }
    }

    /// Shows a result: as JSON, or as the text that `text` makes of it.
    ///
    /// # Errors
    /// It cannot be written; [`Failure::ClosedPipe`] if nobody reads any more.
    pub(crate) fn show<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&TextStyle) -> String,
    ) -> Result<(), Failure> {
        match self.form {
            Form::Text => print(text(&self.style).as_bytes()),
            Form::Json => {
                let mut json = serde_json::to_vec_pretty(value)
                    .map_err(|error| Failure::plain(format!("cannot be told as JSON: {error}")))?;
                json.push(b'\n');
                print(&json)
            }
        }
    }
}

/// Whether the user wants no colours anywhere (<https://no-color.org>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoColor {
    /// `NO_COLOR` is not set, or empty.
    Unset,
    /// `NO_COLOR` is set, or the terminal knows no colours.
    Set,
}

/// Writes to standard output, whose reader may go away at any time.
pub(crate) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(())
}
