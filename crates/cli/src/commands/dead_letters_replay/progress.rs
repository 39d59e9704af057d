//! How far a replay is: a bar on a terminal, now and then a line elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use conversation::dead_letters::Progress;
use indicatif::ProgressBar;

use crate::output::{self, count};

/// Between two lines, where there is no terminal.
const LINES_APART: Duration = Duration::from_secs(5);

/// What the user sees of it, on standard error.
pub(super) struct Shown {
    bar: Option<ProgressBar>,
    told: Instant,
}

impl Shown {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = "{wide_bar} {human_pos} of {human_len}, {msg}, {eta} left";
            output::bar(0, template)
        });
        Self { bar, told: Instant::now() }
    }

    pub(super) fn show(&mut self, progress: &Progress) {
        let Progress { matched, replayed, failed, failed_again, batch } = *progress;
        let state = format!(
            "{} came back, {} not sent, batches of {batch}",
            count(failed_again),
            count(failed)
        );
        if let Some(bar) = &self.bar {
            bar.set_length(matched);
            bar.set_position(replayed + failed);
            bar.set_message(state);
        } else if self.told.elapsed() >= LINES_APART {
            self.told = Instant::now();
            eprintln!("{} of {} replayed, {state}", count(replayed), count(matched));
        }
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
