//! The workers' validator, applied to the lines of a file.
//!
//! A line is decoded exactly as a worker decodes the body of a delivery, so a line that passes is never
//! dead-lettered as malformed_json, schema, too_large or unknown_action; nor as forbidden, if the command has the workers'
//! setting `amqp_users`.

use broker::{Endpoints, Publication};
use domain::action::{Action, Identity, TimeSource};
use domain::amqp_users::AmqpUsers;
use domain::decode::{DecodeContext, decode};
use domain::envelope::Envelope;
use domain::failure::Refusal;
use domain::time::Timestamp;
use serde::Serialize;
use service::settings::AmqpUserSettings;
use uuid::Uuid;

use crate::exit::Failure;
use crate::input::{Line, Lines};
use crate::output::{Cell, Text, Tone, plural};
use crate::warnings::Warnings;

/// Decodes lines as the workers decode bodies.
#[derive(Debug, Clone)]
pub(crate) struct Validator {
    /// Used as the time of receipt.
    pub(crate) now: Timestamp,
    pub(crate) max_body_bytes: usize,
    /// Who publishes the lines, if the workers check that.
    pub(crate) sender: Option<Sender>,
}

/// The user of RabbitMQ as whom this command publishes, and for which tenants the users may.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    user: String,
    users: AmqpUsers,
}

impl Sender {
    /// The user of these addresses, if it is set which tenants the users may name.
    pub(crate) fn of(settings: AmqpUserSettings, endpoints: &Endpoints) -> Option<Self> {
        Some(Self { user: endpoints.user().to_owned(), users: settings.amqp_users? })
    }
}

/// A line that the workers would refuse, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Fault {
    /// Its number, from 1.
    pub(crate) line: u64,
    /// The reason of the dead letter that it would become.
    pub(crate) reason: &'static str,
    /// The field at fault, where there is one.
    pub(crate) field: Option<String>,
    /// A sentence that says what is wrong.
    pub(crate) detail: String,
}

/// The result for a whole file.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Findings {
    /// Lines that are not blank.
    pub(crate) lines: u64,
    /// Lines that the workers accept.
    pub(crate) valid: u64,
    /// Lines that the workers would refuse.
    pub(crate) invalid: u64,
    /// What valid messages lack.
    #[serde(flatten)]
    pub(crate) missing: MissingFields,
    /// What is probably not meant, also in valid lines.
    pub(crate) warnings: Warnings,
    /// What is wrong with each invalid line.
    pub(crate) faults: Vec<Fault>,
    /// A likely cause of all faults: a file that is JSON, but not JSON lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<&'static str>,
}

/// How many messages lack a recommended field. AMQP properties do not count: this command sets no timestamp.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct MissingFields {
    /// Messages without `message_id`, `action_id` and `timestamp`: no idempotency key can be derived, so a
    /// redelivery may store one twice.
    pub(crate) without_identity: u64,
    /// Messages without `timestamp`: their order is that of their receipt.
    pub(crate) without_timestamp: u64,
}

impl Validator {
    /// The action in a body, or why a worker would refuse it.
    pub(crate) fn decode(&self, body: &[u8]) -> Result<Action, Refusal> {
        let context = DecodeContext {
            received_at: self.now,
            max_body_bytes: self.max_body_bytes,
            new_id: &Uuid::now_v7,
        };
        let action = decode(body, &Envelope::default(), &context)?;
        if let Some(Sender { user, users }) = &self.sender {
            users.check(Some(user), &action.common().key.tenant)?;
        }
        Ok(action)
    }

    /// An action to publish. It names its user only if the workers check that: RabbitMQ refuses another name than its own
    /// of the user, and that need not be the one in the URL (OAuth 2.0, client certificates).
    pub(crate) fn publication(&self, action_type: &str, body: Vec<u8>) -> Publication {
        let user_id = self.sender.as_ref().map(|sender| sender.user.clone());
        Publication { user_id, ..Publication::action(action_type, body) }
    }

    pub(crate) fn check(&self, lines: &Lines) -> Result<Findings, Failure> {
        let mut findings = Findings::default();
        for line in lines.read()? {
            self.check_line(&line?, &mut findings);
        }
        Ok(findings)
    }

    fn check_line(&self, line: &Line, findings: &mut Findings) {
        findings.lines += 1;
        findings.warnings.count(line.number, &line.body);
        let refused = match self.decode(&line.body) {
            Ok(action) => {
                let refused: Vec<Refusal> = action.refused_elements().cloned().collect();
                if refused.is_empty() {
                    findings.missing.count(&action);
                }
                refused
            }
            Err(refusal) => {
                if findings.lines == 1 {
                    findings.hint = not_json_lines(&line.body);
                }
                vec![refusal]
            }
        };
        *(if refused.is_empty() { &mut findings.valid } else { &mut findings.invalid }) += 1;
        findings.faults.extend(refused.into_iter().map(|refusal| Fault {
            line: line.number,
            reason: refusal.reason.as_str(),
            field: refusal.field,
            detail: refusal.detail,
        }));
    }
}

impl Findings {
    /// The faults as a table, with hints.
    pub(crate) fn write(&self, out: &mut Text) {
        if !self.faults.is_empty() {
            let row = |fault: &Fault| {
                [
                    Cell::from(fault.line.to_string()).right(),
                    Cell::new(Tone::Bad, fault.reason),
                    Cell::optional(fault.field.as_deref()),
                    (&fault.detail).into(),
                ]
            };
            out.table(["line", "reason", "field", "error"], self.faults.iter().map(row));
            out.push("\n");
        }
        if let Some(hint) = self.hint {
            out.line(Tone::Warn, hint);
        }
        self.warnings.write(out);
        self.missing.write(out);
    }
}

impl MissingFields {
    /// Counts what an action lacks, if it is a message.
    pub(crate) fn count(&mut self, action: &Action) {
        for save in action.messages() {
            self.without_identity += u64::from(matches!(save.identity, Identity::Random { .. }));
            self.without_timestamp += u64::from(save.common.time_source == TimeSource::Receipt);
        }
    }

    /// A line for each field that messages lack.
    pub(crate) fn write(self, out: &mut Text) {
        for (messages, fault) in [
            (
                self.without_identity,
                "without message_id, action_id and timestamp: a redelivery may store one twice",
            ),
            (self.without_timestamp, "without timestamp: sorted by the time of receipt"),
        ] {
            if messages > 0 {
                out.line(Tone::Warn, format!("{} {fault}", plural(messages, "message")));
            }
        }
    }
}

/// A hint for a file that is JSON, but not JSON lines.
fn not_json_lines(first_line: &[u8]) -> Option<&'static str> {
    match first_line.trim_ascii_start() {
        b"{" => Some("this looks like JSON over several lines; convert it with `jq -c . FILE`"),
        [b'[', ..] => Some("this looks like a JSON array; convert it with `jq -c '.[]' FILE`"),
        _ => None,
    }
}
