//! The work of `conversation.save_message`, `conversation.save_messages` and `conversation.sync_messages`.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use broker::topology::WorkQueue;
use broker::{Decoder, Delivery, Handled, Handler, Part, Processed, Source};
use bytes::Bytes;
use conversation::{Saver, SyncOutcome, ToSave, ToSync};
use domain::action::{Action, Common, SaveMessage, SaveMessages, SyncMessages};
use domain::decode::{DecodeContext, Extent, decode, elements_as_actions};
use domain::envelope::{Envelope, Resolved};
use domain::failure::{DeadLetterReason, Dependency, Done, Failure, Outcome, Refusal, Unavailable};
use domain::fleet::refusal_of;
use domain::reply::{
    ErrorType, NewMessage, ReplyAddress, ReplyError, SaveMessageData, SaveMessagesData,
    SavedElement, SyncMessagesData,
};
use domain::sync::plan::New;
use uuid::Uuid;

#[derive(Clone)]
pub(crate) struct MessageHandler {
    pub(crate) saver: Saver,
    pub(crate) decoder: Decoder,
}

/// An action that saves messages.
pub(crate) enum Save {
    /// One message.
    One(Box<SaveMessage>),
    /// Several messages, and the body, from which an element is sent on by itself.
    Several(Box<SaveMessages>, Bytes),
    /// A list, the body, from which its new messages are read, and whether it was tried before.
    List(Box<SyncMessages>, Bytes, AtomicBool),
}

impl Save {
    fn common(&self) -> &Common {
        match self {
            Self::One(save) => &save.common,
            Self::Several(action, _) => &action.common,
            Self::List(action, ..) => &action.common,
        }
    }
}

impl Handler for MessageHandler {
    type Item = Save;
    const NEEDS: &'static [Dependency] = &[Dependency::PostgreSql];

    fn source(&self) -> Source {
        Source::work(WorkQueue::SaveMessage)
    }

    fn with_time_limit(&self, limit: Duration) -> Option<Self> {
        Some(Self { saver: self.saver.with_time_limit(limit), ..self.clone() })
    }

    fn extent(&self, body: &[u8]) -> Extent {
        Extent::of(body)
    }

    fn decode(&self, delivery: &Delivery) -> Result<Save, Refusal> {
        match self.decoder.decode(delivery)? {
            Action::SaveMessage(save) => Ok(Save::One(save)),
            Action::SaveMessages(action) => match action.refusal() {
                Some(refusal) => Err(refusal),
                None => Ok(Save::Several(Box::new(action), delivery.body.clone())),
            },
            Action::SyncMessages(action) => {
                Ok(Save::List(Box::new(action), delivery.body.clone(), AtomicBool::new(false)))
            }
            other => Err(refusal_of(other.kind())),
        }
    }

    fn resolved(&self, save: &Save) -> Option<Resolved> {
        Some(save.common().resolved())
    }

    fn reply_address(&self, save: &Save) -> Option<ReplyAddress> {
        save.common().reply_address()
    }

    async fn handle(&self, saves: &[Save]) -> Result<Vec<Handled>, Unavailable> {
        let mut messages: Vec<ToSave<'_>> = Vec::with_capacity(saves.len());
        for (unit, save) in saves.iter().enumerate() {
            add_messages(&mut messages, unit, save);
        }
        let mut outcomes = self.saver.save_units(&messages).await?.into_iter();
        let lists: Vec<ToSync<'_>> = saves.iter().filter_map(list_of).collect();
        let mut of_lists = self.saver.sync(&lists).await?.into_iter();
        let handled = saves.iter().map(|save| match save {
            Save::One(save) => match outcomes.next() {
                Some(outcome) => outcome.map(|done| processed(save, done)),
                None => Err(Failure::Retry("a message has no outcome".into())),
            },
            Save::Several(action, body) => {
                let own = outcomes
                    .by_ref()
                    .take(action.elements.iter().filter(|it| it.message.is_ok()).count());
                several(action, body, own.collect())
            }
            Save::List(action, ..) => match of_lists.next() {
                Some(outcome) => synced(action, outcome?),
                None => Err(Failure::Retry("a list has no outcome".into())),
            },
        });
        Ok(handled.collect())
    }

    async fn probe(&self, _: Dependency) -> Result<(), Unavailable> {
        self.saver.check().await
    }
}

