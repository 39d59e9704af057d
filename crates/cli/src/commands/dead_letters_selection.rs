//! The selection of dead letters: the same filters for all subcommands.

use broker::topology::WorkQueue;
use clap::{Args, ValueEnum};
use database::{Actor, DeadLetterFilter, DeadLetterStatus, ReplayedBefore, Selection};
use dead_letters::DeadLetters;
use domain::failure::DeadLetterReason;
use domain::ids::{ConversationId, TenantId};
use domain::time::Timestamp;
use metrics::Metrics;
use serde::Serialize;
use service::settings::DatabaseSettings;
use stores::DatabaseServer;
use uuid::Uuid;

use crate::actor::ActorArgs;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Tone, plural};
use crate::values::{When, one_of};

/// Filters. A dead letter must match all of them.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Which dead letters")]
pub(crate) struct Filters {
    /// Only from this work queue
    #[arg(long, value_parser = queue)]
    pub(crate) queue: Option<&'static str>,

    /// Only with this reason: malformed_json, schema, too_large, unknown_action, conflict,
    /// attempts_exhausted, delivery_limit, expired or unreadable
    #[arg(long, value_parser = reason)]
    pub(crate) reason: Option<DeadLetterReason>,

    /// Only with this field at fault
    #[arg(long)]
    field: Option<String>,

    /// Only with an error that contains this text (case-insensitive)
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,

    /// Only of this tenant
    #[arg(long, value_parser = |text: &str| TenantId::new(text), allow_hyphen_values = true)]
    tenant: Option<TenantId>,

    /// Only of this conversation
    #[arg(long, value_parser = |text: &str| ConversationId::new(text), allow_hyphen_values = true)]
    conversation: Option<ConversationId>,

    /// Only of the message with this id
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    message: Option<String>,

    /// Only with this action_type
    #[arg(long, value_name = "TYPE")]
    action: Option<String>,

    /// Only those that failed at or after this time: RFC 3339, or how long ago (2h, 30min)
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    since: Option<When>,

    /// Only those that failed before this time: RFC 3339, or how long ago (2h, 30min)
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    until: Option<When>,

    /// yes: only those that failed again after a replay; no: only those that were never replayed
    #[arg(long, value_enum, value_name = "YES|NO")]
    replayed_before: Option<YesNo>,
}

/// The dead letters to act upon.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Which dead letters")]
pub(crate) struct Chosen {
    /// Ids of dead letters
    #[arg(value_name = "ID", conflicts_with = "all")]
    ids: Vec<Uuid>,

    #[command(flatten)]
    filters: Filters,

    /// No filter but --status
    #[arg(long)]
    all: bool,
}

/// What every command has that acts upon dead letters.
#[derive(Debug, Args)]
pub(crate) struct Operation {
    #[command(flatten)]
    pub(crate) chosen: Chosen,

    #[command(flatten)]
    pub(crate) actor: ActorArgs,

    #[command(flatten)]
    pub(crate) database: DatabaseSettings,
}

/// The result of a command that decides on dead letters.
#[derive(Debug, Serialize)]
struct Decided {
    /// The run id in the audit log.
    run: Uuid,
    /// Dead letters that were changed.
    dead_letters: u64,
    /// Dead letters that were given by their ids and not changed.
    skipped: u64,
}

