//! Long and unusual texts are counted correctly and in time: a tokenizer whose time is quadratic in
//! a run of one character would take hours for these.

use tokens::{Encoding, count};

/// The default limit for the size of a body.
const MIB: usize = 1024 * 1024;

/// Pseudorandom texts, the same in every run: a linear congruential generator (Knuth's constants
/// for 64 bits) picks from `alphabet`.
fn random(bytes: usize, alphabet: &[char]) -> String {
    let mut state = 0x5eed_u64;
    let mut text = String::with_capacity(bytes + 4);
    while text.len() < bytes {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pick = (state >> 33) as usize % alphabet.len();
        text.push(alphabet[pick]);
    }
    text
}

#[test]
fn a_run_of_one_character_counts_as_its_parts_do() {
    // Each of these characters merges into tokens of a power of two of them, so a run twice as long
    // has twice the tokens, to within the two at its ends.
    for encoding in Encoding::ALL {
        for character in ["a", " ", "中"] {
            let whole = count(encoding, &character.repeat(MIB / character.len()));
            let half = count(encoding, &character.repeat(MIB / character.len() / 2));
            assert!(whole > 0 && half > 0, "{encoding:?} {character:?}");
            assert!(whole.abs_diff(2 * half) <= 4, "{encoding:?} {character:?}: {whole}, {half}");
        }
        // Digits are split by three before anything is merged, so their count is known.
        assert_eq!(count(encoding, &"7".repeat(MIB)), MIB.div_ceil(3), "{encoding:?}");
    }
}

#[test]
fn random_text_has_at_most_a_token_for_each_byte_and_at_least_one_for_each_word() {
    let alphabetic: Vec<char> = ('a'..='z').chain('A'..='Z').collect();
    let everything: Vec<char> = (' '..='~')
        .chain('à'..='ÿ')
        .chain('Ա'..='Ֆ')
        .chain('一'..='丏')
        .chain(['😀', '\n'])
        .collect();
    for encoding in Encoding::ALL {
        for alphabet in [&alphabetic, &everything] {
            let text = random(MIB, alphabet);
            let tokens = count(encoding, &text);
            assert!(tokens <= text.len(), "{encoding:?}: {tokens}");
            assert!(tokens >= text.split_whitespace().count(), "{encoding:?}: {tokens}");
        }
    }
}

#[test]
fn the_count_of_texts_joined_by_line_breaks_is_the_sum_of_their_counts() {
    // No token spans a line break between words, so the counts add up. This checks a long text
    // against short ones.
    let line = "The quick brown fox jumps over the lazy dog.\n";
    for encoding in Encoding::ALL {
        let one = count(encoding, line);
        let lines = MIB / line.len();
        assert_eq!(count(encoding, &line.repeat(lines)), one * lines, "{encoding:?}");
    }
}
