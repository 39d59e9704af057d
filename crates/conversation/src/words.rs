//! Writing the words of archived conversations, by which searches find them.
//!
//! Which words are due is stored in PostgreSQL, by the transaction that archives. So it does not matter which process runs
//! this, or whether an earlier run was cut off. The steps are short: a read of at most 256 KiB of text, or of one message;
//! a write of at most 8 192 words, or of one block. A long conversation takes many of them, and no lock between two.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use database::{
    Database, TextOfMessage, TextPosition, WordBlock, WordsDifference, WordsDone, WordsDue,
};
use domain::causes::with_causes;
use domain::failure::Unavailable;
use domain::failure_policy::SLOW_LIMITS;
use domain::ids::ConversationKey;
use domain::words::for_each_word;
use failpoints::Step;
use metrics::{Counter, Metrics};

use crate::background::Background;
use crate::steps::{Fault, StepError, Steps};

/// Conversations that are claimed together.
const BATCH: u32 = 20;

/// How long no other process writes what was claimed. Each write renews it. If it ends early, two processes write the same.
const LEASE: Duration = Duration::from_secs(60);

/// Messages of one read.
const MESSAGES: u32 = 200;

/// The most words of a block, in bytes, each as often as it occurs; and the most text of one read.
const BLOCK_BYTES: usize = 256 * 1024;

/// The most different words of a block, and of one write of several blocks. Each is an entry of the index: together they
/// take PostgreSQL some 40 ms, or a second where it reads a page for each.
const BLOCK_WORDS: usize = 8_192;

/// Writes words. Clones share their connections.
#[derive(Clone)]
pub struct WordWriter {
    steps: Steps,
    metrics: Metrics,
}

impl WordWriter {
    /// Writes in this database, in the background.
    #[must_use]
    pub fn new(database: &Database, metrics: Metrics, background: Background) -> Self {
        Self { steps: Steps::in_turn(database, metrics.clone(), background), metrics }
    }

    /// Writes the words of at most 20 conversations; returns how many there were. What could not be written is tried again
    /// when its lease ends.
    ///
    /// # Errors
    /// PostgreSQL failed. What was written stays.
    pub async fn write(&self) -> Result<usize, Unavailable> {
        let steps = &self.steps;
        let due = steps.step(|| steps.database.claim_words(BATCH, LEASE)).await?;
        if due.is_empty() {
            return Ok(0);
        }
        failpoints::reached(Step::WordsClaimed);
        let written = steps.in_parts(&due, |part| self.write_part(steps, part)).await?;
        for (due, error) in written.failed {
            self.write_apart(due, error).await;
        }
        Ok(due.len())
    }

    /// Writes the words of a conversation that could not be written with others, within a longer time limit.
    async fn write_apart(&self, due: &WordsDue, mut error: StepError) {
        if error.fault() == Fault::TooSlow {
            let steps = self.steps.apart(SLOW_LIMITS[0]);
            match self.write_part(&steps, std::slice::from_ref(due)).await {
                Ok(_) => return,
                Err(again) => error = again,
            }
        }
        tracing::warn!(
            conversation = %due.key,
            error = with_causes(&error),
            "words of a conversation not written, so searches do not find it; they are tried again in {LEASE:?}. If that \
             repeats, report it as a bug"
        );
    }

    /// Writes the words of these conversations, block by block.
    async fn write_part(&self, steps: &Steps, part: &[WordsDue]) -> Result<Vec<()>, StepError> {
        let mut reading = Reading::of(part);
        while let Some((unread, after)) = reading.unread() {
            let texts =
                steps.step(|| steps.database.texts(unread, after, MESSAGES, BLOCK_BYTES)).await?;
            reading.add(texts);
            while let Some((blocks, done)) = reading.take() {
                steps.step(|| steps.database.write_words(part, &blocks, &done, LEASE)).await?;
                self.metrics.add(Counter::WordsWritten, done.len() as u64);
            }
        }
        Ok(Vec::new())
    }
}

/// Those of these conversations whose stored words are not those of their messages, with what differs. Only archived ones
/// are compared, and only where the words are not due.
///
/// # Errors
/// PostgreSQL failed.
pub async fn words_differing(
    database: &Database,
    keys: &[ConversationKey],
) -> Result<Vec<(ConversationKey, WordsDifference)>, database::Error> {
    let written = database.words_written(keys).await?;
    let mut found: BTreeMap<usize, WordsDifference> = BTreeMap::new();
    let mut reading = Reading::of(&written);
    while let Some((unread, after)) = reading.unread() {
        let texts = database.texts(unread, after, MESSAGES, BLOCK_BYTES).await?;
        reading.add(texts);
        while let Some((blocks, done)) = reading.take() {
            for (n, more) in database.words_differing(&written, &blocks, &done).await? {
                *found.entry(n).or_default() += more;
            }
        }
    }
    let of = |(n, difference): (usize, _)| Some((written.get(n)?.key.clone(), difference));
    Ok(found.into_iter().filter_map(of).collect())
}

/// The texts of several conversations, read one page after the other, and the blocks that they make.
struct Reading<'a> {
    conversations: &'a [WordsDue],
    /// The place of the last text that was read.
    after: Option<TextPosition>,
    is_over: bool,
    blocks: Blocks,
}

impl<'a> Reading<'a> {
    fn of(conversations: &'a [WordsDue]) -> Self {
        let is_over = conversations.is_empty();
        Self { conversations, after: None, is_over, blocks: Blocks::default() }
    }

