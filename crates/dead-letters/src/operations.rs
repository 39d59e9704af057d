//! Showing, editing, discarding, restoring and exporting dead letters.

use std::io;

use conversation::retry_transient;
use database::{
    Actor, Database, DeadLetter, DeadLetterCursor, DeadLetterDetail, DeadLetterEdit,
    DeadLetterStatus, DeadLetterSummary, Decision, Selection,
};
use domain::failure::Refusal;
use metrics::Metrics;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::correction::Correction;
use crate::edit::{EditFault, set};
use crate::suggestion::Step;
use crate::validator::DeadLetterValidator;

/// Dead letters that are discarded or restored in one transaction.
const BATCH: u32 = 500;
/// Dead letters read in one page; fewer if their bodies are large.
pub(crate) const PAGE: u32 = 16;

/// The dead letters of a fleet. Clones share their connections.
#[derive(Clone)]
pub struct DeadLetters {
    database: Database,
    metrics: Metrics,
}

/// A dead letter with its replays and its audit log.
#[derive(Debug)]
pub struct DeadLetterWithHistory {
    /// The dead letter.
    pub detail: DeadLetterDetail,
    /// The dead letter whose replay failed again as this one.
    pub before: Option<DeadLetter>,
    /// The dead letters as which its own replays failed again.
    pub after: Vec<DeadLetterSummary>,
    /// Its lines of the audit log.
    pub audit: Vec<database::AuditEntry>,
}

/// How the edited copy of a dead letter is to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The whole new body.
    Body(Vec<u8>),
    /// Corrections of the whole body, and then fields and their new values, as in [`set`].
    Correct(Vec<Correction>, Vec<(String, String)>),
    /// Delete the edited copy.
    Revert,
    /// Apply the suggestion.
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
    /// The dead letter is not open, is being replayed, or was changed since it was read.
    #[error("the dead letter is not open, is being replayed, or was changed meanwhile")]
    Busy,
    /// The body would stay as it is.
    #[error("the edit changes nothing")]
    Nothing,
    /// There is no suggestion that changes the body.
    #[error("there is no suggestion that changes the body")]
    NothingSuggested,
}

impl DeadLetters {
    /// The dead letters in this database.
    #[must_use]
    pub fn new(database: Database, metrics: Metrics) -> Self {
        Self { database, metrics }
    }

    /// Everything about one dead letter; `None` if there is none with this id. Changes nothing.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn with_history(
        &self,
        id: Uuid,
    ) -> Result<Option<DeadLetterWithHistory>, database::Error> {
        let Some(detail) = self.database.dead_letter(id).await? else { return Ok(None) };
        let before = match detail.dead_letter.replay_of {
            Some(before) => self.database.dead_letter(before).await?.map(|it| it.dead_letter),
            None => None,
        };
        let after = self.database.failed_again_as(id).await?;
        let audit = self.database.audit_about(&[id.to_string()], u32::MAX).await?;
        Ok(Some(DeadLetterWithHistory { detail, before, after, audit }))
    }

    /// Edits the copy of a dead letter that a replay sends, and returns the dead letter as it is now.
    ///
    /// # Errors
    /// Nothing was changed; the variant says why.
    pub async fn edit(
        &self,
        detail: &DeadLetterDetail,
        change: &Change,
        validator: DeadLetterValidator,
        actor: &Actor,
    ) -> Result<DeadLetterDetail, EditError> {
        let (body, changed) = edited(detail, change, validator)?;
        let edit = || self.database.edit_dead_letter(detail, body.as_deref(), &changed, actor);
        if !retry_transient(&self.metrics, edit).await? {
            return Err(EditError::Busy);
        }
        self.database.dead_letter(detail.dead_letter.id).await?.ok_or(EditError::Busy)
    }

    /// The dead letter as it would be after an edit. Changes nothing.
    ///
    /// # Errors
    /// The edit would not be made; the variant says why.
    pub fn edited(
        detail: &DeadLetterDetail,
        change: &Change,
        validator: DeadLetterValidator,
    ) -> Result<DeadLetterDetail, EditError> {
        if detail.state.status != DeadLetterStatus::Open {
            return Err(EditError::Busy);
        }
        let (edited_body, _) = edited(detail, change, validator)?;
        let edit = DeadLetterEdit { edited_body, ..detail.edit.clone() };
        Ok(DeadLetterDetail { edit, ..detail.clone() })
    }

    /// Calls `each` with the result that an edit of every open dead letter of a selection would have. Changes
    /// nothing.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn preview_all(
        &self,
        selection: Selection,
        change: &Change,
        validator: DeadLetterValidator,
        mut each: impl FnMut(Uuid, Result<(), EditError>),
    ) -> Result<(), database::Error> {
        let mut rest = Some(self.database.dead_letter_cursor(selection).await?);
        while let Some(cursor) = rest {
            let open = [DeadLetterStatus::Open];
            let page = self.database.next_dead_letters(&cursor, &open, PAGE).await?;
            for detail in page.dead_letters {
                each(detail.dead_letter.id, edited(&detail, change, validator).map(|_| ()));
            }
            rest = page.rest;
        }
        Ok(())
    }

    /// Makes the same edit to all open dead letters of a selection. `each` is called with the result of every
    /// dead letter.
    ///
    /// # Errors
    /// PostgreSQL failed; edits made before that stay.
    pub async fn edit_all(
        &self,
        selection: Selection,
        change: &Change,
        validator: DeadLetterValidator,
        actor: &Actor,
        mut each: impl FnMut(Uuid, Result<(), EditError>),
    ) -> Result<(), database::Error> {
        let open = [DeadLetterStatus::Open];
        let mut rest = self.begin(selection, "dead_letters.edit", &open, None, actor).await?;
        while let Some(cursor) = rest {
            let page = self.database.next_dead_letters(&cursor, &open, PAGE).await?;
            for detail in page.dead_letters {
                match self.edit(&detail, change, validator, actor).await {
                    Err(EditError::Database(error)) => return Err(error),
                    edited => each(detail.dead_letter.id, edited.map(|_| ())),
                }
            }
            rest = page.rest;
        }
        Ok(())
    }

    /// Discards the open dead letters of a selection; returns how many.
    ///
    /// # Errors
    /// PostgreSQL failed; those discarded before that stay discarded.
    pub async fn discard(
        &self,
        selection: Selection,
        why: &str,
        actor: &Actor,
    ) -> Result<u64, database::Error> {
        self.decide(selection, &[DeadLetterStatus::Open], Decision::Discard { why }, actor).await
    }

    /// Sets the dead letters of a selection that have one of these statuses back to open; returns how many.
    ///
    /// # Errors
    /// PostgreSQL failed; those opened before that stay open.
    pub async fn restore(
        &self,
        selection: Selection,
        status: &[DeadLetterStatus],
        actor: &Actor,
    ) -> Result<u64, database::Error> {
        self.decide(selection, status, Decision::Restore, actor).await
    }

    /// Calls `each` with every dead letter of a selection, oldest first, including its body; returns how many, or
    /// the error of `each`, which ends the export. Reads small pages, so memory use stays small.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn export(
        &self,
        selection: Selection,
        status: &[DeadLetterStatus],
        actor: &Actor,
        mut each: impl FnMut(DeadLetterDetail) -> io::Result<()>,
    ) -> Result<io::Result<u64>, database::Error> {
        let cursor = self.begin(selection, "dead_letters.export", status, None, actor).await?;
        let (mut rest, mut count) = (cursor, 0);
        while let Some(cursor) = rest {
            let page = self.database.next_dead_letters(&cursor, status, PAGE).await?;
            for dead_letter in page.dead_letters {
                if let Err(error) = each(dead_letter) {
                    return Ok(Err(error));
                }
                count += 1;
            }
            rest = page.rest;
        }
        Ok(Ok(count))
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
                || self.database.decide_dead_letters(&cursor, status, decision, actor, BATCH);
            let decided = retry_transient(&self.metrics, decide).await?;
            count += decided.dead_letters.len() as u64;
            rest = decided.rest;
        }
        Ok(count)
    }

    /// Starts iterating over a selection and records that in the audit log; `None` if nothing matches.
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
        let mut detail = json!({"dead_letters": dead_letters, "selection": describe_selection(cursor.selection())});
        if let Some(why) = why {
            detail["why"] = why.into();
        }
        self.database.record_run(actor, action, &detail).await?;
        Ok(Some(cursor))
    }
}

