//! `verbatim dead-letters edit`: stores an edited copy of the body, which a replay publishes instead of
//! the original. One dead letter can be changed in any way, several only with the same change.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use clap::Args;
use database::{DeadLetterDetail, Selection};
use dead_letters::{Change, Correction, DeadLetters, EditError};
use domain::causes::with_causes;
use serde::Serialize;
use stores::DatabaseServer;
use uuid::Uuid;

use super::dead_letters_selection::{Operation, dead_letters};
use super::dead_letters_show::{SHOWN_BYTES, body, no_such_dead_letter};
use crate::commands::lint::BodyLimit;
use crate::exit::{Exit, Failure};
use crate::input::Input;
use crate::output::{Cell, Output, Text, Tone, block, plural, shortened};

/// Edits a copy of a dead letter's body, which a replay publishes instead
#[derive(Debug, Args)]
#[command(override_usage = "verbatim dead-letters edit [OPTIONS] [ID]...")]
#[command(after_help = "\
Examples:
  verbatim dead-letters edit ID --apply-suggestion
  verbatim dead-letters edit ID --set role=assistant --set data.satisfaction=5
  verbatim dead-letters edit ID --body corrected.json
  verbatim dead-letters edit ID            (on a terminal: in your editor)
  verbatim dead-letters edit ID --revert
  verbatim dead-letters edit --field role --error '\"bot\"' --apply-suggestion    (all that match)
  verbatim dead-letters edit --error 'byte order mark' --to-utf8 --dry-run
  verbatim dead-letters edit --error U+0000 --replace-unstorable

The original body is kept. The edited copy must pass the workers' validator; otherwise it would
fail again. Exit code 1: it does not pass, or the dead letter is not open; of several dead
letters, some were not edited.")]
pub(crate) struct DeadLettersEdit {
    /// The whole new body: a file, or - for standard input
    #[arg(long, value_name = "FILE", value_parser = Input::parse)]
    #[arg(conflicts_with_all = ["set", "to_utf8", "replace_unstorable", "apply_suggestion", "revert"])]
    body: Option<Input>,

    /// Set a field, such as role=assistant, data.role=user or /tool_calls/0/id=x. A value that is not
    /// valid JSON is a string. The rest of the body stays byte for byte
    #[arg(long, value_name = "FIELD=VALUE", value_parser = field_and_value)]
    #[arg(conflicts_with_all = ["apply_suggestion", "revert"])]
    set: Vec<(String, String)>,

    /// Convert a body in UTF-16 to UTF-8, and remove a byte order mark
    #[arg(long, conflicts_with_all = ["apply_suggestion", "revert"])]
    to_utf8: bool,

    /// Replace each U+0000 and each half of a surrogate pair, which cannot be stored, by TEXT, without TEXT
    /// by U+FFFD; and each NaN and Infinity, which JSON does not have, by null
    #[arg(long, value_name = "TEXT", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "\u{fffd}", conflicts_with_all = ["apply_suggestion", "revert"])]
    replace_unstorable: Option<String>,

    /// Apply the suggestion of `dead-letters show`
    #[arg(long, conflicts_with = "revert")]
    apply_suggestion: bool,

    /// Delete the edited copy
    #[arg(long)]
    revert: bool,

    /// Only print what would be edited
    #[arg(long)]
    dry_run: bool,

    /// Editor, used on a terminal when no other option says what to change
    #[arg(long, env = "EDITOR", value_name = "COMMAND")]
    editor: Option<String>,

    #[command(flatten)]
    limit: BodyLimit,

    #[command(flatten)]
    on: Operation,
}