    /// The conversations that are to be read, and the place in the first one after which to begin; `None` after the last
    /// text.
    fn unread(&self) -> Option<(&'a [WordsDue], Option<&TextPosition>)> {
        let unread = self.conversations.get(self.blocks.conversation..).unwrap_or_default();
        (!self.is_over).then_some((unread, self.after.as_ref()))
    }

    /// Adds the texts that were read of [`Self::unread`], and whether there may be more.
    fn add(&mut self, (texts, more): (Vec<TextOfMessage>, bool)) {
        let first = self.blocks.conversation;
        for text in texts {
            self.blocks.go_on_to(first + text.conversation);
            self.blocks.add(&text.text);
            self.after = Some(text.at);
        }
        if !more {
            self.blocks.go_on_to(self.conversations.len());
            self.is_over = true;
        }
    }

    /// Blocks for one write: [`Blocks::take`].
    fn take(&mut self) -> Option<(Vec<WordBlock>, Vec<WordsDone>)> {
        self.blocks.take(self.is_over)
    }
}

/// The words of several conversations, one after the other, in blocks.
#[derive(Default)]
struct Blocks {
    /// The conversation whose words are added.
    conversation: usize,
    /// The number of its next block.
    number: i32,
    words: BTreeSet<String>,
    bytes: usize,
    /// Full blocks, each with its number of words.
    full: Vec<(WordBlock, usize)>,
    done: Vec<WordsDone>,
}

impl Blocks {
    /// Ends the conversations before this one.
    fn go_on_to(&mut self, conversation: usize) {
        while self.conversation < conversation {
            self.end_block();
            self.done.push(WordsDone { conversation: self.conversation, blocks: self.number });
            self.conversation += 1;
            self.number = 0;
        }
    }

    fn add(&mut self, text: &str) {
        for_each_word(text, |word| {
            self.bytes += word.len() + 1;
            if !self.words.contains(word) {
                self.words.insert(word.to_owned());
            }
            if self.bytes >= BLOCK_BYTES || self.words.len() >= BLOCK_WORDS {
                self.end_block();
            }
        });
    }

    fn end_block(&mut self) {
        let words = std::mem::take(&mut self.words);
        self.bytes = 0;
        if words.is_empty() {
            return;
        }
        let many = words.len();
        let words = words.into_iter().collect::<Vec<_>>().join(" ");
        let block = WordBlock { conversation: self.conversation, number: self.number, words };
        self.full.push((block, many));
        self.number += 1;
    }

    /// Blocks for one write, if there are enough; or all that is left, if `all`. With them the conversations that are done.
    fn take(&mut self, all: bool) -> Option<(Vec<WordBlock>, Vec<WordsDone>)> {
        let mut words = 0;
        let fits = self.full.iter().take_while(|(_, many)| {
            words += many;
            words <= BLOCK_WORDS
        });
        let many = fits.count();
        let is_everything = many == self.full.len();
        if is_everything && !all || is_everything && self.full.is_empty() && self.done.is_empty() {
            return None;
        }
        let blocks: Vec<WordBlock> = self.full.drain(..many).map(|(block, _)| block).collect();
        // A conversation is done when its last block is written.
        let open = self.full.first().map_or(self.conversation, |(block, _)| block.conversation);
        let done = self.done.partition_point(|it| it.conversation < open);
        Some((blocks, self.done.drain(..done).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs of a conversation and the number of a block, and of a conversation and how many it has.
    type Written = (Vec<(usize, i32)>, Vec<(usize, i32)>);

    fn taken(blocks: &mut Blocks, all: bool) -> Vec<Written> {
        let mut taken = Vec::new();
        while let Some((full, done)) = blocks.take(all) {
            assert!(!full.is_empty() || !done.is_empty(), "progress");
            taken.push((
                full.iter().map(|it| (it.conversation, it.number)).collect(),
                done.iter().map(|it| (it.conversation, it.blocks)).collect(),
            ));
        }
        taken
    }

    #[test]
    fn small_conversations_are_written_together_and_one_without_words_is_done() {
        let mut blocks = Blocks::default();
        blocks.add("Hello hello");
        blocks.go_on_to(2);
        blocks.add("world");
        assert_eq!(taken(&mut blocks, false), []);
        blocks.go_on_to(3);
        let all = (vec![(0, 0), (2, 0)], vec![(0, 1), (1, 0), (2, 1)]);
        assert_eq!(taken(&mut blocks, true), [all]);
        assert_eq!(taken(&mut blocks, true), []);
    }

    #[test]
    fn a_block_ends_at_its_limit_of_words_or_of_bytes() {
        let mut blocks = Blocks::default();
        blocks.add(&(0..BLOCK_WORDS + 1).map(|n| format!("{n} ")).collect::<String>());
        assert_eq!(blocks.full[0].1, BLOCK_WORDS);
        blocks.go_on_to(1);
        blocks.add(&"word ".repeat(BLOCK_BYTES / 5 + 2));
        blocks.add("more");
        blocks.go_on_to(2);
        assert_eq!(blocks.full.iter().map(|it| it.1).collect::<Vec<_>>(), [BLOCK_WORDS, 1, 1, 2]);
        // The full block alone; with the last one of a conversation that it is done.
        let written = taken(&mut blocks, true);
        assert_eq!(written[0], (vec![(0, 0)], vec![]));
        assert_eq!(written[1], (vec![(0, 1), (1, 0), (1, 1)], vec![(0, 2), (1, 2)]));
    }
}
