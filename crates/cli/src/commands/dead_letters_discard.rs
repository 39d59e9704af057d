//! `verbatim dead-letters discard`: discards open dead letters, with a reason.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use stores::DatabaseServer;

use super::dead_letters_selection::{Operation, Texts, dead_letters};
use crate::exit::{Exit, Failure};
use crate::output::Output;

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

impl DeadLettersDiscard {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let selection = self.on.chosen.selection(output.now)?;
        let server = DatabaseServer::open(&self.on.database).await?;
        let actor = self.on.actor.actor();
        let discarded = dead_letters(&server).discard(selection, &self.why, &actor).await;
        let discarded = discarded.map_err(|error| server.failure(&error))?;
        let texts = Texts {
            done: "discarded",
            required: "open",
            next: "undo: `verbatim dead-letters restore`",
        };
        self.on.report(&actor, discarded, &texts, output)
    }
}
