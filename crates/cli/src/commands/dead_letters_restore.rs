//! `verbatim dead-letters restore`: opens discarded or replayed dead letters again.

use clap::{Args, ValueEnum};
use database::DeadLetterStatus;
use stores::DatabaseServer;

use super::dead_letters_selection::{Operation, Texts, dead_letters};
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Opens discarded or replayed dead letters again
#[derive(Debug, Args)]
#[command(override_usage = "verbatim dead-letters restore [OPTIONS] [ID]...")]
#[command(after_help = "\
Examples:
  verbatim dead-letters restore ID
  verbatim dead-letters restore --status discarded --tenant acme --since 2h

Replaying a dead letter again is safe: its effect happens once. Exit code 1: a dead letter that
was given by its id was skipped.")]
pub(crate) struct DeadLettersRestore {
    /// Only those with this status; required unless dead letters are given by their ids
    #[arg(long, value_enum)]
    status: Option<RestoreFrom>,

    #[command(flatten)]
    on: Operation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RestoreFrom {
    /// Discarded by an operator
    Discarded,
    /// Published again by a replay
    Replayed,
}

impl DeadLettersRestore {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let selection = self.on.chosen.selection(output.now)?;
        let status: &[DeadLetterStatus] = match (self.status, self.on.chosen.named()) {
            (Some(RestoreFrom::Discarded), _) => &[DeadLetterStatus::Discarded],
            (Some(RestoreFrom::Replayed), _) => &[DeadLetterStatus::Replayed],
            (None, 1..) => &[DeadLetterStatus::Discarded, DeadLetterStatus::Replayed],
            // Most replayed dead letters succeeded, so opening them is not a default.
            (None, 0) => {
                return Err(Failure::usage(
                    "give --status discarded or --status replayed: which dead letters to open again",
                ));
            }
        };
        let server = DatabaseServer::open(&self.on.database).await?;
        let actor = self.on.actor.actor();
        let restored = dead_letters(&server).restore(selection, status, &actor).await;
        let restored = restored.map_err(|error| server.failure(&error))?;
        let texts = Texts {
            done: "open again",
            required: "discarded or replayed",
            next: "next: `verbatim dead-letters replay`",
        };
        self.on.report(&actor, restored, &texts, output)
    }
}
