//! What is committed in PostgreSQL, and is to be appended to hot copies.

use std::borrow::Borrow;
use std::collections::HashSet;

use domain::ids::ConversationKey;
use domain::message::Message;

/// A committed message.
pub(crate) enum CommittedMessage<'a> {
    /// As it was sent.
    Sent(&'a Message),
    /// As it is stored.
    Stored(Box<Message>),
}

impl Borrow<Message> for CommittedMessage<'_> {
    fn borrow(&self) -> &Message {
        match self {
            Self::Sent(message) => message,
            Self::Stored(message) => message,
        }
    }
}

/// The committed messages of a batch.
#[derive(Default)]
pub(crate) struct Committed<'a> {
    messages: Vec<(&'a ConversationKey, CommittedMessage<'a>)>,
    /// The conversations whose copies' expiry is to be renewed: their rows were created or changed, or a message is a
    /// duplicate, whose first saver may have crashed before it renewed it.
    renewed: HashSet<&'a ConversationKey>,
}

impl<'a> Committed<'a> {
    pub(crate) fn with_capacity(messages: usize) -> Self {
        Self { messages: Vec::with_capacity(messages), renewed: HashSet::new() }
    }

    pub(crate) fn add(&mut self, key: &'a ConversationKey, message: CommittedMessage<'a>) {
        self.messages.push((key, message));
    }

    /// The expiry of the copies of these conversations is to be renewed.
    pub(crate) fn renew(&mut self, conversations: impl IntoIterator<Item = &'a ConversationKey>) {
        self.renewed.extend(conversations);
    }

    pub(crate) fn is_renewed(&self, key: &ConversationKey) -> bool {
        self.renewed.contains(key)
    }

    /// Sorts the messages by their conversations.
    pub(crate) fn sort(&mut self) {
        // Each round and each part is in order already, so there is little to sort.
        self.messages.sort_by_key(|(key, _)| *key);
    }

    /// The messages of each conversation, in key order, if they are [sorted](Self::sort).
    pub(crate) fn by_conversation(&self) -> Vec<(ConversationKey, Vec<&Message>)> {
        let conversations = self.messages.chunk_by(|(one, _), (other, _)| one == other);
        conversations
            .filter_map(|messages| {
                let (key, _) = messages.first()?;
                let messages = messages.iter().map(|(_, message)| message.borrow()).collect();
                Some(((*key).clone(), messages))
            })
            .collect()
    }
}
