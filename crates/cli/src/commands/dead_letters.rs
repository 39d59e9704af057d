//! `verbatim dead-letters`: its subcommands.

use clap::Subcommand;

use super::dead_letters_discard::DeadLettersDiscard;
use super::dead_letters_edit::DeadLettersEdit;
use super::dead_letters_export::DeadLettersExport;
use super::dead_letters_list::DeadLettersList;
use super::dead_letters_replay::DeadLettersReplay;
use super::dead_letters_restore::DeadLettersRestore;
use super::dead_letters_show::DeadLettersShow;
use crate::exit::{Exit, Failure};
use crate::output::Output;

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
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        match self {
            Self::List(list) => list.run(output).await,
            Self::Show(show) => show.run(output).await,
            Self::Edit(edit) => edit.run(output).await,
            Self::Replay(replay) => replay.run(output).await,
            Self::Discard(discard) => discard.run(output).await,
            Self::Restore(restore) => restore.run(output).await,
            Self::Export(export) => export.run(output).await,
        }
    }
}
