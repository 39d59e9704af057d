//! The progress of a replay on standard error: a bar on a terminal, else a line every few seconds.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use dead_letters::Progress;
use indicatif::ProgressBar;

use crate::output::{self, count};

/// Time between two lines, without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The bar, or the time of the last line.
pub(super) struct ReplayProgress {
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl ReplayProgress {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = "{wide_bar} {human_pos} of {human_len}, {msg}, {eta} left";
            output::bar(0, template)
        });
        Self { bar, last_line: Instant::now() }
    }

    pub(super) fn show(&mut self, progress: &Progress) {
        let Progress { matched, replayed, failed, failed_again, batch } = *progress;
        let state = format!(
            "{} failed again, {} not sent, batches of up to {batch}",
            count(failed_again),
            count(failed)
        );
        if let Some(bar) = &self.bar {
            bar.set_length(matched);
            bar.set_position(replayed + failed);
            bar.set_message(state);
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            eprintln!("{} of {} replayed, {state}", count(replayed), count(matched));
        }
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