/// Adds the messages of an action.
fn add_messages<'a>(messages: &mut Vec<ToSave<'a>>, unit: usize, save: &'a Save) {
    match save {
        Save::One(message) => {
            messages.push(ToSave::alone(unit, message));
        }
        Save::List(..) => {}
        Save::Several(action, _) => {
            let good = action.elements.iter().enumerate();
            let good = good.filter_map(|(n, element)| Some((n, element.message.as_deref().ok()?)));
            let to_save = |(position, message): (usize, _)| ToSave {
                message,
                unit,
                atomic: action.atomic,
                after_receipt: action.is_by_receipt(position).then_some(position),
                is_time_estimated: action.elements[position].is_time_estimated,
            };
            messages.extend(good.map(to_save));
        }
    }
}

fn list_of(save: &Save) -> Option<ToSync<'_>> {
    match save {
        Save::List(action, body, is_tried) => Some(ToSync { action, body, is_tried }),
        Save::One(_) | Save::Several(..) => None,
    }
}

/// What becomes of a list.
fn synced(action: &SyncMessages, outcome: SyncOutcome) -> Handled {
    let plan = match outcome {
        SyncOutcome::Stored(list) => list.plan,
        SyncOutcome::Erased => {
            return Ok(Processed { reply: Some(Err(erased())), ..Done::Erased.into() });
        }
        SyncOutcome::NoBranch(position) => {
            return Ok(Processed { reply: Some(Err(no_branch(position))), ..Done::Applied.into() });
        }
    };
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let new = |new: New| NewMessage { position: count(new.position), id: new.id };
    let done = if plan.new.is_empty() { Done::Duplicate } else { Done::Applied };
    if action.common.reply_to.is_none() {
        return Ok(done.into());
    }
    Ok(Processed::from(done).replying(&SyncMessagesData {
        conversation_id: action.common.key.conversation.clone(),
        new: plan.new.into_iter().map(new).collect(),
        known: count(plan.known),
        tail: plan.tail,
        aligned: plan.aligned,
        branch_of: plan.branch_of,
    }))
}

fn no_branch(position: usize) -> ReplyError {
    let field = format!("messages[{position}]");
    ReplyError {
        message: format!(
            "`{field}` does not follow the newest message of the conversation, and `on_conflict` is `refuse`; nothing is stored"
        ),
        ..ReplyError::from(&Refusal {
            field: Some(field),
            ..Refusal::new(DeadLetterReason::Conflict, String::new())
        })
    }
}

/// What becomes of an action of several messages. `outcomes` are those of the messages that are not refused.
fn several(action: &SaveMessages, body: &Bytes, outcomes: Vec<Outcome>) -> Handled {
    let mut outcomes = outcomes.into_iter();
    let outcomes: Vec<Outcome> = action
        .elements
        .iter()
        .map(|element| match &element.message {
            Ok(_) => outcomes
                .next()
                .unwrap_or_else(|| Err(Failure::Retry("a message has no outcome".into()))),
            Err(refusal) => Err(Failure::DeadLetter(refusal.clone())),
        })
        .collect();
    let failures = || outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    // All that could be saved wait for the same row: they are handled again together.
    let is_saved = |outcome: &Outcome| outcome.is_ok();
    let apart = failures().find(|failure| failure.is_apart());
    if let Some(apart) = apart.filter(|_| action.atomic || !outcomes.iter().any(is_saved)) {
        return Err(apart.clone());
    }
    if action.atomic && failures().next().is_some() {
        return Err(of_atomic(&outcomes));
    }
    let data = SaveMessagesData {
        conversation_id: action.common.key.conversation.clone(),
        messages: outcomes.iter().enumerate().map(|it| saved_element(action, it)).collect(),
    };
    let has = |wanted: Done| outcomes.iter().any(|outcome| *outcome == Ok(wanted));
    let effects = [Done::Applied, Done::Duplicate, Done::Erased];
    // An action whose messages all became dead letters took effect.
    let done = effects.into_iter().find(|done| has(*done)).unwrap_or(Done::Applied);
    let failed = outcomes.into_iter().enumerate();
    let failed: Vec<(usize, Failure)> =
        failed.filter_map(|(position, outcome)| Some((position, outcome.err()?))).collect();
    let bodies = elements_as_actions(body, action, failed.iter().map(|(position, _)| *position));
    if bodies.len() != failed.len() {
        return Err(Failure::Retry("an element of the action was not found in its body".into()));
    }
    let part = |((position, failure), body)| part(action, body, position, failure);
    let parts = failed.into_iter().zip(bodies).map(part).collect();
    let mut processed = Processed { parts, ..done.into() };
    if action.common.reply_to.is_some() {
        processed = processed.replying(&data);
    }
    Ok(processed)
}

