//! What operators do with dead letters: understand, edit a copy, replay, discard, restore, take out.
//!
//! All of it is work on the table; the queues only carry. What came stays as it came: an edit lies beside
//! the body, a replay that comes back is a letter of its own. Every action writes the audit log in the
//! statement that changes the row.

mod edit;
mod examine;
mod pace;
mod replay;
#[cfg(test)]
mod samples;
mod suggestion;

use archive::{
    Archive, By, DeadLetterRow, DeadLetterStatus, Decision, ListedDeadLetter, Selection, Walk,
};
use domain::failure::Refusal;
use metrics::Metrics;
use serde_json::{Value, json};
use uuid::Uuid;

pub use self::edit::{EditFault, set};
pub use self::examine::{Examiner, Prepared};
pub use self::replay::{
    Ended, Failed, Planned, Progress, ReplayReport, ReplaySettings, Replayer, Sent, StopOnReturn,
    Taken,
};
pub use self::suggestion::{Step, Suggestion};

use crate::transient::retried;

/// Letters that are decided about in one transaction.
const PIECE: u32 = 500;
/// Letters that are taken out together; fewer, where they are large.
const PAGE: u32 = 16;

/// The dead letters of a fleet. Clones share their connections.
#[derive(Clone)]
pub struct DeadLetters {
    archive: Archive,
    metrics: Metrics,
    examiner: Examiner,
}

/// A letter with all that is told about it elsewhere.
#[derive(Debug)]
pub struct Story {
    /// The letter.
    pub letter: DeadLetterRow,
    /// The letter whose replay came back as this one.
    pub before: Option<DeadLetterRow>,
    /// What its own replays came back as.
    pub after: Vec<ListedDeadLetter>,
    /// What was done to it.
    pub audit: Vec<archive::AuditEntry>,
    /// What would mend it, where that is obvious.
    pub suggestion: Option<Suggestion>,
}

/// What is to become of a letter's copy.
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