/// What the text of such a command says.
pub(super) struct Texts {
    /// What was done to the dead letters.
    pub(super) done: &'static str,
    /// The status that they needed.
    pub(super) required: &'static str,
    /// The next command.
    pub(super) next: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Status {
    /// Neither replayed nor discarded
    Open,
    /// Published again by a replay
    Replayed,
    /// Discarded by an operator
    Discarded,
    /// Any status
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum YesNo {
    Yes,
    No,
}

impl Filters {
    /// The filter for the database; durations are counted back from `now`.
    pub(crate) fn filter(&self, now: Timestamp) -> DeadLetterFilter {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        DeadLetterFilter {
            queue: owned(self.queue),
            reason: self.reason,
            field: self.field.clone(),
            error_contains: self.error.clone(),
            tenant: self.tenant.as_ref().map(ToString::to_string),
            conversation: self.conversation.as_ref().map(ToString::to_string),
            message_id: self.message.clone(),
            action_type: self.action.clone(),
            since: self.since.map(|when| when.before(now)),
            until: self.until.map(|when| when.before(now)),
            replayed_before: self.replayed_before.map(|answer| match answer {
                YesNo::Yes => ReplayedBefore::FailedAgain,
                YesNo::No => ReplayedBefore::Never,
            }),
        }
    }
}

impl Chosen {
    /// The selection: by ids, by filters, or all; exactly one of these.
    pub(crate) fn selection(&self, now: Timestamp) -> Result<Selection, Failure> {
        let filter = self.filters.filter(now);
        match (self.ids.is_empty(), filter.is_empty(), self.all) {
            (true, true, true) => Ok(Selection::All),
            (true, false, false) => Ok(Selection::Matching(filter)),
            (false, true, false) => Ok(Selection::Ids(self.ids.clone())),
            (true, true, false) => Err(Failure::usage(
                "no dead letters selected: give ids, filters (such as --reason schema) or --all",
            )),
            _ => Err(Failure::usage(
                "select dead letters either by ids, or by filters, or with --all; not by several of these",
            )),
        }
    }

    /// The number of different ids that were given.
    pub(crate) fn named(&self) -> u64 {
        let mut ids = self.ids.clone();
        ids.sort_unstable();
        ids.dedup();
        ids.len() as u64
    }
}

impl Operation {
    /// Reports that dead letters were changed.
    pub(super) fn report(
        &self,
        actor: &Actor,
        dead_letters: u64,
        texts: &Texts,
        output: &Output,
    ) -> Result<Exit, Failure> {
        let skipped = self.chosen.named().saturating_sub(dead_letters);
        let decided = Decided { run: actor.run, dead_letters, skipped };
        output.show(&decided, |out| {
            let Texts { done, required, next } = texts;
            let tone = if dead_letters > 0 { Tone::Good } else { Tone::Warn };
            out.piece(tone, format!("{} {done}", plural(dead_letters, "dead letter")));
            let why = format!("skipped (not {required}, unknown, or claimed by a running replay)");
            out.counts(Tone::Warn, [(skipped, &why)]);
            out.push("\n");
            if dead_letters > 0 {
                out.line(Tone::Dim, next);
            }
        })?;
        Ok(if skipped > 0 { Exit::Problems } else { Exit::Success })
    }
}

/// The dead letters of a database.
pub(super) fn dead_letters(server: &DatabaseServer) -> DeadLetters {
    DeadLetters::new(server.database.clone(), Metrics::new())
}

impl Status {
    /// The status in the database; `None` for any.
    pub(crate) fn stored(self) -> Option<DeadLetterStatus> {
        match self {
            Self::Open => Some(DeadLetterStatus::Open),
            Self::Replayed => Some(DeadLetterStatus::Replayed),
            Self::Discarded => Some(DeadLetterStatus::Discarded),
            Self::All => None,
        }
    }
}

fn queue(text: &str) -> Result<&'static str, String> {
    let work_queue = text.strip_suffix(".dlq").unwrap_or(text);
    one_of(work_queue, WorkQueue::ALL, WorkQueue::name).map(WorkQueue::name)
}

fn reason(text: &str) -> Result<DeadLetterReason, String> {
    one_of(text, DeadLetterReason::ALL, DeadLetterReason::as_str)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        chosen: Chosen,
    }

    fn selection(arguments: &[&str]) -> Result<Selection, String> {
        let arguments = [&["command"], arguments].concat();
        let command = Command::try_parse_from(arguments).map_err(|error| error.to_string())?;
        let now = Timestamp::parse("2026-11-20T12:00:00Z").unwrap();
        command.chosen.selection(now).map_err(|failure| failure.text)
    }

    #[test]
    fn all_dead_letters_are_selected_only_with_all() {
        assert!(selection(&[]).is_err_and(|error| error.contains("no dead letters selected")));
        assert_eq!(selection(&["--all"]), Ok(Selection::All));
        let id = Uuid::from_u128(7);
        assert_eq!(selection(&[&id.to_string()]), Ok(Selection::Ids(vec![id])));
        for two in [&[&id.to_string(), "--all"][..], &["--all", "--tenant", "acme"]] {
            assert!(selection(two).is_err(), "{two:?}");
        }
        assert!(selection(&[&id.to_string(), "--tenant", "acme"]).is_err());
    }

    #[test]
    fn dead_letters_are_selected_by_when_they_failed() {
        let at = |text: &str| Timestamp::parse(text).unwrap();
        let filter = DeadLetterFilter {
            since: Some(at("2026-11-20T09:30:00Z")),
            until: Some(at("2026-11-20T11:00:00Z")),
            ..DeadLetterFilter::default()
        };
        let arguments = ["--since", "2h 30min", "--until", "2026-11-20T11:00:00Z"];
        assert_eq!(selection(&arguments), Ok(Selection::Matching(filter)));
    }

    #[test]
    fn a_queue_may_be_named_by_its_dead_letter_queue() {
        assert_eq!(queue("conversation.session.dlq"), Ok("conversation.session"));
        assert!(queue("conversation").is_err_and(|error| error.contains("bot.state")));
    }
}
