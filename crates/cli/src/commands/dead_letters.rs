//! `verbatim dead-dead_letters`: its verbs.

use clap::Subcommand;

use super::dead_letters_discard::DeadLettersDiscard;
use super::dead_letters_edit::DeadLettersEdit;
use super::dead_letters_export::DeadLettersExport;
use super::dead_letters_list::DeadLettersList;
use super::dead_letters_replay::DeadLettersReplay;
use super::dead_letters_restore::DeadLettersRestore;
use super::dead_letters_show::DeadLettersShow;
use crate::exit::{Exit, Failure};
use crate::output::Screen;

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersVerb {
    List(Box<DeadLettersList>),
    Show(Box<DeadLettersShow>),
    Edit(Box<DeadLettersEdit>),
    Replay(Box<DeadLettersReplay>),
    Discard(Box<DeadLettersDiscard>),
    Restore(Box<DeadLettersRestore>),
    Export(Box<DeadLettersExport>),
}

impl DeadLettersVerb {
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        match self {
            Self::List(list) => list.run(screen).await,
            Self::Show(show) => show.run(screen).await,
            Self::Edit(edit) => edit.run(screen).await,
            Self::Replay(replay) => replay.run(screen).await,
            Self::Discard(discard) => discard.run(screen).await,
            Self::Restore(restore) => restore.run(screen).await,
            Self::Export(export) => export.run(screen).await,
        }
    }
}
