//! `verbatim dead-letters edit`: an edited copy beside the original, which a replay sends instead.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use archive::DeadLetterRow;
use clap::Args;
use conversation::letters::{Change, DeadLetters, EditError, Examiner, Step};
use domain::causes::with_causes;
use metrics::Metrics;
use service::settings::DatabaseSettings;
use uuid::Uuid;

use super::dead_letters_show::{body, no_such_letter};
use crate::actor::Actor;
use crate::commands::lint::BodyLimit;
use crate::exit::{Exit, Failure};
use crate::input::Input;
use crate::look::{Look, Screen, Tone, block};
use crate::servers::Database;

const EXAMPLES: &str = "\
Examples:
  verbatim dead-letters edit ID --apply-suggestion
  verbatim dead-letters edit ID --set role=assistant --set data.satisfaction=5
  verbatim dead-letters edit ID --body mended.json
  verbatim dead-letters edit ID            (on a terminal: in your editor)
  verbatim dead-letters edit ID --revert

The original body stays as it came. The copy must pass the workers' own validator, for otherwise it
would come back at once. Exit code 1: it does not, or the letter is not open.";

/// Edits a copy of a dead letter's body, which a replay sends instead
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "verbatim dead-letters edit [OPTIONS] <ID>")]
pub(crate) struct DeadLettersEdit {
    /// Its id
    #[arg(value_name = "ID")]
    id: Uuid,

    /// The whole new body: a file, or - for standard input
    #[arg(long, value_name = "FILE", value_parser = Input::parse)]
    #[arg(conflicts_with_all = ["set", "apply_suggestion", "revert"])]
    body: Option<Input>,

    /// Set a field, such as role=assistant, data.role=user or /tool_calls/0/id=x. The value is JSON, or
    /// else a text; the rest of the body stays to the letter
    #[arg(long, value_name = "FIELD=VALUE", value_parser = field_and_value)]
    #[arg(conflicts_with_all = ["apply_suggestion", "revert"])]
    set: Vec<(String, String)>,

    /// Do what `dead-letters show` suggests
    #[arg(long, conflicts_with = "revert")]
    apply_suggestion: bool,

    /// Drop the edited copy
    #[arg(long)]
    revert: bool,

    /// The editor, for when nothing else says what to change
    #[arg(long, env = "EDITOR", value_name = "COMMAND")]
    editor: Option<String>,

    #[command(flatten)]
    limit: BodyLimit,

    #[command(flatten)]
    actor: Actor,

    #[command(flatten)]
    database: DatabaseSettings,
}

impl DeadLettersEdit {
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        let database = Database::open(&self.database).await?;
        let examiner = Examiner { max_body_bytes: self.limit.max_body_bytes };
        let letters = DeadLetters::new(database.archive.clone(), Metrics::new(), examiner);
        let found = letters.story(self.id).await.map_err(|error| database.failure(&error))?;
        let story = found.ok_or_else(|| no_such_letter(self.id))?;
        let change = if self.revert {
            Change::Revert
        } else if self.apply_suggestion {
            match story.suggestion.map(|it| (it.step, it.text)) {
                Some((Step::Set { field, value }, _)) => Change::Set(vec![(field, value)]),
                Some((Step::Replay | Step::Think, text)) => {
                    return Err(Failure::problem("there is nothing to set in this letter", text));
                }
                None => {
                    return Err(Failure::problem(
                        "nothing is suggested for this letter",
                        format!(
                            "`verbatim dead-letters show {}` tells what is wrong with it",
                            self.id
                        ),
                    ));
                }
            }
        } else if let Some(input) = &self.body {
            Change::Body(read(input)?)
        } else if !self.set.is_empty() {
            Change::Set(self.set.clone())
        } else {
            Change::Body(self.in_editor(&story.letter)?)
        };
        let edited = letters.edit(&story.letter, change, &self.actor.by()).await;
        let letter = edited.map_err(|error| self.failure(error, &database))?;
        screen.show(&letter, |look| text(&letter, look))?;
        Ok(Exit::Fine)
    }

    /// Lets the user edit what a replay would send.
    fn in_editor(&self, letter: &DeadLetterRow) -> Result<Vec<u8>, Failure> {
        let at_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let Some(editor) = self.editor.as_deref().filter(|it| at_terminal && !it.is_empty()) else {
            return Err(Failure::Usage(
                "what is to change? --set FIELD=VALUE, --body FILE or --apply-suggestion says it; on a \
                 terminal EDITOR names your editor"
                    .to_owned(),
            ));
        };
        let copy = Copy::of(letter)?;
        let mut words = editor.split_whitespace();
        let program = words.next().unwrap_or_default();
        let ended = std::process::Command::new(program).args(words).arg(&copy.0).status();
        match ended {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(Failure::plain(format!("{program} ended with {status}"))),
            Err(error) => return Err(Failure::Usage(format!("cannot start {program}: {error}"))),
        }
        let mut body = std::fs::read(&copy.0).map_err(|error| unreadable(&copy.0, &error))?;
        // Editors end a file with a line break; a body has none.
        body.truncate(body.trim_ascii_end().len());
        Ok(body)
    }

    fn failure(&self, error: EditError, database: &Database) -> Failure {
        let show = format!("`verbatim dead-letters show {}` tells how it stands", self.id);
        match error {
            EditError::Archive(error) => database.failure(&error),
            EditError::Refused(refusal) => Failure::problem(
                format!("the workers would refuse the edited body: {refusal}"),
                "nothing was changed; --set FIELD=VALUE sets more than one field when it is repeated",
            ),
            EditError::Busy => Failure::problem(error.to_string(), show),
            EditError::Fault(_) | EditError::Nothing => Failure::problem(with_causes(&error), show),
        }
    }
}

