//! Progress on standard error, if that is a terminal. Templates are those of `indicatif`.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// A spinner, for work of unknown size.
pub(crate) fn spinner(template: &str) -> ProgressBar {
    styled(ProgressBar::new_spinner(), template)
}

/// A progress bar, for work of known size.
pub(crate) fn bar(total: u64, template: &str) -> ProgressBar {
    styled(ProgressBar::new(total), template)
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    bar.with_style(ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()))
}
