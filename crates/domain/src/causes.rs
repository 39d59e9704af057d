//! An error and its causes in one line, for log lines.

use std::error::Error;

/// The error's text and the texts of its causes, outermost first. A cause whose text the error
/// already contains is left out. No error of this project contains credentials, nor do its causes.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut outer = text.clone();
    let mut cause = error.source();
    while let Some(error) = cause {
        let cause_text = error.to_string();
        if !outer.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        outer = cause_text;
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
    fn every_cause_is_printed_once() {
        let text = with_causes(&Repeats(Inside(std::fmt::Error)));
        assert_eq!(text, format!("outside: inside: {}", std::fmt::Error));
    }
}
