//! An error and its causes in one line, for log lines that must be readable alone.

use std::error::Error;

/// The error's text and those of its causes, from the outside in. A cause that its error has
/// repeated already is not said twice. No error of ours names credentials, nor do its causes.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut outer = text.clone();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !outer.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        outer = said;
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outside: inside")]
    struct Repeats(#[source] Inside);

    #[derive(Debug, thiserror::Error)]
    #[error("inside")]
    struct Inside(#[source] std::fmt::Error);

    #[test]
    fn every_cause_is_said_once() {
        let text = with_causes(&Repeats(Inside(std::fmt::Error)));
        assert_eq!(text, format!("outside: inside: {}", std::fmt::Error));
    }
}
