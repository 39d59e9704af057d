//! `verbatim dead-dead_letters restore`: dead letters that were discarded or replayed are open again.

use clap::{Args, ValueEnum};
use database::DeadLetterStatus;
use service::settings::DatabaseSettings;

use super::dead_letters_discard::{Done, dead_letters};
use super::dead_letters_selection::Chosen;
use crate::actor::ActorArgs;
use crate::exit::{Exit, Failure};
use crate::output::Screen;
use crate::servers::DatabaseServer;

const EXAMPLES: &str = "\
Examples:
  verbatim dead-letters restore ID
  verbatim dead-letters restore --status discarded --tenant acme --since 2h

A dead letter that was replayed may be replayed again: its effect happens once. Exit code 1: not every
dead letter that was named is open again.";

/// Opens discarded or replayed dead letters again
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(override_usage = "verbatim dead-letters restore [OPTIONS] [ID]...")]
pub(crate) struct DeadLettersRestore {
    /// Only those in this state; dead letters that are named by their ids may be in either
    #[arg(long, value_enum)]
    status: Option<Was>,

    #[command(flatten)]
    chosen: Chosen,

    #[command(flatten)]
    actor: ActorArgs,

    #[command(flatten)]
    database: DatabaseSettings,
}

/// What became of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Was {
    /// Somebody decided that it may stay dead
    Discarded,
    /// It was sent again
    Replayed,
}

impl DeadLettersRestore {
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        let selection = self.chosen.selection(screen.style.now)?;
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
        let server = DatabaseServer::open(&self.database).await?;
        let actor = self.actor.actor();
        let restored = dead_letters(&server).restore(selection, status, &actor).await;
        let dead_letters = restored.map_err(|error| server.failure(&error))?;
        let others = self.chosen.named().saturating_sub(dead_letters);
        let done = Done { run: actor.run, dead_letters, others };
        screen.show(&done, |style| done.text("open again", "discarded or replayed", style))?;
        Ok(done.exit())
    }
}