/// The edited copy after a change, or `None` to delete it, and what was changed, for the audit log.
fn edited(
    detail: &DeadLetterDetail,
    change: &Change,
    validator: DeadLetterValidator,
) -> Result<(Option<Vec<u8>>, Vec<String>), EditError> {
    let (body, changed) = match change {
        Change::Revert => (None, Vec::new()),
        Change::Body(body) => (Some(body.clone()), Vec::new()),
        Change::Correct(corrections, fields) => corrected(detail, corrections, fields)?,
        Change::Suggested => match validator.suggest(detail).map(|it| it.step) {
            Some(Step::Set { field, value }) => corrected(detail, &[], &[(field, value)])?,
            Some(Step::Correct(correction)) => corrected(detail, &[correction], &[])?,
            Some(Step::Replay) => return Err(EditError::Nothing),
            Some(Step::Manual) | None => return Err(EditError::NothingSuggested),
        },
    };
    if body.as_deref().unwrap_or(&detail.message.body) == detail.body_to_send() {
        return Err(EditError::Nothing);
    }
    if let Some(body) = &body {
        validator.decode(detail, body).map_err(EditError::Refused)?;
    }
    Ok((body, changed))
}

/// The body that a replay would send with these corrections and with these fields set, and their names.
fn corrected(
    detail: &DeadLetterDetail,
    corrections: &[Correction],
    fields: &[(String, String)],
) -> Result<(Option<Vec<u8>>, Vec<String>), EditFault> {
    let mut body = detail.body_to_send().to_vec();
    for correction in corrections {
        body = correction.applied_to(&body)?;
    }
    for (field, value) in fields {
        body = set(&body, field, value)?;
    }
    let corrections = corrections.iter().map(|it| it.name().to_owned());
    let changed = corrections.chain(fields.iter().map(|(field, _)| field.clone())).collect();
    Ok((Some(body), changed))
}

/// A selection as JSON for the audit log. Ids are only counted: each has its own line in the audit log.
pub(crate) fn describe_selection(selection: &Selection) -> Value {
    match selection {
        Selection::Ids(ids) => json!({"ids": ids.len()}),
        Selection::Matching(filter) => {
            let mut described = serde_json::to_value(filter).unwrap_or_default();
            if filter.error_contains.is_some() {
                described["error_contains"] = true.into();
            }
            described
        }
        Selection::All => json!("all"),
    }
}
