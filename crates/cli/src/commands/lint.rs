//! `verbatim lint`: checks actions with the workers' validator.

use clap::Args;
use dead_letters::DeadLetterValidator;
use domain::decode::DEFAULT_MAX_BODY_BYTES;
use service::settings::bytes;

use crate::exit::{Exit, Failure};
use crate::input::Input;
use crate::output::{Output, Text, Tone, plural};
use crate::validator::{Findings, Validator};

/// Checks actions with the workers' validator
///
/// One JSON object per line; blank lines are skipped. For each line that the workers would refuse, it
/// prints the reason of the dead letter, the field at fault and the error. It warns of messages without an id
/// or a timestamp, of times without an offset, and of fields that other systems name differently, such as
/// `messageId`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  verbatim lint actions.jsonl
  jq -c '.[]' actions.json | verbatim lint -
  verbatim lint actions.jsonl --json | jq -r '.faults[] | \"\\(.line): \\(.detail)\"'

Exit code 1: the workers would refuse a line. Needs no server.")]
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

impl BodyLimit {
    /// The validator of dead letters with this limit.
    pub(crate) fn dead_letters(self) -> DeadLetterValidator {
        DeadLetterValidator { max_body_bytes: self.max_body_bytes }
    }
}

impl Lint {
    pub(crate) fn run(self, output: &Output) -> Result<Exit, Failure> {
        let max_body_bytes = self.limit.max_body_bytes;
        let findings = Validator { now: output.now, max_body_bytes, sender: None }
            .check(&self.file.buffered()?)?;
        output.show(&findings, |out| text(&findings, out))?;
        Ok(if findings.invalid == 0 { Exit::Success } else { Exit::Problems })
    }
}

fn text(findings: &Findings, out: &mut Text) {
    findings.write(out);
    let Findings { lines, valid, invalid, .. } = findings;
    let actions = plural(*lines, "action");
    match (lines, invalid) {
        (0, _) => out.line(Tone::Warn, "no actions: every line is blank"),
        (_, 0) => out.line(Tone::Good, format!("{actions} valid")),
        _ => {
            out.piece(Tone::Bad, invalid.to_string());
            out.push(format!(" of {actions} would be refused, {valid} valid\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::time::Timestamp;

    use super::*;
    use crate::output::tests::plain;

    fn findings(lines: &str) -> Findings {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("actions.jsonl");
        std::fs::write(&path, lines).unwrap();
        let validator = Validator { now: Timestamp::EARLIEST, max_body_bytes: 1_000, sender: None };
        validator.check(&Input::File(path).buffered().unwrap()).unwrap()
    }

    fn rendered(lines: &str) -> String {
        plain(|out| text(&findings(lines), out))
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
    fn fields_that_other_systems_name_differently_are_warned_of() {
        let line = |fields: &str| {
            let start = r#"{"action_type":"conversation.save_message","tenant_id":"t","session_id":"s","role":"user""#;
            format!(
                "{start},\"message_id\":\"m\",\"timestamp\":\"2026-11-20T10:00:00Z\",{fields}}}\n"
            )
        };
        let lines = [
            line(r#""content":"a","metadata":{"messageId":1},"type":"message""#),
            line(r#""content":"b","messageId":"m-1","createdAt":"2026-11-20T10:00:00Z""#),
            line(r#""data":{"content":"c","messageId":"m-2","type":"human","parts":[]}"#),
            line(r#""content":"d","usage":{"prompt_tokens":7,"output_tokens":1}"#)
                .replace("10:00:00Z", "10:00:00"),
        ];
        insta::assert_snapshot!(rendered(&lines.concat()));
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
        let validator = Validator { now: Timestamp::EARLIEST, max_body_bytes, sender: None };
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
