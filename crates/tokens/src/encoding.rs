//! The encodings, and counting with them.

use bpe_openai::Tokenizer;

/// A byte-pair encoding that this crate can count with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encoding {
    /// `o200k_base`, of gpt-4o and later.
    O200k,
    /// `cl100k_base`, of gpt-4 and gpt-3.5.
    Cl100k,
}

/// Whether a count is exact for the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exactness {
    /// The model uses this encoding.
    Exact,
    /// The model uses another encoding; this is the closest available one.
    Estimate,
}

impl Encoding {
    /// Every encoding.
    pub const ALL: [Self; 2] = [Self::O200k, Self::Cl100k];

    fn tokenizer(self) -> &'static Tokenizer {
        match self {
            Self::O200k => bpe_openai::o200k_base(),
            Self::Cl100k => bpe_openai::cl100k_base(),
        }
    }
}

/// The number of tokens of a text. The time is proportional to the length, for any content: about
/// 50 ms for 1 MB.
#[must_use]
pub fn count(encoding: Encoding, text: &str) -> usize {
    encoding.tokenizer().count(text)
}

/// Loads all encodings (about 100 ms together); otherwise the first count loads them. Blocks: call
/// it at the start of a process.
pub fn warm() {
    for encoding in Encoding::ALL {
        encoding.tokenizer();
    }
}

#[cfg(test)]
mod tests {
    use super::Encoding::{Cl100k, O200k};
    use super::*;

    /// The counts of tiktoken. The first four are printed in OpenAI's cookbook,
    /// "How to count tokens with tiktoken".
    #[test]
    fn known_texts_have_their_known_counts() {
        for (text, cl100k, o200k) in [
            ("antidisestablishmentarianism", 6, 6),
            ("2 + 2 = 4", 7, 7),
            ("お誕生日おめでとう", 9, 8),
            ("tiktoken is great!", 6, 6),
            ("hello world", 2, 2),
            ("", 0, 0),
        ] {
            assert_eq!(count(Cl100k, text), cl100k, "{text:?}");
            assert_eq!(count(O200k, text), o200k, "{text:?}");
        }
    }

    #[test]
    fn what_looks_like_a_special_token_is_plain_text() {
        for encoding in Encoding::ALL {
            for text in ["<|endoftext|>", "<|im_start|>", "<|fim_prefix|>", "<|endofprompt|>"] {
                assert!(count(encoding, text) > 1, "{encoding:?} {text}");
            }
            // The tokenizer splits it into `<`, `|`, …; it is not one token.
            assert_eq!(count(encoding, "<|endoftext|>"), 7, "{encoding:?}");
        }
    }

    #[test]
    fn warming_changes_no_count() {
        warm();
        assert_eq!(count(O200k, "hello world"), 2);
        warm();
        assert_eq!(count(O200k, "hello world"), 2);
    }
}
