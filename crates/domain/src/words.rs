//! The words of a text: what a search finds, and what it looks for. Both sides use this file, so they agree.
//!
//! The language of a text is unknown, so nothing is stemmed, no word is left out for being frequent, and accents stay. A
//! word is a run of alphanumeric characters, in lower case and in Unicode's form NFKC, so that `é` is one word however it
//! is encoded. Scripts without spaces between words (Chinese, Japanese, Thai and their neighbours) have one word for each
//! character.
//!
//! Words have alphanumeric characters and combining marks alone. What else is stored beside them, such as the mark of a
//! tenant, has a character of another kind, and no text can contain it.

use std::collections::BTreeSet;

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;

/// The longest word, in bytes of UTF-8. Longer ones, such as encoded files, are left out.
pub const MAX_WORD_BYTES: usize = 256;

/// The most different words of a search.
pub const MAX_SEARCH_WORDS: usize = 16;

/// The longest text of a search, in bytes.
pub const MAX_SEARCH_BYTES: usize = 1024;

/// Calls `found` with each word of the text, as often as it occurs.
pub fn for_each_word(text: &str, mut found: impl FnMut(&str)) {
    for_each(text, &mut |word| {
        if let Ok(word) = word {
            found(word);
        }
    });
}

/// A word that has more than [`MAX_WORD_BYTES`].
struct TooLong;

fn for_each(text: &str, found: &mut impl FnMut(Result<&str, TooLong>)) {
    let mut word = Word::default();
    if text.is_ascii() {
        text.chars().for_each(|char| word.push(char.to_ascii_lowercase(), found));
    } else {
        text.nfkc().flat_map(char::to_lowercase).for_each(|char| word.push(char, found));
    }
    word.end(found);
}

/// A word that is being read.
#[derive(Default)]
struct Word {
    text: String,
    is_too_long: bool,
    /// It is a character that is a word by itself.
    is_whole: bool,
}

impl Word {
    fn push(&mut self, char: char, found: &mut impl FnMut(Result<&str, TooLong>)) {
        let is_mark = is_combining_mark(char) && !self.text.is_empty();
        if !is_mark {
            let is_whole = is_a_word_alone(char);
            if !char.is_alphanumeric() || is_whole || self.is_whole {
                self.end(found);
            }
            if !char.is_alphanumeric() {
                return;
            }
            self.is_whole = is_whole;
        }
        if self.text.len() + char.len_utf8() > MAX_WORD_BYTES {
            self.is_too_long = true;
        } else {
            self.text.push(char);
        }
    }

    fn end(&mut self, found: &mut impl FnMut(Result<&str, TooLong>)) {
        if self.is_too_long {
            found(Err(TooLong));
        } else if !self.text.is_empty() {
            found(Ok(&self.text));
        }
        self.text.clear();
        (self.is_too_long, self.is_whole) = (false, false);
    }
}

/// Whether the character belongs to a script that is written without spaces between words.
fn is_a_word_alone(char: char) -> bool {
    matches!(char,
        '\u{0e00}'..='\u{0eff}'       // Thai, Lao
        | '\u{1000}'..='\u{109f}'     // Myanmar
        | '\u{1780}'..='\u{17ff}'     // Khmer
        | '\u{3005}'..='\u{3007}'     // ideographic marks
        | '\u{3040}'..='\u{30ff}'     // Hiragana, Katakana
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}

/// What a search looks for: at least one word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchWords(BTreeSet<String>);

/// Why a text is no search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSearch {
    /// It is too long.
    #[error("it has more than {MAX_SEARCH_BYTES} bytes")]
    TooLong,
    /// It has none.
    #[error("it has no word, only punctuation or white space")]
    NoWord,
    /// One is longer than any that is stored.
    #[error("it has a word of more than {MAX_WORD_BYTES} bytes; such words are not found")]
    TooLongWord,
    /// It has too many.
    #[error("it has more than {MAX_SEARCH_WORDS} different words; search for fewer")]
    TooMany,
}

impl SearchWords {
    /// The words of the text of a search.
    ///
    /// # Errors
    /// It has none, too many, or one that is too long.
    pub fn parse(text: &str) -> Result<Self, InvalidSearch> {
        if text.len() > MAX_SEARCH_BYTES {
            return Err(InvalidSearch::TooLong);
        }
        let (mut words, mut is_complete) = (BTreeSet::new(), true);
        for_each(text, &mut |word| match word {
            Ok(word) => drop(words.insert(word.to_owned())),
            Err(TooLong) => is_complete = false,
        });
        match words.len() {
            _ if !is_complete => Err(InvalidSearch::TooLongWord),
            0 => Err(InvalidSearch::NoWord),
            1..=MAX_SEARCH_WORDS => Ok(Self(words)),
            _ => Err(InvalidSearch::TooMany),
        }
    }

    /// The words, each once.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        for_each_word(text, |word| words.push(word.to_owned()));
        words
    }

    #[test]
    fn words_are_runs_of_alphanumeric_characters_in_lower_case() {
        for (text, expected) in [
            ("Hello, WORLD!", "hello world"),
            ("order-123_x a/b c@d.example", "order 123 x a b c d example"),
            ("don't", "don t"),
            ("Élan cafe\u{301} naïve ﬁn Ｗｉｄｅ", "élan café naïve fin wide"),
            ("ΣΊΣΥΦΟΣ", "σίσυφοσ"),
            ("İstanbul", "i\u{307}stanbul"),
            ("हिन्दी में", "हिन्दी में"),
            ("東京でa1京 한국어", "東 京 で a1 京 한국어"),
            ("สวัสดี", "ส วั ส ดี"),
            ("\u{301} \0\u{1f600} …", ""),
        ] {
            assert_eq!(words(text).join(" "), expected, "{text:?}");
        }
    }

    #[test]
    fn a_word_that_is_too_long_is_left_out_and_no_search() {
        let long = "é".repeat(MAX_WORD_BYTES / 2 + 1);
        assert_eq!(words(&format!("a {long} b {}", &long[2..])), ["a", "b", &long[2..]]);
        let no_search = |text: &str| SearchWords::parse(text).unwrap_err();
        assert_eq!(no_search(&format!("a {long}")), InvalidSearch::TooLongWord);
        assert_eq!(no_search(" .-/'\"\\"), InvalidSearch::NoWord);
        assert_eq!(no_search(&"a ".repeat(MAX_SEARCH_BYTES)), InvalidSearch::TooLong);
        let numbers = |many: usize| (0..many).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(no_search(&numbers(MAX_SEARCH_WORDS + 1)), InvalidSearch::TooMany);
        let most = SearchWords::parse(&format!("{0} {0}", numbers(MAX_SEARCH_WORDS))).unwrap();
        assert_eq!(most.iter().count(), MAX_SEARCH_WORDS);
    }

    proptest! {
        /// So no text has the mark of a tenant, and none breaks a list that is joined by spaces.
        #[test]
        fn a_word_has_alphanumeric_characters_and_marks_alone(text in "\\PC*|[a-z/ '\\\\:2\u{0}\u{301}Éﬁ東-]*") {
            for word in words(&text) {
                prop_assert!(!word.is_empty() && word.len() <= MAX_WORD_BYTES);
                prop_assert!(word.chars().all(|c| c.is_alphanumeric() || is_combining_mark(c)), "{word:?}");
            }
        }
    }
}
