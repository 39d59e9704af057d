//! The workers of a run and their servers.

use broker::topology::WorkQueue;

use super::load::{DONE_LIMIT, LoadRecord};
use super::replicas::Replicas;
use crate::Scenario;

/// The workers and their servers.
pub(super) struct Environment {
    pub(super) replicas: Replicas,
    /// Declared last, so that it is dropped last: it holds the directory of the replicas' logs.
    pub(super) scenario: Scenario,
}

impl Environment {
    /// Waits until all queues are empty and every closed conversation is archived, for at most
    /// [`DONE_LIMIT`]. The report lists what is unfinished then.
    pub(super) async fn wait_until_done(&self, record: &LoadRecord) {
        let done = testkit::wait::until("all work to be done", DONE_LIMIT, async || {
            let unfinished = self.unfinished(record).await;
            if unfinished.is_empty() { Ok(()) } else { Err(unfinished.join(", ")) }
        });
        done.await.ok();
    }

    /// What differs from the state after all work is done; empty when nothing does.
    pub(super) async fn unfinished(&self, record: &LoadRecord) -> Vec<String> {
        let mut unfinished = Vec::new();
        let queued = self.scenario.queued().await;
        // Refresh triggers of the statistics may stay: PostgreSQL records which rows are stale.
        let triggers = WorkQueue::Statistics.name();
        for (queue, ready) in queued.into_iter().filter(|(queue, _)| *queue != triggers) {
            unfinished.push(format!("{ready} ready in {queue}"));
        }
        // A message without an identity may be stored twice. Messages of lists say the same.
        let counts = "SELECT (SELECT count(DISTINCT (conversation_id, left(content, 64),
                                            CASE WHEN content = 'yes' THEN id END)) FROM messages)
            || ' ' || (SELECT count(DISTINCT (conversation_id, metadata ->> 'marker')) FROM session_events)
            || ' ' || (SELECT count(*) FROM conversations WHERE status = 'archived')
            || ' ' || (SELECT count(*) FROM conversations c
                       LEFT JOIN conversation_stats s
                         ON (s.tenant_id, s.conversation_id) = (c.tenant_id, c.id)
                       WHERE c.status = 'archived'
                         AND s.message_count IS DISTINCT FROM c.message_count)";
        let counts = self.scenario.sql(counts).await;
        let published = &record.published;
        let wanted = format!("{} {} {} 0", published.kept(), published.events(), record.closed);
        if counts != wanted {
            let what = "messages, session events, archived conversations, wrong statistics";
            unfinished.push(format!("{what}: {counts} instead of {wanted}"));
        }
        unfinished
    }

    /// What is wrong with the audit log: findings of `verbatim audit verify`, and pages of conversations that were
    /// answered without an entry.
    pub(super) async fn audit_log(&self, record: &LoadRecord) -> Vec<String> {
        let mut wrong = Vec::new();
        let verified = self.scenario.verbatim(&["audit", "verify"]).await;
        if !verified.status.success() {
            let [out, error] =
                [&verified.stdout, &verified.stderr].map(|it| String::from_utf8_lossy(it));
            wrong.push(format!("verbatim audit verify: {}\n{out}{error}", verified.status));
        }
        let reads = "SELECT count(*) FROM audit_log WHERE action = 'conversation.read'";
        let entries: usize = self.scenario.sql(reads).await.parse().expect("a count");
        let pages = record.api.pages;
        if entries < pages {
            wrong.push(format!("{entries} entries of {pages} pages that were answered"));
        }
        wrong
    }
}