impl DeadLettersEdit {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let selection = self.on.chosen.selection(output.now)?;
        let server = DatabaseServer::open(&self.on.database).await?;
        let dead_letters = dead_letters(&server);
        match selection {
            Selection::Ids(ids) if ids.len() == 1 => {
                self.one(ids[0], &dead_letters, &server, output).await
            }
            selection => self.many(selection, &dead_letters, &server, output).await,
        }
    }

    async fn one(
        &self,
        id: Uuid,
        dead_letters: &DeadLetters,
        server: &DatabaseServer,
        output: &Output,
    ) -> Result<Exit, Failure> {
        let validator = self.limit.dead_letters();
        let found = dead_letters.with_history(id).await;
        let found = found.map_err(|error| server.failure(&error))?;
        let found = found.ok_or_else(|| no_such_dead_letter(id))?;
        let (change, copy) = match (self.common_change(), &self.body) {
            (Some(change), _) => (change, None),
            (None, Some(input)) => (Change::Body(new_body(input)?), None),
            (None, None) => {
                let (body, copy) = self.in_editor(&found.detail)?;
                (Change::Body(body), Some(copy))
            }
        };
        let edited = if self.dry_run {
            DeadLetters::edited(&found.detail, &change, validator)
        } else {
            let actor = self.on.actor.actor();
            dead_letters.edit(&found.detail, &change, validator, &actor).await
        };
        let detail = edited.map_err(|error| {
            let suggestion = validator.suggest(&found.detail).map(|it| it.text);
            let copy = copy.filter(|_| !matches!(error, EditError::Nothing));
            let failure = failure(error, id, suggestion, server);
            match copy {
                Some(copy) => copy.named_in(failure),
                None => failure,
            }
        })?;
        output.show(&detail, |out| text(&detail, self.dry_run, out))?;
        Ok(Exit::Success)
    }

    async fn many(
        &self,
        selection: Selection,
        dead_letters: &DeadLetters,
        server: &DatabaseServer,
        output: &Output,
    ) -> Result<Exit, Failure> {
        let change = self.common_change().ok_or_else(|| {
            Failure::usage(
                "several dead letters need one of --set FIELD=VALUE, --to-utf8, --replace-unstorable, \
                 --apply-suggestion or --revert",
            )
        })?;
        let mut edits = Edits { dry_run: self.dry_run, ..Edits::default() };
        let validator = self.limit.dead_letters();
        let each = |id, edited| edits.add(id, edited);
        let done = if self.dry_run {
            dead_letters.preview_all(selection, &change, validator, each).await
        } else {
            let actor = self.on.actor.actor();
            dead_letters.edit_all(selection, &change, validator, &actor, each).await
        };
        done.map_err(|error| server.failure(&error))?;
        let named = self.on.chosen.named();
        edits.skipped = named.saturating_sub(edits.edited + edits.unchanged + edits.failed);
        output.show(&edits, |out| edits.text(out))?;
        Ok(if edits.failed + edits.skipped > 0 { Exit::Problems } else { Exit::Success })
    }

    /// The change that can be applied to several dead letters.
    fn common_change(&self) -> Option<Change> {
        if self.revert {
            Some(Change::Revert)
        } else if self.apply_suggestion {
            Some(Change::Suggested)
        } else {
            let replace = self.replace_unstorable.clone().map(Correction::ReplaceUnstorable);
            let corrections: Vec<Correction> =
                self.to_utf8.then_some(Correction::ToUtf8).into_iter().chain(replace).collect();
            let is_change = !corrections.is_empty() || !self.set.is_empty();
            is_change.then(|| Change::Correct(corrections, self.set.clone()))
        }
    }

    /// Opens the body that a replay would publish in the user's editor.
    fn in_editor(&self, detail: &DeadLetterDetail) -> Result<(Vec<u8>, Copy), Failure> {
        let at_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let Some(editor) = self.editor.as_deref().filter(|it| at_terminal && !it.is_empty()) else {
            return Err(Failure::usage(
                "no change given: use --set FIELD=VALUE, --body FILE or --apply-suggestion; on a \
                 terminal, set EDITOR to edit the body",
            ));
        };
        let copy = Copy::of(detail)?;
        let mut command_line = editor.split_whitespace();
        let program = command_line.next().unwrap_or_default();
        let ended = std::process::Command::new(program).args(command_line).arg(&copy.0).status();
        match ended {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(Failure::plain(format!("{program} ended with {status}"))),
            Err(error) => return Err(Failure::usage(format!("cannot start {program}: {error}"))),
        }
        Ok((new_body(&Input::File(copy.0.clone()))?, copy))
    }
}

/// Why one dead letter was not edited, and what to do about it.
fn failure(
    error: EditError,
    id: Uuid,
    suggestion: Option<String>,
    server: &DatabaseServer,
) -> Failure {
    let show = format!("see `verbatim dead-letters show {id}`");
    match error {
        EditError::Database(error) => server.failure(&error).into(),
        EditError::Refused(refusal) => Failure::problem(
            format!("the workers would refuse the edited body: {refusal}"),
            "nothing was changed; repeat --set FIELD=VALUE to set several fields",
        ),
        EditError::NothingSuggested | EditError::Nothing => {
            Failure::problem(error.to_string(), suggestion.unwrap_or(show))
        }
        EditError::Busy | EditError::Fault(_) => Failure::problem(with_causes(&error), show),
    }
}

/// The result of editing several dead letters; of a dry run, what it would be.
#[derive(Debug, Default, Serialize)]
struct Edits {
    dry_run: bool,
    edited: u64,
    /// The change would change nothing.
    unchanged: u64,
    /// Could not be edited; see `failures`.
    failed: u64,
    /// Given by their ids, and not open or unknown.
    skipped: u64,
    failures: Vec<NotEdited>,
}

#[derive(Debug, Serialize)]
struct NotEdited {
    id: Uuid,
    why: String,
}

impl Edits {
    fn add(&mut self, id: Uuid, edited: Result<(), EditError>) {
        match edited {
            Ok(()) => self.edited += 1,
            Err(EditError::Nothing) => self.unchanged += 1,
            Err(error) => {
                self.failed += 1;
                self.failures.push(NotEdited { id, why: with_causes(&error) });
            }
        }
    }

