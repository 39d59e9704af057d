//! Colours. Each has a meaning that the text states too.

use clap::builder::styling::{AnsiColor, Style};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    Plain,
    /// ANSI escape sequences.
    Colours,
}

/// What a piece of text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Strong,
    Dim,
    Good,
    Warn,
    Bad,
    /// A message of a user.
    Human,
    /// A message of a model.
    Model,
}

impl Paint {
    pub(crate) fn text(self, tone: Tone, text: &str) -> String {
        let style = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Strong => Style::new().bold(),
            Tone::Dim => Style::new().dimmed(),
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Warn => AnsiColor::Yellow.on_default(),
            Tone::Bad => AnsiColor::Red.on_default().bold(),
            Tone::Human => AnsiColor::Cyan.on_default().bold(),
            Tone::Model => AnsiColor::Magenta.on_default().bold(),
        };
        match self {
            Self::Plain => text.to_owned(),
            Self::Colours => format!("{style}{text}{style:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_paint_leaves_a_text_as_it_is() {
        assert_eq!(Paint::Plain.text(Tone::Bad, "missing"), "missing");
        assert_eq!(Paint::Colours.text(Tone::Plain, "missing"), "missing");
        let red = Paint::Colours.text(Tone::Bad, "missing");
        assert!(red.starts_with("\u{1b}[") && red.ends_with("\u{1b}[0m"), "{red:?}");
    }
}
