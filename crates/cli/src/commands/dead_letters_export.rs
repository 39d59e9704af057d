//! `verbatim dead-letters export`: writes dead letters as JSON lines, page by page.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use clap::Args;
use database::{DeadLetterDetail, DeadLetterStatus};
use serde::Serialize;
use stores::DatabaseServer;

use super::dead_letters_selection::{Operation, Status, dead_letters};
use crate::exit::{Exit, Failure};
use crate::output::{self, Output, plural};

/// Writes dead letters as JSON lines
#[derive(Debug, Args)]
#[command(override_usage = "verbatim dead-letters export [OPTIONS] [ID]...")]
#[command(after_help = "\
Examples:
  verbatim dead-letters export --all --output dead-letters.jsonl
  verbatim dead-letters export --reason schema --tenant acme | jq -r .body

One JSON object per line, oldest first: the fields of the dead letter in `show --json`, with
headers and edited copy. A body that is not UTF-8 is also in `body_hex`. Bodies contain
conversations: the file is readable by its owner only, and the audit log records the export.")]
pub(crate) struct DeadLettersExport {
    /// Only those with this status; ignored for dead letters that are given by their ids
    #[arg(long, value_enum, default_value = "open")]
    status: Status,

    /// Write to this new file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    on: Operation,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    detail: &'a DeadLetterDetail,
    /// The body, if it is not UTF-8 and `body` therefore lossy.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_hex: Option<String>,
}

impl DeadLettersExport {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let selection = self.on.chosen.selection(output.now)?;
        let server = DatabaseServer::open(&self.on.database).await?;
        let mut out = self.open()?;
        let status = if self.on.chosen.named() > 0 { None } else { self.status.stored() };
        let status: &[DeadLetterStatus] = status.as_slice();
        let exported = dead_letters(&server)
            .export(selection, status, &self.on.actor.actor(), |detail| write(&detail, &mut out))
            .await
            .map_err(|error| server.failure(&error))?;
        let exported = exported.and_then(|exported| out.flush().map(|()| exported));
        if let (Ok(exported), Some(path)) = (&exported, &self.output) {
            eprintln!("exported {} to {}", plural(*exported, "dead letter"), path.display());
        }
        output::written(exported.map(drop)).map(|()| Exit::Success)
    }

    fn open(&self) -> Result<Box<dyn Write + Send>, Failure> {
        let Some(path) = &self.output else {
            return Ok(Box::new(BufWriter::new(io::stdout())));
        };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|error| {
            Failure::usage(format!("cannot create {}: {error}", path.display()))
        })?;
        Ok(Box::new(BufWriter::new(file)))
    }
}

fn write(detail: &DeadLetterDetail, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
    let body = &detail.message.body;
    let is_text = std::str::from_utf8(body).is_ok();
    let line = Line { detail, body_hex: (!is_text).then(|| hex(body)) };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::commands::dead_letters_list::tests::detail;

    fn line(detail: &DeadLetterDetail) -> Value {
        let mut out = Vec::new();
        assert!(write(detail, &mut out).is_ok());
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_line_has_the_dead_letter_and_the_bytes_of_a_binary_body() {
        let exported = line(&detail());
        assert_eq!(exported["body"].as_str().unwrap().as_bytes(), detail().message.body);
        assert!(exported.get("body_hex").is_none() && exported["edited_body"].is_null());
        let mut binary = detail();
        binary.message.body = b"a\n\xff".as_slice().into();
        let exported = line(&binary);
        assert_eq!(exported["body_hex"], "610aff");
    }
}
