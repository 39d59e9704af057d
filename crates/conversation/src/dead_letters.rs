//! What operators do with dead letters: understand, edit a copy, replay, discard, restore, take out.
//!
//! All of it is work on the table; the queues only carry. What came stays as it came: an edit lies beside
//! the body, a replay that comes back is a dead letter of its own. Every action writes the audit log in the
//! statement that changes the row.

mod edit;
#[cfg(test)]
mod fixtures;
mod pace;
mod replay;
mod suggestion;
mod validator;

use database::{
    Actor, Database, DeadLetterCursor, DeadLetterRow, DeadLetterStatus, Decision, ListedDeadLetter,
    Selection,
};
use domain::failure::Refusal;
use metrics::Metrics;
use serde_json::{Value, json};
use uuid::Uuid;

pub use self::edit::{EditFault, set};
pub use self::replay::{
    Ended, Failed, Planned, Progress, ReplayReport, ReplaySettings, Replayer, Sent, StopOnFailure,
    Taken,
};
pub use self::suggestion::{Step, Suggestion};
pub use self::validator::{DeadLetterValidator, ReplayPlan};

use crate::transient::retried;

/// Dead letters that are decided about in one transaction.
const PIECE: u32 = 500;
/// Dead letters that are taken out together; fewer, where they are large.
const PAGE: u32 = 16;

/// The dead letters of a fleet. Clones share their connections.
#[derive(Clone)]
pub struct DeadLetters {
    database: Database,
    metrics: Metrics,
    validator: DeadLetterValidator,
}

/// A dead letter with all that is told about it elsewhere.
#[derive(Debug)]
pub struct DeadLetterDetails {
    /// The dead letter.
    pub dead_letter: DeadLetterRow,
    /// The dead letter whose replay came back as this one.
    pub before: Option<DeadLetterRow>,
    /// What its own replays came back as.
    pub after: Vec<ListedDeadLetter>,
    /// What was done to it.
    pub audit: Vec<database::AuditEntry>,
    /// What would mend it, where that is obvious.
    pub suggestion: Option<Suggestion>,
}

/// What is to become of a dead letter's copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// This is the whole new body.
    Body(Vec<u8>),
    /// These fields get these values, as in [`set`].
    Set(Vec<(String, String)>),
    /// There is to be no edited copy.
    Revert,
    /// What is suggested is to be set.
    Suggested,
}

/// Why a dead letter was not edited.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// PostgreSQL failed.
    #[error("the dead letter could not be edited")]
    Database(#[from] database::Error),
    /// The field cannot be set.
    #[error(transparent)]
    Fault(#[from] EditFault),
    /// The workers would refuse the edited body as well.
    #[error("the workers would refuse the edited body: {0}")]
    Refused(Refusal),
    /// The dead letter is replayed, discarded, under way, or was edited meanwhile.
    #[error(
        "the dead letter is not open, is being replayed, or was edited by somebody else just now"
    )]
    Busy,
    /// The body would be what it is.
    #[error("that changes nothing")]
    Nothing,
    /// There is no suggestion that sets a field.
    #[error("nothing is suggested that could be set in it")]
    NothingSuggested,
}

impl DeadLetters {
    /// The dead letters of an archive, looked at as workers with this limit of a body would.
    #[must_use]
    pub fn new(database: Database, metrics: Metrics, validator: DeadLetterValidator) -> Self {
        Self { database, metrics, validator }
    }

