//! `verbatim dead-letters restore`: letters that were discarded or replayed are open again.

use archive::DeadLetterStatus;
use clap::{Args, ValueEnum};
use service::settings::DatabaseSettings;

use super::dead_letters_discard::{Done, letters};
use super::dead_letters_selection::Chosen;
use crate::actor::Actor;
use crate::exit::{Exit, Failure};
use crate::look::Screen;
use crate::servers::Database;

const EXAMPLES: &str = "\
Examples:
  verbatim dead-letters restore ID
  verbatim dead-letters restore --status discarded --tenant acme --since 2h

A letter that was replayed may be replayed again: its effect happens once. Exit code 1: not every
letter that was named is open again.";

/// Opens discarded or replayed dead letters again
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(override_usage = "verbatim dead-letters restore [OPTIONS] [ID]...")]
pub(crate) struct DeadLettersRestore {
    /// Only those in this state; letters that are named by their ids may be in either
    #[arg(long, value_enum)]
    status: Option<Was>,

    #[command(flatten)]
    chosen: Chosen,

    #[command(flatten)]
    actor: Actor,

    #[command(flatten)]
    database: DatabaseSettings,
}

/// What became of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Was {
    /// Somebody decided that it may stay dead
    Discarded,
    /// It was sent again
    Replayed,
}

impl DeadLettersRestore {
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        let selection = self.chosen.selection(screen.look.now)?;
        let status: &[DeadLetterStatus] = match (self.status, self.chosen.named()) {
            (Some(Was::Discarded), _) => &[DeadLetterStatus::Discarded],
            (Some(Was::Replayed), _) => &[DeadLetterStatus::Replayed],
            (None, 1..) => &[DeadLetterStatus::Discarded, DeadLetterStatus::Replayed],
            // What was replayed is most likely well.
            (None, 0) => {
                return Err(Failure::Usage(
                    "--status discarded or --status replayed: which of them are to be open again?"
                        .to_owned(),
                ));
            }
        };
        let database = Database::open(&self.database).await?;
        let by = self.actor.by();
        let restored = letters(&database).restore(selection, status, &by).await;
        let letters = restored.map_err(|error| database.failure(&error))?;
        let others = self.chosen.named().saturating_sub(letters);
        let done = Done { run: by.run, letters, others };
        screen.show(&done, |look| done.text("open again", "discarded or replayed", look))?;
        Ok(done.exit())
    }
}