/// A file with a body, readable by its owner alone, that goes away again.
struct Copy(PathBuf);

impl Copy {
    fn of(letter: &DeadLetterRow) -> Result<Self, Failure> {
        let name = format!("verbatim-{}-{}.json", letter.id, Uuid::new_v4());
        let path = std::env::temp_dir().join(name);
        let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let copy = Self(path);
        let write = |mut file: File| file.write_all(letter.body_to_send());
        match open.and_then(write) {
            Ok(()) => Ok(copy),
            Err(error) => {
                Err(Failure::plain(format!("cannot write {}: {error}", copy.0.display())))
            }
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // Whoever cleans the directory up was faster.
        std::fs::remove_file(&self.0).ok();
    }
}

fn read(input: &Input) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    match input {
        Input::Standard => std::io::stdin().lock().read_to_end(&mut body),
        Input::File(path) => File::open(path).and_then(|mut file| file.read_to_end(&mut body)),
    }
    .map_err(|error| Failure::Usage(format!("cannot read {input}: {error}")))?;
    body.truncate(body.trim_ascii_end().len());
    Ok(body)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Usage(format!("cannot read {}: {error}", path.display()))
}

fn field_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((field, value)) if !field.is_empty() => Ok((field.to_owned(), value.to_owned())),
        _ => Err("it must be FIELD=VALUE, such as role=assistant".to_owned()),
    }
}

fn text(letter: &DeadLetterRow, look: &Look) -> String {
    let paint = look.paint;
    let Some(edited) = &letter.edited_body else {
        return format!("a replay of {} sends what came; there is no edited copy\n", letter.id);
    };
    let heading = paint.text(Tone::Good, &format!("a replay of {} sends now", letter.id));
    let next = format!("verbatim dead-letters replay {}", letter.id);
    format!(
        "{heading}\n{}\nwhat came stays beside it; {}\n",
        block(&body(edited), "  "),
        paint.text(Tone::Strong, &next)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::dead_letters_list::tests::{look, row};

    #[test]
    fn a_field_is_everything_before_the_first_equals_sign() {
        assert_eq!(field_and_value("a.b=c=d"), Ok(("a.b".to_owned(), "c=d".to_owned())));
        assert!(field_and_value("role").is_err() && field_and_value("=x").is_err());
    }

    #[test]
    fn what_a_replay_sends_now_is_shown() {
        let letter =
            DeadLetterRow { edited_body: Some(br#"{"role":"assistant"}"#.to_vec()), ..row() };
        insta::assert_snapshot!(text(&letter, &look()));
        assert!(text(&row(), &look()).contains("sends what came"));
    }

    #[test]
    fn an_edited_file_is_readable_by_its_owner_alone_and_goes_away() {
        use std::os::unix::fs::PermissionsExt as _;
        let copy = Copy::of(&row()).unwrap();
        let path = copy.0.clone();
        assert_eq!(std::fs::read(&path).unwrap(), row().body);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(copy);
        assert!(!path.exists());
    }
}
