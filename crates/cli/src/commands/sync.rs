//! `verbatim sync`: saves those messages of a list that are not saved yet, and says which.

mod list;

use std::ops::Range;
use std::time::Duration;

use broker::Requester;
use clap::Args;
use domain::action::ActionKind;
use domain::ids::{ConversationId, MessageId, SessionId, TenantId};
use domain::reply::{NewMessage, ReplyError, SyncMessagesData};
use domain::sync::names::{Aligned, OnConflict, SystemMessages};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use service::settings::{AmqpSettings, AmqpUserSettings, positive_duration};
use stores::Broker;
use uuid::Uuid;

use self::list::List;
use crate::commands::lint::BodyLimit;
use crate::exit::{Exit, Failure};
use crate::input::Input;
use crate::output::{Cell, Output, Text, Tone, bar, count, one_line, plural};
use crate::validator::{Sender, Validator};
use crate::values::one_of;

/// Saves those messages of a list that are not saved yet
///
/// FILE is JSON: the messages of a conversation as a call of a model has them, from the first one; or an object
/// with them as `messages`, such as the body of such a call, whose `model` is used, too. They need no ids, and
/// may be sent as often as you like: `conversation.sync_messages`. A list that is too large for one action is
/// sent in parts.
#[derive(Debug, Args)]
#[command(override_usage = "verbatim sync [OPTIONS] --tenant <TENANT> --session <SESSION> <FILE>")]
#[command(after_help = "\
Examples:
  verbatim sync history.json --tenant acme --session web-1
  my-agent --dump-request | verbatim sync - --tenant acme --session web-1 --conversation conv-9
  verbatim sync new.json --tenant acme --session web-1 --after 8aca918a-dcf6-8819-bbe6-4855a68023ee

Exit codes: 0 every message is saved; 1 the workers refuse the list, or did not reply in time;
3 RabbitMQ became unreachable. Running it again is safe.")]
pub(crate) struct Sync {
    /// File with the messages, or - for standard input
    #[arg(value_parser = Input::parse)]
    file: Input,

    /// Tenant of the conversation
    #[arg(long, value_parser = |text: &str| TenantId::new(text), allow_hyphen_values = true)]
    tenant: TenantId,

    /// Session; without --conversation, the conversation is that of the session
    #[arg(long, value_parser = |text: &str| SessionId::new(text), allow_hyphen_values = true)]
    session: SessionId,

    /// Id of the conversation
    #[arg(long, value_parser = |text: &str| ConversationId::new(text), allow_hyphen_values = true)]
    conversation: Option<ConversationId>,

    /// Agent of messages that name none
    #[arg(long, allow_hyphen_values = true)]
    agent: Option<String>,

    /// User of messages that name none
    #[arg(long, allow_hyphen_values = true)]
    user: Option<String>,

    /// Model of messages that name none; by default the `model` of the file
    #[arg(long, allow_hyphen_values = true)]
    model: Option<String>,

    /// Id of the stored message behind which the list begins; by default it begins with the first one
    #[arg(long, value_name = "MESSAGE", allow_hyphen_values = true)]
    #[arg(value_parser = |text: &str| MessageId::new(text))]
    after: Option<MessageId>,

    /// When to save the system and developer messages at the head of the list: changed, first or ignore
    #[arg(long, value_name = "WHEN", default_value = "changed")]
    #[arg(value_parser = |text: &str| one_of(text, SystemMessages::ALL, SystemMessages::as_str))]
    system: SystemMessages,

    /// What to do with a list that does not go on from the newest message: branch or refuse
    #[arg(long, value_name = "WHAT", default_value = "branch")]
    #[arg(value_parser = |text: &str| one_of(text, OnConflict::ALL, OnConflict::as_str))]
    on_conflict: OnConflict,

    /// How long to wait for the reply of the workers
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = positive_duration)]
    wait: Duration,

    #[command(flatten)]
    limit: BodyLimit,

    #[command(flatten)]
    users: AmqpUserSettings,

    #[command(flatten)]
    amqp: AmqpSettings,
}

/// What `verbatim sync` reports.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// The conversation; absent if there was no reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    conversation_id: Option<ConversationId>,
    /// Messages of the file.
    messages: usize,
    /// Those that were saved now, with their positions in the file, from 0.
    new: Vec<NewMessage>,
    /// Those that were not new, without system and developer messages at the head.
    known: u32,
    /// The id of the last message that is saved.
    tail: Option<MessageId>,
    /// How the list goes on from what was saved before.
    aligned: Option<Aligned>,
    /// The message from which a branch goes on.
    branch_of: Option<MessageId>,
    /// Why the workers refused the list, or the rest of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ReplyError>,
}

/// A reply as it arrives.
#[derive(Deserialize)]
struct Answer {
    data: Option<SyncMessagesData>,
    error: Option<ReplyError>,
}

