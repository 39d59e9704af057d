//! `verbatim dead-dead_letters export`: dead letters as JSON lines, a few in memory at a time.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use clap::Args;
use database::{DeadLetterRow, DeadLetterStatus};
use serde::Serialize;
use service::settings::DatabaseSettings;

use super::dead_letters_discard::dead_letters;
use super::dead_letters_selection::{Chosen, Status};
use crate::actor::ActorArgs;
use crate::exit::{Exit, Failure};
use crate::output::{Screen, plural};
use crate::servers::DatabaseServer;

const EXAMPLES: &str = "\
Examples:
  verbatim dead-letters export --all --output letters.jsonl
  verbatim dead-letters export --reason schema --tenant acme | jq -r .body

One JSON object a line, oldest first: everything that `show --json` has of the dead letter itself, headers
and edited copy included. A body that is not UTF-8 stands in `body_hex`. Bodies are words of
conversations: the file is readable by its owner alone, and the audit log says who took them out.";

/// Writes dead letters as JSON lines
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(override_usage = "verbatim dead-letters export [OPTIONS] [ID]...")]
pub(crate) struct DeadLettersExport {
    /// Only those in this state; dead letters that are named by their ids may be in any
    #[arg(long, value_enum, default_value = "open")]
    status: Status,

    /// A new file, instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    chosen: Chosen,

    #[command(flatten)]
    actor: ActorArgs,

    #[command(flatten)]
    database: DatabaseSettings,
}

/// A dead letter on its line.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    dead_letter: &'a DeadLetterRow,
    /// Where the body is not UTF-8, which `body` shows only roughly.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_hex: Option<String>,
}

impl DeadLettersExport {
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        let selection = self.chosen.selection(screen.style.now)?;
        let server = DatabaseServer::open(&self.database).await?;
        let mut out = self.open()?;
        let status = if self.chosen.named() > 0 { None } else { self.status.stored() };
        let status: &[DeadLetterStatus] = status.as_slice();
        let written = dead_letters(&server)
            .export(selection, status, &self.actor.actor(), |dead_letter| {
                write(&dead_letter, &mut out)
            })
            .await
            .map_err(|fault| match fault {
                Fault::Database(error) => server.failure(&error),
                Fault::Output(error) => Failure::from(error),
            })?;
        out.flush()?;
        if let Some(path) = &self.output {
            // Standard output belongs byte for bytes.
            eprintln!("{} in {}", plural(written, "dead letter"), path.display());
        }
        Ok(Exit::Fine)
    }

    fn open(&self) -> Result<Box<dyn Write + Send>, Failure> {
        let Some(path) = &self.output else {
            return Ok(Box::new(BufWriter::new(io::stdout())));
        };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file
            .map_err(|error| Failure::Usage(format!("cannot make {}: {error}", path.display())))?;
        Ok(Box::new(BufWriter::new(file)))
    }
}

/// Why an export ended early.
enum Fault {
    Database(database::Error),
    Output(io::Error),
}

impl From<database::Error> for Fault {
    fn from(error: database::Error) -> Self {
        Self::Database(error)
    }
}

fn write(dead_letter: &DeadLetterRow, out: &mut (impl Write + ?Sized)) -> Result<(), Fault> {
    let is_text = std::str::from_utf8(&dead_letter.body).is_ok();
    let line = Line { dead_letter, body_hex: (!is_text).then(|| hex(&dead_letter.body)) };
    let written = serde_json::to_writer(&mut *out, &line).map_err(io::Error::from);
    written.and_then(|()| out.write_all(b"\n")).map_err(Fault::Output)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::commands::dead_letters_list::tests::row;

    fn line(dead_letter: &DeadLetterRow) -> Value {
        let mut out = Vec::new();
        assert!(write(dead_letter, &mut out).is_ok());
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_line_has_the_dead_letter_and_a_body_that_is_no_text_in_full() {
        let told = line(&row());
        assert_eq!(told["body"].as_str().unwrap().as_bytes(), row().body);
        assert!(told.get("body_hex").is_none() && told["edited_body"].is_null());
        let told = line(&DeadLetterRow { body: b"a\n\xff".to_vec(), ..row() });
        assert_eq!(told["body_hex"], "610aff");
    }
}
