//! How far something is, on standard error, where that is a terminal. The templates are those of
//! `indicatif`.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// Something turns, for work of which nobody knows how much there is.
pub(crate) fn spinner(template: &str) -> ProgressBar {
    shown(ProgressBar::new_spinner(), template)
}

/// A bar that fills.
pub(crate) fn bar(total: u64, template: &str) -> ProgressBar {
    shown(ProgressBar::new(total), template)
}

fn shown(bar: ProgressBar, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    bar.with_style(ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()))
}