/// Why a letter was not edited.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// PostgreSQL failed.
    #[error("the letter could not be edited")]
    Archive(#[from] archive::Error),
    /// The field cannot be set.
    #[error(transparent)]
    Fault(#[from] EditFault),
    /// The workers would refuse the edited body as well.
    #[error("the workers would refuse the edited body: {0}")]
    Refused(Refusal),
    /// The letter is replayed, discarded, under way, or was edited meanwhile.
    #[error("the letter is not open, is being replayed, or was edited by somebody else just now")]
    Busy,
    /// The body would be what it is.
    #[error("that changes nothing")]
    Nothing,
    /// There is no suggestion that sets a field.
    #[error("nothing is suggested that could be set in it")]
    NothingSuggested,
}

impl DeadLetters {
    /// The letters of an archive, looked at as workers with this limit of a body would.
    #[must_use]
    pub fn new(archive: Archive, metrics: Metrics, examiner: Examiner) -> Self {
        Self { archive, metrics, examiner }
    }

    /// Everything about one letter. Looking changes nothing.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn story(&self, id: Uuid) -> Result<Option<Story>, archive::Error> {
        let Some(letter) = self.archive.dead_letter(id).await? else { return Ok(None) };
        let before = match letter.replay_of {
            Some(before) => self.archive.dead_letter(before).await?,
            None => None,
        };
        let after = self.archive.came_back_as(id).await?;
        let audit = self.archive.audit_of(&id.to_string()).await?;
        let suggestion = self.examiner.suggest(&letter);
        Ok(Some(Story { letter, before, after, audit, suggestion }))
    }

    /// Edits the copy of a letter that a replay sends, and returns the letter as it is now.
    ///
    /// # Errors
    /// Nothing was changed; the variant says why.
    pub async fn edit(
        &self,
        letter: &DeadLetterRow,
        change: &Change,
        by: &By,
    ) -> Result<DeadLetterRow, EditError> {
        let (body, fields) = match change {
            Change::Revert => (None, Vec::new()),
            Change::Body(body) => (Some(body.clone()), Vec::new()),
            Change::Set(fields) => mended(letter, fields)?,
            Change::Suggested => match self.examiner.suggest(letter).map(|it| it.step) {
                Some(Step::Set { field, value }) => mended(letter, &[(field, value)])?,
                Some(Step::Replay) => return Err(EditError::Nothing),
                Some(Step::Think) | None => return Err(EditError::NothingSuggested),
            },
        };
        if body.as_deref().unwrap_or(&letter.body) == letter.body_to_send() {
            return Err(EditError::Nothing);
        }
        if let Some(body) = &body {
            self.examiner.decode(letter, body).map_err(EditError::Refused)?;
        }
        let edit = || self.archive.edit_dead_letter(letter, body.as_deref(), &fields, by);
        if !retried(&self.metrics, edit).await? {
            return Err(EditError::Busy);
        }
        self.archive.dead_letter(letter.id).await?.ok_or(EditError::Busy)
    }

    /// Edits the copies of all open letters of a selection alike. `each` is told of every letter what
    /// became of it.
    ///
    /// # Errors
    /// PostgreSQL failed; what was edited until then is.
    pub async fn edit_all(
        &self,
        selection: Selection,
        change: &Change,
        by: &By,
        mut each: impl FnMut(Uuid, Result<(), EditError>),
    ) -> Result<(), archive::Error> {
        let open = [DeadLetterStatus::Open];
        let mut rest = self.begin(selection, "dead_letters.edit", &open, None, by).await?;
        while let Some(walk) = rest {
            let page = self.archive.next_dead_letters(&walk, &open, PAGE).await?;
            for letter in page.letters {
                match self.edit(&letter, change, by).await {
                    Err(EditError::Archive(error)) => return Err(error),
                    edited => each(letter.id, edited.map(|_| ())),
                }
            }
            rest = page.rest;
        }
        Ok(())
    }

    /// Discards the open letters of a selection; how many there were.
    ///
    /// # Errors
    /// PostgreSQL failed; what was discarded until then is.
    pub async fn discard(
        &self,
        selection: Selection,
        why: &str,
        by: &By,
    ) -> Result<u64, archive::Error> {
        self.decide(selection, &[DeadLetterStatus::Open], Decision::Discard { why }, by).await
    }

    /// Opens letters of a selection again that have one of these statuses; how many there were.
    ///
    /// # Errors
    /// PostgreSQL failed; what was opened until then is.
    pub async fn restore(
        &self,
        selection: Selection,
        status: &[DeadLetterStatus],
        by: &By,
    ) -> Result<u64, archive::Error> {
        self.decide(selection, status, Decision::Restore, by).await
    }

    /// Hands out all letters of a selection, oldest first, with everything that is stored of them; a
    /// few at a time, so that memory stays small. `each` may stop it with an error of its own.
    ///
    /// # Errors
    /// PostgreSQL failed, or `each` said so.
    pub async fn take_out<E: From<archive::Error>>(
        &self,
        selection: Selection,
        status: &[DeadLetterStatus],
        by: &By,
        mut each: impl FnMut(DeadLetterRow) -> Result<(), E>,
    ) -> Result<u64, E> {
        let walk = self.begin(selection, "dead_letters.export", status, None, by).await?;
        let (mut rest, mut count) = (walk, 0);
        while let Some(walk) = rest {
            let page = self.archive.next_dead_letters(&walk, status, PAGE).await?;
            for letter in page.letters {
                each(letter)?;
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
        by: &By,
    ) -> Result<u64, archive::Error> {
        let (action, why) = match decision {
            Decision::Discard { why } => ("dead_letters.discard", Some(why)),
            Decision::Restore => ("dead_letters.restore", None),
        };
        let mut rest = self.begin(selection, action, status, why, by).await?;
        let mut count = 0;
        while let Some(walk) = rest {
            let decide = || self.archive.decide_dead_letters(&walk, status, decision, by, PIECE);
            let piece = retried(&self.metrics, decide).await?;
            count += piece.letters.len() as u64;
            rest = piece.rest;
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
        by: &By,
    ) -> Result<Option<Walk>, archive::Error> {
        let walk = self.archive.walk_dead_letters(selection).await?;
        let letters = self.archive.count_ahead(&walk, status).await?;
        if letters == 0 {
            return Ok(None);
        }
        let mut detail = json!({"letters": letters, "selection": told(walk.selection())});
        if let Some(why) = why {
            detail["why"] = why.into();
        }
        self.archive.note_run(by, action, &detail).await?;
        Ok(Some(walk))
    }
}

/// What a replay would send with these fields set, and their names.
fn mended(
    letter: &DeadLetterRow,
    fields: &[(String, String)],
) -> Result<(Option<Vec<u8>>, Vec<String>), EditFault> {
    let mut body = letter.body_to_send().to_vec();
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
