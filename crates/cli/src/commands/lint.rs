//! `verbatim lint`: checks actions with the workers' validator.

use clap::Args;
use domain::decode::DEFAULT_MAX_BODY_BYTES;
use service::settings::bytes;

use crate::exit::{Exit, Failure};
use crate::input::Input;
use crate::output::{Output, TextStyle, Tone, plural};
use crate::validator::{Findings, Validator};

const EXAMPLES: &str = "\
Examples:
  verbatim lint actions.jsonl
  jq -c '.[]' actions.json | verbatim lint -
  verbatim lint actions.jsonl --json | jq -r '.faults[] | \"\\(.line): \\(.detail)\"'

Exit code 1: the workers would refuse a line. Needs no server.";

/// Checks actions with the workers' validator
///
/// One JSON object per line; blank lines are skipped. For each line that the workers would refuse, it
/// prints the reason of the dead letter, the field at fault and the error.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Lint {
    /// File with one action per line, or - for standard input
    #[arg(value_parser = Input::parse)]
    file: Input,

    #[command(flatten)]
    pub(crate) limit: BodyLimit,
}

/// The limit on the size of an action.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct BodyLimit {
    /// Largest body that the workers accept, in bytes
    #[arg(long, env = "VERBATIM_MAX_BODY_BYTES", value_name = "BYTES")]
    #[arg(default_value_t = DEFAULT_MAX_BODY_BYTES, value_parser = bytes)]
    pub(crate) max_body_bytes: usize,
}

impl Lint {
    pub(crate) fn run(self, output: &Output) -> Result<Exit, Failure> {
        let max_body_bytes = self.limit.max_body_bytes;
        let findings =
            Validator { now: output.style.now, max_body_bytes }.check(&self.file.buffered()?)?;
        output.show(&findings, |style| text(&findings, style))?;
        Ok(if findings.invalid == 0 { Exit::Success } else { Exit::Problems })
    }
}

fn text(findings: &Findings, style: &TextStyle) -> String {
    let out = findings.render(style);
    let Findings { lines, valid, invalid, .. } = findings;
    let summary = match (lines, invalid) {
        (0, _) => style.paint.text(Tone::Warn, "no actions: every line is blank"),
        (_, 0) => style.paint.text(Tone::Good, &format!("{} valid", plural(*lines, "action"))),
        _ => format!(
            "{} of {} would be refused, {valid} valid",
            style.paint.text(Tone::Bad, &invalid.to_string()),
            plural(*lines, "action"),
        ),
    };
    out + &summary + "\n"
}

#[cfg(test)]
mod tests {
    use domain::time::Timestamp;

    use super::*;
    use crate::output::Paint;

    fn findings(lines: &str) -> Findings {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("actions.jsonl");
        std::fs::write(&path, lines).unwrap();
        let validator = Validator { now: Timestamp::EARLIEST, max_body_bytes: 1_000 };
        validator.check(&Input::File(path).buffered().unwrap()).unwrap()
    }

    fn rendered(lines: &str) -> String {
        let style = TextStyle { paint: Paint::Plain, now: Timestamp::EARLIEST };
        text(&findings(lines), &style)
    }

    #[test]
    fn each_refused_line_is_listed_with_its_field_and_error() {
        let lines = concat!(
            r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"bot","content":"hi"}"#,
            "\n\nhello\n",
            r#"{"action_type":"conversation.save_mesage","tenant_id":"t","session_id":"s"}"#,
            "\n",
            r#"{"action_type":"conversation.session_closed","tenant_id":"t","session_id":"s"}"#,
            "\n",
            r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"user","content":"hi"}"#,
        );
        insta::assert_snapshot!(rendered(lines));
    }

    #[test]
    fn valid_lines_are_only_counted() {
        let line =
            r#"{"action_type":"conversation.session_closed","tenant_id":"t","session_id":"s"}"#;
        assert_eq!(rendered(line), "1 action valid\n");
        assert_eq!(rendered("\n \n"), "no actions: every line is blank\n");
    }

    #[test]
    fn a_file_that_is_json_but_not_json_lines_is_recognised() {
        assert!(rendered("[{\"action_type\":\"x\"}]").contains("jq -c '.[]'"));
        assert!(rendered("{\n  \"action_type\": \"x\"\n}").contains("`jq -c . FILE`"));
        assert_eq!(findings("hello\n{\n").hint, None);
    }

    #[test]
    fn every_fixture_is_accepted_and_every_malformed_body_refused_with_its_reason() {
        let max_body_bytes = 10_000;
        let validator = Validator { now: Timestamp::EARLIEST, max_body_bytes };
        for example in fixtures::examples::ACTIONS {
            assert!(validator.decode(example.body.as_bytes()).is_ok(), "{}", example.name);
        }
        for bad in fixtures::examples::malformed(max_body_bytes) {
            let refusal = validator.decode(&bad.body).unwrap_err();
            let found = (refusal.reason.as_str(), refusal.field.as_deref());
            assert_eq!(found, (bad.reason, bad.field));
        }
    }
}