    /// Everything about one dead letter. Looking changes nothing.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn details(&self, id: Uuid) -> Result<Option<DeadLetterDetails>, database::Error> {
        let Some(dead_letter) = self.database.dead_letter(id).await? else { return Ok(None) };
        let before = match dead_letter.replay_of {
            Some(before) => self.database.dead_letter(before).await?,
            None => None,
        };
        let after = self.database.failed_again_as(id).await?;
        let audit = self.database.audit_of(&id.to_string()).await?;
        let suggestion = self.validator.suggest(&dead_letter);
        Ok(Some(DeadLetterDetails { dead_letter, before, after, audit, suggestion }))
    }

    /// Edits the copy of a dead letter that a replay sends, and returns the dead letter as it is now.
    ///
    /// # Errors
    /// Nothing was changed; the variant says why.
    pub async fn edit(
        &self,
        dead_letter: &DeadLetterRow,
        change: &Change,
        actor: &Actor,
    ) -> Result<DeadLetterRow, EditError> {
        let (body, fields) = match change {
            Change::Revert => (None, Vec::new()),
            Change::Body(body) => (Some(body.clone()), Vec::new()),
            Change::Set(fields) => mended(dead_letter, fields)?,
            Change::Suggested => match self.validator.suggest(dead_letter).map(|it| it.step) {
                Some(Step::Set { field, value }) => mended(dead_letter, &[(field, value)])?,
                Some(Step::Replay) => return Err(EditError::Nothing),
                Some(Step::Think) | None => return Err(EditError::NothingSuggested),
            },
        };
        if body.as_deref().unwrap_or(&dead_letter.body) == dead_letter.body_to_send() {
            return Err(EditError::Nothing);
        }
        if let Some(body) = &body {
            self.validator.decode(dead_letter, body).map_err(EditError::Refused)?;
        }
        let edit = || self.database.edit_dead_letter(dead_letter, body.as_deref(), &fields, actor);
        if !retried(&self.metrics, edit).await? {
            return Err(EditError::Busy);
        }
        self.database.dead_letter(dead_letter.id).await?.ok_or(EditError::Busy)
    }

    /// Edits the copies of all open dead letters of a selection alike. `each` is told of every dead letter what
    /// became of it.
    ///
    /// # Errors
    /// PostgreSQL failed; what was edited until then is.
    pub async fn edit_all(
        &self,
        selection: Selection,
        change: &Change,
        actor: &Actor,
        mut each: impl FnMut(Uuid, Result<(), EditError>),
    ) -> Result<(), database::Error> {
        let open = [DeadLetterStatus::Open];
        let mut rest = self.begin(selection, "dead_letters.edit", &open, None, actor).await?;
        while let Some(cursor) = rest {
            let page = self.database.next_dead_letters(&cursor, &open, PAGE).await?;
            for dead_letter in page.dead_letters {
                match self.edit(&dead_letter, change, actor).await {
                    Err(EditError::Database(error)) => return Err(error),
                    edited => each(dead_letter.id, edited.map(|_| ())),
                }
            }
            rest = page.rest;
        }
        Ok(())
    }

    /// Discards the open dead letters of a selection; how many there were.
    ///
    /// # Errors
    /// PostgreSQL failed; what was discarded until then is.
    pub async fn discard(
        &self,
        selection: Selection,
        why: &str,
        actor: &Actor,
    ) -> Result<u64, database::Error> {
        self.decide(selection, &[DeadLetterStatus::Open], Decision::Discard { why }, actor).await
    }

    /// Opens dead letters of a selection again that have one of these statuses; how many there were.
    ///
    /// # Errors
    /// PostgreSQL failed; what was opened until then is.
    pub async fn restore(
        &self,
        selection: Selection,
        status: &[DeadLetterStatus],
        actor: &Actor,
    ) -> Result<u64, database::Error> {
        self.decide(selection, status, Decision::Restore, actor).await
    }

    /// Hands out all dead letters of a selection, oldest first, with everything that is stored of them; a
    /// few at a time, so that memory stays small. `each` may stop it with an error of its own.
    ///
    /// # Errors
    /// PostgreSQL failed, or `each` said so.
    pub async fn take_out<E: From<database::Error>>(
        &self,
        selection: Selection,
        status: &[DeadLetterStatus],
        actor: &Actor,
        mut each: impl FnMut(DeadLetterRow) -> Result<(), E>,
    ) -> Result<u64, E> {
        let cursor = self.begin(selection, "dead_letters.export", status, None, actor).await?;
        let (mut rest, mut count) = (cursor, 0);
        while let Some(cursor) = rest {
            let page = self.database.next_dead_letters(&cursor, status, PAGE).await?;
            for dead_letter in page.dead_letters {
                each(dead_letter)?;
                count += 1;
            }
            rest = page.rest;
        }
        Ok(count)
    }

    async fn decide(
        &self,
        selection: Selection,
        status: &[DeadLetterStatus],
        decision: Decision<'_>,
        actor: &Actor,
    ) -> Result<u64, database::Error> {
        let (action, why) = match decision {
            Decision::Discard { why } => ("dead_letters.discard", Some(why)),
            Decision::Restore => ("dead_letters.restore", None),
        };
        let mut rest = self.begin(selection, action, status, why, actor).await?;
        let mut count = 0;
        while let Some(cursor) = rest {
            let decide =
                || self.database.decide_dead_letters(&cursor, status, decision, actor, PIECE);
            let throttled = retried(&self.metrics, decide).await?;
            count += throttled.dead_letters.len() as u64;
            rest = throttled.rest;
        }
        Ok(count)
    }

    /// Begins a walk and says so in the audit log; none if it leads over nothing.
    async fn begin(
        &self,
        selection: Selection,
        action: &str,
        status: &[DeadLetterStatus],
        why: Option<&str>,
        actor: &Actor,
    ) -> Result<Option<DeadLetterCursor>, database::Error> {
        let cursor = self.database.dead_letter_cursor(selection).await?;
        let dead_letters = self.database.count_ahead(&cursor, status).await?;
        if dead_letters == 0 {
            return Ok(None);
        }
        let mut detail =
            json!({"dead_letters": dead_letters, "selection": told(cursor.selection())});
        if let Some(why) = why {
            detail["why"] = why.into();
        }
        self.database.record_run(actor, action, &detail).await?;
        Ok(Some(cursor))
    }
}

/// What a replay would send with these fields set, and their names.
fn mended(
    dead_letter: &DeadLetterRow,
    fields: &[(String, String)],
) -> Result<(Option<Vec<u8>>, Vec<String>), EditFault> {
    let mut body = dead_letter.body_to_send().to_vec();
    for (field, value) in fields {
        body = set(&body, field, value)?;
    }
    Ok((Some(body), fields.iter().map(|(field, _)| field.clone()).collect()))
}

/// A selection for the audit log. Ids are not repeated: each has a line of its own.
fn told(selection: &Selection) -> Value {
    match selection {
        Selection::Ids(ids) => json!({"ids": ids.len()}),
        Selection::Matching(filter) => {
            let mut told = serde_json::to_value(filter).unwrap_or_default();
            if filter.error_contains.is_some() {
                told["error_contains"] = true.into();
            }
            told
        }
        Selection::All => json!("all"),
    }
}