impl Sync {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let broker = Broker::of(&self.amqp)?;
        let bytes = self.file.bytes()?;
        let list = List::read(&bytes, &self.file)?;
        let parts =
            list.parts(self.limit.max_body_bytes, self.fields(&list, None).to_string().len())?;
        let max_body_bytes = self.limit.max_body_bytes;
        let sender = Sender::of(self.users.clone(), &broker.endpoints);
        let validator = Validator { now: output.now, max_body_bytes, sender };
        self.validate(&list, &parts, &validator)?;
        let mut requester =
            Requester::open(&broker.endpoints).await.map_err(|error| broker.failure(&error))?;
        let progress =
            bar(list.messages.len() as u64, "{wide_bar} {human_pos} of {human_len} messages");
        let mut report = Report { messages: list.messages.len(), ..Report::default() };
        let mut after = self.after.clone();
        for part in parts {
            let body = list.body(&self.fields(&list, after.as_ref()), part.clone());
            let answer = match self.request(&mut requester, &validator, body).await {
                Ok(answer) => answer,
                Err(failure) => {
                    progress.finish_and_clear();
                    if part.start > 0 {
                        output.show(&report, |out| text(&report, out))?;
                    }
                    return Err(failure);
                }
            };
            progress.inc(part.len() as u64);
            match (answer.data, answer.error) {
                (Some(data), _) => {
                    after.clone_from(&data.tail);
                    report.add(part.start, data);
                }
                (None, error) => {
                    report.error = error;
                    break;
                }
            }
        }
        progress.finish_and_clear();
        output.show(&report, |out| text(&report, out))?;
        Ok(if report.error.is_none() { Exit::Success } else { Exit::Problems })
    }

    /// The fields of the action beside its messages.
    fn fields(&self, list: &List<'_>, after: Option<&MessageId>) -> Value {
        let mut fields = Map::new();
        let mut add = |name: &str, value: Option<&str>| {
            fields.extend(value.map(|value| (name.to_owned(), value.into())));
        };
        add("action_type", Some(ActionKind::SyncMessages.as_str()));
        add("tenant_id", Some(self.tenant.as_str()));
        add("session_id", Some(self.session.as_str()));
        add("conversation_id", self.conversation.as_ref().map(ConversationId::as_str));
        add("agent_id", self.agent.as_deref());
        add("user_id", self.user.as_deref());
        add("model_name", self.model.as_deref().or(list.model.as_deref()));
        add("after", after.map(MessageId::as_str));
        add("system", Some(self.system.as_str()));
        add("on_conflict", Some(self.on_conflict.as_str()));
        if self.on_conflict == OnConflict::Refuse {
            // The reply goes to this program, by an AMQP property that takes precedence.
            add("callback_queue_name", Some("verbatim"));
        }
        Value::Object(fields)
    }

    /// Checks all parts before the first one is sent.
    fn validate(
        &self,
        list: &List<'_>,
        parts: &[Range<usize>],
        validator: &Validator,
    ) -> Result<(), Failure> {
        // The id of the last message of the part before is known only when that is saved.
        let of_part_before = MessageId::from(Uuid::max());
        for part in parts {
            let after = if part.start == 0 { self.after.as_ref() } else { Some(&of_part_before) };
            let body = list.body(&self.fields(list, after), part.clone());
            validator.decode(&body).map_err(|refusal| {
                let place = match part.start {
                    0 => String::new(),
                    start => format!(", in the part that begins with message {start}"),
                };
                let what = format!("the workers would refuse the list{place}: {}", refusal.detail);
                Failure::problem(what, "nothing of it was published")
            })?;
        }
        Ok(())
    }

    async fn request(
        &self,
        requester: &mut Requester,
        validator: &Validator,
        body: Vec<u8>,
    ) -> Result<Answer, Failure> {
        let publication = validator.publication(ActionKind::SyncMessages.as_str(), body);
        let reply = requester.request(publication, self.wait).await.map_err(|error| {
            let exit = Exit::Unavailable;
            Failure { exit, text: error.to_string() }
                .with("run the command again: no message is saved twice")
        })?;
        let reply = reply.ok_or_else(|| {
            Failure::problem(
                format!("the list is published, and no worker replied within {:?}", self.wait),
                "`verbatim queues` shows whether workers consume conversation.save_message; run the command again, with a \
                 longer --wait: no message is saved twice",
            )
        })?;
        serde_json::from_slice(&reply).map_err(|error| {
            Failure::plain(format!("the reply of the workers cannot be read: {error}"))
        })
    }
}

impl Report {
    /// Adds the reply to the messages from this place on.
    fn add(&mut self, start: usize, data: SyncMessagesData) {
        let start = u32::try_from(start).unwrap_or(u32::MAX);
        let new = data.new.into_iter();
        self.new.extend(
            new.map(|new| NewMessage { position: start.saturating_add(new.position), ..new }),
        );
        self.conversation_id = Some(data.conversation_id);
        self.known = self.known.saturating_add(data.known);
        self.tail = data.tail.or(self.tail.take());
        // The one that says most.
        self.aligned = self.aligned.max(Some(data.aligned));
        self.branch_of = self.branch_of.take().or(data.branch_of);
    }
}

fn text(report: &Report, out: &mut Text) {
    let Report { new, known, messages, .. } = report;
    let row =
        |new: &NewMessage| [Cell::from(new.position.to_string()).right(), new.id.as_str().into()];
    out.first_rows(["position", "saved as"], new.iter().map(row));
    if let Some(conversation) = &report.conversation_id {
        let summary =
            format!("{} of {} saved", count(new.len() as u64), plural(*messages as u64, "message"));
        out.piece(if report.error.is_none() { Tone::Good } else { Tone::Warn }, summary);
        out.push(format!(
            ", {} known; conversation {}\n",
            count(*known),
            one_line(conversation.as_str())
        ));
    }
    match (&report.aligned, &report.branch_of) {
        (Some(Aligned::Branch), Some(of)) => {
            let of = one_line(of.as_str());
            out.line(Tone::Warn, format!("the new messages are a branch: they go on from {of}, not from the newest message"));
        }
        (Some(Aligned::Inferred), _) => {
            out.line(
                Tone::Warn,
                "the beginning of the list differs from what is saved; its end was recognised",
            );
        }
        _ => {}
    }
    if let Some(error) = &report.error {
        out.line(Tone::Bad, format!("{}: {}", error.error_type, error.message));
    } else if let Some(tail) = &report.tail {
        out.line(
            Tone::Dim,
            format!("send only what follows with --after {}", one_line(tail.as_str())),
        );
    }
}
