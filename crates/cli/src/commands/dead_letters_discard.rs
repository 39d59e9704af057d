//! `verbatim dead-letters discard`: letters that may stay dead, and why.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use conversation::letters::{DeadLetters, Examiner};
use domain::decode::DEFAULT_MAX_BODY_BYTES;
use metrics::Metrics;
use serde::Serialize;
use service::settings::DatabaseSettings;
use uuid::Uuid;

use super::dead_letters_selection::Chosen;
use crate::actor::Actor;
use crate::exit::{Exit, Failure};
use crate::look::{Look, Screen, Tone, plural};
use crate::servers::Database;

const EXAMPLES: &str = "\
Examples:
  verbatim dead-letters discard ID --why 'a test of the agents team'
  verbatim dead-letters discard --tenant demo --reason schema --why 'demo data'

Nothing is deleted: `verbatim dead-letters restore` opens them again. Letters that are not open, or
that a replay has just now, stay as they are. Exit code 1: not every letter that was named is
discarded.";

/// Discards open dead letters, with a reason
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(override_usage = "verbatim dead-letters discard [OPTIONS] --why <TEXT> [ID]...")]
pub(crate) struct DeadLettersDiscard {
    /// Why they may stay dead
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    why: String,

    #[command(flatten)]
    chosen: Chosen,

    #[command(flatten)]
    actor: Actor,

    #[command(flatten)]
    database: DatabaseSettings,
}

/// What was done to how many letters.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    /// The id under which the audit log knows all of it.
    pub(super) run: Uuid,
    pub(super) letters: u64,
    /// Letters that were named one by one and to which it was not done.
    pub(super) others: u64,
}

impl DeadLettersDiscard {
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        let selection = self.chosen.selection(screen.look.now)?;
        let database = Database::open(&self.database).await?;
        let by = self.actor.by();
        let discarded = letters(&database).discard(selection, &self.why, &by).await;
        let letters = discarded.map_err(|error| database.failure(&error))?;
        let others = self.chosen.named().saturating_sub(letters);
        let done = Done { run: by.run, letters, others };
        screen.show(&done, |look| done.text("discarded", "open", look))?;
        Ok(done.exit())
    }
}

/// The letters of a database, for what needs no look at their bodies.
pub(super) fn letters(database: &Database) -> DeadLetters {
    let examiner = Examiner { max_body_bytes: DEFAULT_MAX_BODY_BYTES };
    DeadLetters::new(database.archive.clone(), Metrics::new(), examiner)
}

impl Done {
    pub(super) fn text(&self, done: &str, what: &str, look: &Look) -> String {
        let tone = if self.letters > 0 { Tone::Good } else { Tone::Warn };
        let mut out = look.paint.text(tone, &format!("{} {done}", plural(self.letters, "letter")));
        if self.others > 0 {
            let others = plural(self.others, "letter");
            let told = format!("; {others} named are not {what}, or a replay has them just now");
            out.push_str(&look.paint.text(Tone::Warn, &told));
        }
        out.push('\n');
        out
    }

    pub(super) fn exit(&self) -> Exit {
        if self.others > 0 { Exit::Problems } else { Exit::Fine }
    }
}
