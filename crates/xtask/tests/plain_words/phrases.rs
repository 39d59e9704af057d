//! The list, and how a text is searched: as a sequence of lower-case words, so that neither case nor a
//! line break nor an underscore hides a phrase.

use std::collections::HashMap;
use std::fmt;

use crate::sources::Text;

/// The banned phrases.
pub(crate) struct Banned {
    /// By their first word.
    by_first: HashMap<String, Vec<Phrase>>,
}

struct Phrase {
    words: Vec<String>,
    /// A word that makes it legal where it stands before.
    unless_after: Option<String>,
    instead: String,
}

/// A banned phrase in a text.
pub(crate) struct Found {
    pub(crate) place: String,
    line: usize,
    pub(crate) phrase: String,
    instead: String,
    around: String,
}

/// A word of a text, and the line on which it stands.
struct Word {
    text: String,
    line: usize,
}

impl Banned {
    /// Reads the list.
    pub(crate) fn read() -> Self {
        let mut by_first: HashMap<String, Vec<Phrase>> = HashMap::new();
        for line in include_str!("banned.txt").lines() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (phrase, instead) = line.split_once(" | ").unwrap();
            let (unless_after, phrase) = match phrase.strip_prefix('!') {
                Some(rest) => {
                    let (before, phrase) = rest.split_once(' ').unwrap();
                    (Some(before.to_owned()), phrase)
                }
                None => (None, phrase),
            };
            let words: Vec<_> = phrase.split(' ').map(str::to_owned).collect();
            let phrase = Phrase { unless_after, instead: instead.to_owned(), words };
            by_first.entry(phrase.words[0].clone()).or_default().push(phrase);
        }
        Self { by_first }
    }

    /// Every banned phrase in the texts.
    pub(crate) fn search(&self, texts: &[Text]) -> Vec<Found> {
        let mut found = Vec::new();
        for text in texts {
            let words = words(text);
            for at in 0..words.len() {
                let phrases = self.by_first.get(&words[at].text).into_iter().flatten();
                // The longest: `told why` is not `told`.
                let longest =
                    phrases.filter(|it| it.stands_at(&words, at)).max_by_key(|it| it.words.len());
                found.extend(longest.map(|phrase| Found {
                    place: text.place.clone(),
                    line: words[at].line,
                    phrase: phrase.words.join(" "),
                    instead: phrase.instead.clone(),
                    around: around(&words, at),
                }));
            }
        }
        found
    }
}

impl Phrase {
    fn stands_at(&self, words: &[Word], at: usize) -> bool {
        let here = words[at..].iter().map(|word| &word.text).take(self.words.len());
        let allowed = self.unless_after.as_ref().is_some_and(|before| {
            at.checked_sub(1).is_some_and(|index| words[index].text == *before)
        });
        here.eq(&self.words) && !allowed
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, line, phrase, instead, around } = self;
        write!(f, "{place}:{line}: `{phrase}` in \"{around}\"; say: {instead}")
    }
}

fn around(words: &[Word], at: usize) -> String {
    let near = &words[at.saturating_sub(4)..words.len().min(at + 6)];
    near.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ")
}

/// Lower-case words: letters and digits, with a border also where CamelCase has one.
fn words(text: &Text) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let (mut line, mut last) = (text.first_line, ' ');
    for c in text.text.chars() {
        if c.is_alphanumeric() {
            let begins = !last.is_alphanumeric() || (last.is_lowercase() && c.is_uppercase());
            if begins {
                words.push(Word { text: String::new(), line });
            }
            if let Some(word) = words.last_mut() {
                word.text.extend(c.to_lowercase());
            }
        } else if c == '\n' {
            line += 1;
        }
        last = c;
    }
    words
}
