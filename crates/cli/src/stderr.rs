//! Error messages on standard error.

use crate::exit::Failure;
use crate::output;

/// Prints on standard error why a command could not do its work.
pub(crate) fn print_error(failure: &Failure) {
    eprint!("{}", error_text(failure));
}

/// The message may quote a sender or a server, so its control characters are made visible.
fn error_text(failure: &Failure) -> String {
    let mut out = String::new();
    for (n, line) in failure.to_string().lines().enumerate() {
        let indent = if n == 0 { "" } else { "  " };
        out.push_str(&format!("verbatim: {indent}{}\n", output::one_line(line)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_in_a_quoted_message_do_not_reach_the_terminal() {
        let failure = Failure::problem("refused: `\u{1b}[2Jbot`", "see \u{9b}below");
        let expected = "verbatim: refused: `␛[2Jbot`\nverbatim:   see \u{fffd}below\n";
        assert_eq!(error_text(&failure), expected);
    }
}
