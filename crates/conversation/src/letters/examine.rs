//! A letter as a worker would see it if it were sent now: where it goes, what it is, whether it would be
//! refused again.
//!
//! Invariant: the same letter with the same copy always gives the same identity and time. So a replay
//! that is sent twice, because somebody died before it was noted, takes effect once; also where its
//! sender gave no id at all, for then it is known by the letter's.

use archive::{DeadLetterRow, Words};
use broker::{Letter, Publication, topology};
use domain::action::Action;
use domain::decode::{DecodeContext, decode};
use domain::envelope::Resolved;
use domain::failure::Refusal;
use domain::time::Timestamp;
use uuid::Uuid;

/// Decodes letters as the workers do.
#[derive(Debug, Clone, Copy)]
pub struct Examiner {
    /// The largest body that the workers accept, in bytes.
    pub max_body_bytes: usize,
}

/// What a replay of a letter would be.
#[derive(Debug)]
pub struct Prepared {
    /// The queue to which it goes.
    pub queue: String,
    /// What it is known to be; nothing while it cannot be decoded.
    pub resolved: Option<Resolved>,
    /// Its words, if it is a message to save.
    pub words: Option<Words>,
    /// Why the workers of this version would refuse it.
    pub refusal: Option<Refusal>,
}

impl Examiner {
    /// What a body in the place of a letter's would ask for.
    ///
    /// # Errors
    /// The refusal that the workers would answer with.
    pub fn decode(&self, letter: &DeadLetterRow, body: &[u8]) -> Result<Action, Refusal> {
        let kept = kept(letter).journey().resolved;
        let received_at = match &kept {
            Some(resolved) => resolved.received_at,
            None => Timestamp::try_from(letter.first_failed_at).unwrap_or(Timestamp::EARLIEST),
        };
        let id = kept.and_then(|resolved| Uuid::parse_str(resolved.id.as_str()).ok());
        let context = DecodeContext {
            received_at,
            max_body_bytes: self.max_body_bytes,
            fresh_id: &|| id.unwrap_or(letter.id),
        };
        decode(body, &kept_envelope(letter), &context)
    }

    /// What a replay of a letter would be.
    #[must_use]
    pub fn prepare(&self, letter: &DeadLetterRow) -> Prepared {
        let decoded = self.decode(letter, letter.body_to_send());
        let found = decoded.as_ref().ok().and_then(Action::resolved);
        // An edited body says itself what it is: its id may be what was wrong.
        let resolved = match (&letter.edited_body, kept(letter).journey().resolved) {
            (None, Some(kept)) => Some(kept),
            _ => found,
        };
        let queue = match &decoded {
            Ok(action) => topology::queue_of(action.kind()).to_owned(),
            Err(_) => letter.queue.clone(),
        };
        let words = match (&decoded, &resolved) {
            (Ok(Action::SaveMessage(save)), Some(resolved)) => {
                let mut key = save.common.key.clone();
                key.conversation = resolved.conversation.clone();
                let hash = save.message.body_hash();
                Some(Words { key, id: resolved.id.clone(), hash })
            }
            _ => None,
        };
        Prepared { queue, resolved, words, refusal: decoded.err() }
    }
}

impl Prepared {
    /// The message that sends it.
    #[must_use]
    pub fn publication(&self, letter: &DeadLetterRow) -> Publication {
        kept(letter).replay(
            letter.body_to_send().to_vec(),
            &self.queue,
            self.resolved.clone(),
        )
    }
}

fn kept(letter: &DeadLetterRow) -> Letter<'_> {
    Letter {
        id: letter.id,
        exchange: &letter.exchange,
        routing_key: &letter.routing_key,
        properties: &letter.properties,
        headers: &letter.headers,
    }
}

fn kept_envelope(letter: &DeadLetterRow) -> domain::envelope::Envelope<'_> {
    kept(letter).envelope()
}
