//! The differences between RabbitMQ's topology and the expected one, with the remedy.
//!
//! They are parsed from the text of RabbitMQ's 406 reply, because AMQP has no request for a queue's
//! arguments.

use std::fmt;

use crate::connection::NOT_FOUND;

/// The kind of object that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An exchange.
    Exchange,
    /// A queue.
    Queue,
}

/// An exchange or queue that differs from the expected topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Exchange or queue.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// How it differs.
    pub fault: Fault,
}

/// How an exchange or queue differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It does not exist.
    Missing,
    /// It was declared with another argument.
    Argument {
        /// The argument's name.
        name: String,
        /// Its value; `None` if it was not given.
        is: Option<String>,
        /// The expected value; `None` if it must not be given.
        should_be: Option<String>,
    },
    /// RabbitMQ refused the declaration with this text, which names no argument.
    Refused(String),
}

impl Difference {
    /// Parses RabbitMQ's reply to a declaration: its code and text.
    pub(crate) fn from_reply(kind: Kind, name: &str, code: u16, text: &str) -> Self {
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
        let quoted = |value: &Option<String>| match value {
            Some(value) => format!("`{value}`"),
            None => "absent".to_owned(),
        };
        match fault {
            Fault::Missing => write!(f, "{kind} `{name}` is missing; run `verbatim setup`"),
            Fault::Argument { name: argument, is, should_be } => write!(
                f,
                "{kind} `{name}`: `{argument}` is {}, but must be {}; arguments cannot be changed \
                 in place: empty and delete the {kind}, then run `verbatim setup`",
                quoted(is),
                quoted(should_be),
            ),
            Fault::Refused(text) => write!(f, "{kind} `{name}`: RabbitMQ replied: {text}"),
        }
    }
}

/// Parses texts such as `PRECONDITION_FAILED - inequivalent arg 'x-overflow' for queue 'q' in
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
    fn a_difference_names_the_argument_and_the_remedy() {
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
    fn values_are_parsed_in_each_of_their_forms() {
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
    fn an_unknown_reply_is_reported_unchanged() {
        let difference = Difference::from_reply(Kind::Queue, "q", 403, "ACCESS_REFUSED - no");
        assert_eq!(difference.to_string(), "queue `q`: RabbitMQ replied: ACCESS_REFUSED - no");
        assert_eq!(Difference::from_reply(Kind::Queue, "q", 404, "x").fault, Fault::Missing);
    }
}
