//! How the topology that is differs from the one that should be, in words that say what to do.
//!
//! RabbitMQ tells it in the text of its 406 answer, and only there: AMQP has no way to ask for a
//! queue's arguments.

use std::fmt;

/// What differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An exchange.
    Exchange,
    /// A queue.
    Queue,
}

/// An exchange or queue that is not as the fleet needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with an exchange or queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It does not exist.
    Missing,
    /// It was declared with another argument.
    Argument {
        /// The argument's name.
        name: String,
        /// What it is; absent if it was not given.
        is: Option<String>,
        /// What it should be; absent if it must not be given.
        should_be: Option<String>,
    },
    /// RabbitMQ refused to say more than this.
    Refused(String),
}

impl Difference {
    /// Reads RabbitMQ's answer to a declaration: its reply code and text.
    pub(crate) fn from_reply(kind: Kind, name: &str, code: u16, text: &str) -> Self {
        const NOT_FOUND: u16 = 404;
        let fault = if code == NOT_FOUND {
            Fault::Missing
        } else {
            argument(text).unwrap_or_else(|| Fault::Refused(text.to_owned()))
        };
        Self { kind, name: name.to_owned(), fault }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exchange => "exchange",
            Self::Queue => "queue",
        })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name, fault } = self;
        let said = |value: &Option<String>| match value {
            Some(value) => format!("`{value}`"),
            None => "absent".to_owned(),
        };
        match fault {
            Fault::Missing => write!(f, "{kind} `{name}` is missing; run `verbatim setup`"),
            Fault::Argument { name: argument, is, should_be } => write!(
                f,
                "{kind} `{name}`: `{argument}` is {}, but must be {}; arguments cannot be changed \
                 in place: empty and delete the {kind}, then run `verbatim setup`",
                said(is),
                said(should_be),
            ),
            Fault::Refused(text) => write!(f, "{kind} `{name}`: RabbitMQ says: {text}"),
        }
    }
}

/// Takes apart texts such as `PRECONDITION_FAILED - inequivalent arg 'x-overflow' for queue 'q' in
/// vhost '/': received the value 'reject-publish' of type 'longstr' but current is none`.
fn argument(text: &str) -> Option<Fault> {
    let (_, rest) = text.split_once("inequivalent arg '")?;
    let (name, rest) = rest.split_once('\'')?;
    let (_, rest) = rest.split_once(": received ")?;
    let (should_be, is) = rest.split_once(" but current is ")?;
    Some(Fault::Argument { name: name.to_owned(), is: value(is), should_be: value(should_be) })
}

/// `none`, `'text'` or `the value 'text' of type 'longstr'`.
fn value(text: &str) -> Option<String> {
    if text == "none" {
        return None;
    }
    let text = text.strip_prefix("the value ").unwrap_or(text);
    let text = text.split_once(" of type '").map_or(text, |(value, _)| value);
    Some(text.trim_matches('\'').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_becomes_a_sentence_that_says_what_to_do() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-dead-letter-exchange' for queue 'q' \
                    in vhost '/': received the value '' of type 'longstr' but current is none";
        let difference = Difference::from_reply(Kind::Queue, "q", 406, text);
        assert_eq!(
            difference.to_string(),
            "queue `q`: `x-dead-letter-exchange` is absent, but must be ``; arguments cannot be \
             changed in place: empty and delete the queue, then run `verbatim setup`"
        );
    }

    #[test]
    fn values_are_read_in_each_of_their_forms() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'e' in vhost '/': \
                    received 'topic' but current is 'fanout'";
        assert_eq!(
            Difference::from_reply(Kind::Exchange, "e", 406, text).fault,
            Fault::Argument {
                name: "type".to_owned(),
                is: Some("fanout".to_owned()),
                should_be: Some("topic".to_owned()),
            }
        );
    }

    #[test]
    fn what_cannot_be_read_is_passed_on() {
        let difference = Difference::from_reply(Kind::Queue, "q", 403, "ACCESS_REFUSED - no");
        assert_eq!(difference.to_string(), "queue `q`: RabbitMQ says: ACCESS_REFUSED - no");
        assert_eq!(Difference::from_reply(Kind::Queue, "q", 404, "x").fault, Fault::Missing);
    }
}
