//! Checks the words by which searches find archived conversations.

use conversation::words_differing;
use database::{Repair, WordsDifference};
use domain::ids::ConversationKey;

use super::finding::{Finding, Kind};
use super::rows::{NUMBERS, in_parts};
use super::run::{Incomplete, Run};

/// Conversations whose texts are read together, as they are for writing: each read sorts a page of the messages of each.
const CONVERSATIONS: usize = 20;

impl Run<'_> {
    /// The words of every archived conversation in scope, unless they are due.
    pub(super) async fn words(&mut self) -> Result<(), Incomplete> {
        let database = &self.verifier.database;
        let check = async |part: &[ConversationKey]| words_differing(database, part).await;
        let mut after = None;
        loop {
            let (chosen, last) = self.conversations_after(after.as_ref()).await?;
            for part in chosen.chunks(CONVERSATIONS) {
                for (key, difference) in in_parts(part, &check).await? {
                    let finding = Finding::of(Kind::WordsDiffer, &key, describe(difference));
                    self.found(finding, Some(Repair::Words(key))).await;
                }
            }
            self.checked(chosen.len());
            match last {
                None => return Ok(()),
                last => after = last,
            }
        }
    }

    /// Words without the conversation that they belong to.
    pub(super) async fn orphaned_words(&mut self) -> Result<(), Incomplete> {
        let database = &self.verifier.database;
        let mut after = None;
        loop {
            let (orphans, last) =
                database.orphaned_words(self.scope, after.as_ref(), NUMBERS).await?;
            for orphan in orphans {
                let detail = format!(
                    "blocks: {}; the conversation does not exist, or was never archived",
                    orphan.blocks
                );
                let finding = Finding {
                    tenant_id: Some(orphan.tenant_id.clone()),
                    conversation_id: Some(orphan.conversation_id.clone()),
                    ..Finding::about(Kind::WordsOrphaned, None, detail)
                };
                self.found(finding, Some(Repair::DropWords(orphan))).await;
            }
            match last {
                None => return Ok(()),
                last => after = last,
            }
        }
    }
}

fn describe(WordsDifference { missing, different, surplus }: WordsDifference) -> String {
    let parts = [(missing, "missing"), (different, "different"), (surplus, "surplus")];
    let parts = parts.iter().filter(|(blocks, _)| *blocks > 0);
    let parts: Vec<_> = parts.map(|(blocks, what)| format!("{blocks} {what}")).collect();
    format!("blocks: {}", parts.join(", "))
}
