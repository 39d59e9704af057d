//! `verbatim dead-letters discard`: discards open dead letters, with a reason.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use dead_letters::{DeadLetterValidator, DeadLetters};
use domain::decode::DEFAULT_MAX_BODY_BYTES;
use metrics::Metrics;
use serde::Serialize;
use stores::DatabaseServer;
use uuid::Uuid;

use super::dead_letters_selection::Operation;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Text, Tone, plural};

/// Discards open dead letters, with a reason
#[derive(Debug, Args)]
#[command(override_usage = "verbatim dead-letters discard [OPTIONS] --why <TEXT> [ID]...")]
#[command(after_help = "\
Examples:
  verbatim dead-letters discard ID --why 'a test of the agents team'
  verbatim dead-letters discard --tenant demo --reason schema --why 'demo data'

Nothing is deleted: `verbatim dead-letters restore` opens them again. Dead letters that are not
open, or that a running replay has claimed, are skipped. Exit code 1: a dead letter that was
given by its id was skipped.")]
pub(crate) struct DeadLettersDiscard {
    /// Why they are discarded; recorded in the audit log
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    why: String,

    #[command(flatten)]
    on: Operation,
}

/// The result of discarding or restoring.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    /// The run id in the audit log.
    pub(super) run: Uuid,
    /// Dead letters that were changed.
    pub(super) dead_letters: u64,
    /// Dead letters that were given by their ids and not changed.
    pub(super) skipped: u64,
}

/// What the text of a command says.
pub(super) struct Texts {
    /// What was done to the dead letters.
    pub(super) done: &'static str,
    /// The status that they needed.
    pub(super) required: &'static str,
    /// The next command.
    pub(super) next: &'static str,
}

impl DeadLettersDiscard {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let selection = self.on.chosen.selection(output.now)?;
        let server = DatabaseServer::open(&self.on.database).await?;
        let actor = self.on.actor.actor();
        let discarded = dead_letters(&server, DEFAULT_MAX_BODY_BYTES)
            .discard(selection, &self.why, &actor)
            .await;
        let dead_letters = discarded.map_err(|error| server.failure(&error))?;
        let skipped = self.on.chosen.named().saturating_sub(dead_letters);
        let done = Done { run: actor.run, dead_letters, skipped };
        let texts = Texts {
            done: "discarded",
            required: "open",
            next: "undo: `verbatim dead-letters restore`",
        };
        output.show(&done, |out| done.text(&texts, out))?;
        Ok(done.exit())
    }
}

/// The dead letters of a database; bodies of more than `max_body_bytes` are invalid.
pub(super) fn dead_letters(server: &DatabaseServer, max_body_bytes: usize) -> DeadLetters {
    let validator = DeadLetterValidator { max_body_bytes };
    DeadLetters::new(server.database.clone(), Metrics::new(), validator)
}

impl Done {
    pub(super) fn text(&self, texts: &Texts, out: &mut Text) {
        let Texts { done, required, next } = texts;
        let tone = if self.dead_letters > 0 { Tone::Good } else { Tone::Warn };
        out.piece(tone, format!("{} {done}", plural(self.dead_letters, "dead letter")));
        let skipped = format!("skipped (not {required}, unknown, or claimed by a running replay)");
        out.counts(Tone::Warn, [(self.skipped, &skipped)]);
        out.push("\n");
        if self.dead_letters > 0 {
            out.line(Tone::Dim, next);
        }
    }

    pub(super) fn exit(&self) -> Exit {
        if self.skipped > 0 { Exit::Problems } else { Exit::Success }
    }
}