    fn text(&self, out: &mut Text) {
        let row =
            |failed: &NotEdited| [failed.id.to_string().into(), Cell::new(Tone::Bad, &failed.why)];
        out.first_rows(["not edited", "error"], self.failures.iter().map(row));
        let tone = if self.edited > 0 { Tone::Good } else { Tone::Warn };
        let done = if self.dry_run { "would be edited" } else { "edited" };
        out.piece(tone, format!("{} {done}", plural(self.edited, "dead letter")));
        let counts = [
            (self.failed, "not edited"),
            (self.unchanged, "unchanged"),
            (self.skipped, "skipped (not open)"),
        ];
        out.counts(Tone::Plain, counts);
        out.push("\n");
        if self.edited > 0 && !self.dry_run {
            out.line(Tone::Dim, "next: `verbatim dead-letters replay`");
        }
    }
}

/// A temporary file with a body, readable by its owner only; deleted when dropped.
struct Copy(PathBuf);

impl Copy {
    fn of(detail: &DeadLetterDetail) -> Result<Self, Failure> {
        let name = format!("verbatim-{}-{}.json", detail.dead_letter.id, Uuid::new_v4());
        let path = std::env::temp_dir().join(name);
        let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let copy = Self(path);
        let write = |mut file: File| file.write_all(detail.body_to_send());
        match open.and_then(write) {
            Ok(()) => Ok(copy),
            Err(error) => {
                Err(Failure::plain(format!("cannot write {}: {error}", copy.0.display())))
            }
        }
    }

    /// Leaves the file in place, and names it in the failure.
    fn named_in(self, failure: Failure) -> Failure {
        let path = std::mem::ManuallyDrop::new(self).0.clone();
        let path = path.display();
        failure.with(format!("your edit is saved in {path}; try again with --body {path}"))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // The file may be deleted already.
        std::fs::remove_file(&self.0).ok();
    }
}

/// A body that the user wrote. Editors append a line break; a body has none.
fn new_body(input: &Input) -> Result<Vec<u8>, Failure> {
    let mut body = input.bytes()?;
    body.truncate(body.trim_ascii_end().len());
    Ok(body)
}

fn field_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((field, value)) if !field.is_empty() => Ok((field.to_owned(), value.to_owned())),
        _ => Err("it must be FIELD=VALUE, such as role=assistant".to_owned()),
    }
}

fn text(detail: &DeadLetterDetail, dry_run: bool, out: &mut Text) {
    let id = detail.dead_letter.id;
    let (did, publishes) = if dry_run {
        ("not edited (--dry-run); after the edit", "would publish")
    } else {
        ("edited;", "now publishes")
    };
    let Some(edited) = &detail.edit.edited_body else {
        let did = if dry_run { "copy not deleted (--dry-run)" } else { "edited copy deleted" };
        return out.push(format!("{did}; a replay of {id} publishes the original body\n"));
    };
    out.line(Tone::Good, format!("{did} a replay of {id} {publishes}"));
    let all = format!("`verbatim dead-letters show {id} --full`");
    out.push(block(&shortened(&body(edited), SHOWN_BYTES, &all), "  "));
    if !dry_run {
        out.push("\nthe original body is kept; next: ");
        out.line(Tone::Strong, format!("verbatim dead-letters replay {id}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::dead_letters_list::tests::detail;
    use crate::output::tests::plain;

    #[test]
    fn a_field_is_everything_before_the_first_equals_sign() {
        assert_eq!(field_and_value("a.b=c=d"), Ok(("a.b".to_owned(), "c=d".to_owned())));
        assert!(field_and_value("role").is_err() && field_and_value("=x").is_err());
    }

    #[test]
    fn editing_several_dead_letters_reports_counts_and_failures() {
        let mut edits = Edits { skipped: 1, ..Edits::default() };
        for n in 0..5 {
            let edited = match n {
                0 => Err(EditError::NothingSuggested),
                1 => Err(EditError::Nothing),
                _ => Ok(()),
            };
            edits.add(Uuid::from_u128(n), edited);
        }
        insta::assert_snapshot!(plain(|out| edits.text(out)));
    }

    #[test]
    fn the_body_that_a_replay_now_publishes_is_shown() {
        let mut edited = detail();
        edited.edit.edited_body = Some(br#"{"role":"assistant"}"#.to_vec());
        insta::assert_snapshot!(plain(|out| text(&edited, false, out)));
        let reverted = plain(|out| text(&detail(), false, out));
        assert!(reverted.contains("publishes the original body"));
    }

    #[test]
    fn the_file_for_the_editor_is_readable_by_its_owner_only_and_deleted() {
        use std::os::unix::fs::PermissionsExt as _;
        let copy = Copy::of(&detail()).unwrap();
        let path = copy.0.clone();
        assert_eq!(std::fs::read(&path).unwrap(), detail().message.body);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(copy);
        assert!(!path.exists());
    }

    #[test]
    fn a_refused_edit_stays_in_its_file_and_the_file_is_named() {
        let copy = Copy::of(&detail()).unwrap();
        let path = copy.0.clone();
        let failure = copy.named_in(Failure::problem("refused", "nothing was changed"));
        let expected = format!(
            "refused\nnothing was changed\nyour edit is saved in {0}; try again with --body {0}",
            path.display()
        );
        assert_eq!(failure.text, expected);
        std::fs::remove_file(&path).unwrap();
    }
}