/// A message that failed, as an action of its own.
fn part(action: &SaveMessages, body: Vec<u8>, position: usize, failure: Failure) -> Part {
    let element = &action.elements[position];
    // A refusal names the field by its place in the body that it is stored with.
    let context = DecodeContext {
        received_at: action.common.received_at,
        max_body_bytes: usize::MAX,
        new_id: &Uuid::new_v4,
    };
    let envelope = Envelope { resolved: Some(&element.resolved), ..Envelope::default() };
    let by_itself = element.message.as_ref().err().map(|_| decode(&body, &envelope, &context));
    let resolved = Some(element.resolved.clone());
    match by_itself {
        // It names another conversation or action: by itself it is what it says, and not of this conversation.
        Some(Ok(_)) => Part { body, resolved: None, failure },
        Some(Err(refusal)) => Part { body, resolved, failure: Failure::DeadLetter(refusal) },
        None => Part { body, resolved, failure },
    }
}

/// Why an atomic action fails: it is tried again if that may help, else it is a dead letter.
fn of_atomic(outcomes: &[Outcome]) -> Failure {
    let failed = || outcomes.iter().enumerate().filter_map(|(n, it)| Some((n, it.as_ref().err()?)));
    let is_withheld = |failure: &Failure| matches!(failure, Failure::DeadLetter(refusal) if refusal.field.is_none() && refusal.reason == DeadLetterReason::Conflict);
    if let Some((_, retry)) = failed().find(|(_, failure)| matches!(failure, Failure::Retry(_))) {
        return retry.clone();
    }
    let mut refused = failed().filter_map(|(position, failure)| match failure {
        Failure::DeadLetter(refusal) if !is_withheld(failure) => Some((position, refusal)),
        _ => None,
    });
    match refused.next() {
        // PostgreSQL says nothing of the message.
        Some((_, of_all)) if of_all.field.is_none() => Failure::DeadLetter(of_all.clone()),
        Some((position, first)) => {
            let positions: Vec<usize> =
                std::iter::once(position).chain(refused.map(|(position, _)| position)).collect();
            Failure::DeadLetter(SaveMessages::refused_at(&positions, first))
        }
        None => Failure::Retry("an atomic action failed without a message at fault".into()),
    }
}

fn saved_element(action: &SaveMessages, (position, outcome): (usize, &Outcome)) -> SavedElement {
    let error = match outcome {
        Ok(Done::Applied | Done::Duplicate) => None,
        Ok(Done::Erased) => Some(erased()),
        Err(Failure::DeadLetter(refusal)) => Some(ReplyError::from(refusal)),
        Err(_) => Some(ReplyError {
            error_type: ErrorType::Internal,
            message: "the message is not saved yet; it is tried again".to_owned(),
            details: None,
        }),
    };
    SavedElement {
        position: u32::try_from(position).unwrap_or(u32::MAX),
        message_id: action.elements[position].resolved.id.clone(),
        duplicate: error.is_none().then_some(*outcome == Ok(Done::Duplicate)),
        error,
    }
}

fn erased() -> ReplyError {
    ReplyError {
        error_type: ErrorType::Erased,
        message: "the message was deleted before, or its conversation or user was erased after it was sent"
            .to_owned(),
        details: None,
    }
}

/// The decision with its reply, for a sender who wants one.
fn processed(save: &SaveMessage, done: Done) -> Processed {
    let processed = Processed::from(done);
    if save.common.reply_to.is_none() {
        return processed;
    }
    match done {
        Done::Applied | Done::Duplicate => processed.replying(&SaveMessageData {
            conversation_id: save.common.key.conversation.clone(),
            message_id: save.message.id.clone(),
            duplicate: done == Done::Duplicate,
        }),
        Done::Erased => Processed { reply: Some(Err(erased())), ..processed },
    }
}
