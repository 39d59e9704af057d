//! Checks that no entry was changed, removed or moved: recomputes every hash of every chain, and compares the ends of the
//! chains with what the checkpoints recorded.
//!
//! What is not found: whoever owns the tables can compute all hashes again, those of the checkpoints included. Then the
//! hash of a checkpoint differs from that which was logged.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;
use uuid::Uuid;

use super::chain::{CHAINED, ChainedEntry};
use super::checkpoints::{STORED, StoredCheckpoint, hex};
use crate::{Database, Result};

/// Entries or checkpoints that are read at once.
const PAGE: i64 = 2_000;

/// The most findings that are listed; all are counted.
const LISTED: usize = 100;

/// What is wrong with the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum AuditFinding {
    /// The hash of an entry is not that of its content.
    #[error("entry {id} was changed or moved (chain {chain}, number {n})")]
    EntryChanged {
        /// Its chain.
        chain: Uuid,
        /// Its number in the chain.
        n: i64,
        /// Its id.
        id: i64,
    },
    /// Entries of a chain are missing.
    #[error("entries {from} to {to} of chain {chain} were removed")]
    EntriesRemoved {
        /// The chain.
        chain: Uuid,
        /// The number of the first.
        from: i64,
        /// The number of the last.
        to: i64,
    },
    /// An entry is the last of its chain, and has another hash there.
    #[error("the end of chain {chain} was changed (number {n})")]
    EndChanged {
        /// The chain.
        chain: Uuid,
        /// The number of the last entry.
        n: i64,
    },
    /// There are entries of a chain that is not in the list of chains.
    #[error("chain {chain} was removed from the list of chains, or its entries were added")]
    ChainUnknown {
        /// The chain.
        chain: Uuid,
    },
    /// Entries of a chain are there that PostgreSQL never appended to it.
    #[error("entries {from} to {to} of chain {chain} were added")]
    EntriesAdded {
        /// The chain.
        chain: Uuid,
        /// The number of the first.
        from: i64,
        /// The number of the last.
        to: i64,
    },
    /// The list of chains says that a checkpoint recorded an entry, and none did.
    #[error(
        "no checkpoint recorded entry {n} of chain {chain}, as the list of chains says: it was changed, or checkpoints were removed"
    )]
    NeverRecorded {
        /// The chain.
        chain: Uuid,
        /// The number of the entry.
        n: i64,
    },
    /// The hash of a checkpoint is not that of its content.
    #[error("checkpoint {n} was changed or moved")]
    CheckpointChanged {
        /// Its number.
        n: i64,
    },
    /// Checkpoints are missing.
    #[error("checkpoints {from} to {to} were removed")]
    CheckpointsRemoved {
        /// The number of the first.
        from: i64,
        /// The number of the last.
        to: i64,
    },
    /// An entry is not what a checkpoint recorded.
    #[error("entry {n} of chain {chain} is not the one that checkpoint {checkpoint} recorded")]
    NotAsRecorded {
        /// The checkpoint.
        checkpoint: i64,
        /// The chain.
        chain: Uuid,
        /// The number of the entry.
        n: i64,
    },
    /// A checkpoint that was kept outside is not in the database, or has another hash there.
    #[error(
        "checkpoint {n} is not the one that was given: everything up to it may have been changed"
    )]
    NotTheCheckpoint {
        /// Its number.
        n: i64,
    },
}

/// What was checked, and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// Entries that were checked.
    pub entries: u64,
    /// Chains that were checked.
    pub chains: u64,
    /// Checkpoints that were checked.
    pub checkpoints: u64,
    /// Number and hash of the last checkpoint, as `verify` takes them: `N:HASH`.
    pub last_checkpoint: Option<String>,
    /// How many findings there are.
    pub found: u64,
    /// The first of them.
    pub findings: Vec<AuditFinding>,
}

/// The last entry of a chain, as the list of chains has it.
struct End {
    n: i64,
    hash: Vec<u8>,
    /// The number that a checkpoint recorded last.
    checked_n: i64,
}

impl AuditReport {
    fn add(&mut self, finding: AuditFinding) {
        self.found += 1;
        if self.findings.len() < LISTED {
            self.findings.push(finding);
        }
    }
}

impl Database {
    /// Checks the whole audit log. `kept` are checkpoints that were kept outside: number and hash in hexadecimal digits.
    /// Calls `progress` with the number of entries that were checked so far. Entries that are written meanwhile are no
    /// findings.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn verify_audit(
        &self,
        kept: &[(i64, String)],
        mut progress: impl FnMut(u64),
    ) -> Result<AuditReport> {
        let mut report = AuditReport::default();
        // Before the entries: one that is written later is after the end.
        let ends = self.ends().await?;
        report.chains = ends.len() as u64;
        let recorded = self.verify_checkpoints(kept, &mut report).await?;
        for (chain, End { checked_n, .. }) in &ends {
            if *checked_n > recorded.get(chain).copied().unwrap_or_default() {
                report.add(AuditFinding::NeverRecorded { chain: *chain, n: *checked_n });
            }
        }
        self.verify_entries(ends, &mut report, &mut progress).await?;
        Ok(report)
    }

    async fn ends(&self) -> Result<HashMap<Uuid, End>> {
        let query = sqlx::query_as("SELECT chain, n, hash, checked_n FROM audit_chains");
        let ends: Vec<(Uuid, i64, Vec<u8>, i64)> = self.values(query).await?;
        let end = |(chain, n, hash, checked_n)| (chain, End { n, hash, checked_n });
        Ok(ends.into_iter().map(end).collect())
    }

    async fn verify_entries(
        &self,
        ends: HashMap<Uuid, End>,
        report: &mut AuditReport,
        progress: &mut impl FnMut(u64),
    ) -> Result<()> {
        let query = format!(
            "SELECT {CHAINED} FROM audit_log WHERE (chain, n) > ($1, $2) ORDER BY chain, n LIMIT {PAGE}"
        );
        let mut walk = Walk { ends, grown: Vec::new(), last: None };
        loop {
            let start = (Uuid::nil(), i64::MIN);
            let (chain, n) = walk.last.as_ref().map_or(start, |it| (it.chain, it.n));
            let page = sqlx::query_as(sqlx::AssertSqlSafe(query.as_str())).bind(chain).bind(n);
            let page: Vec<ChainedEntry> = self.values(page).await?;
            let is_last = page.len() < PAGE as usize;
            for entry in page {
                report.entries += 1;
                walk.check(entry, report);
            }
            progress(report.entries);
            if is_last {
                break;
            }
        }
        walk.end_chain(report);
        for (chain, End { n, .. }) in std::mem::take(&mut walk.ends) {
            if n > 0 {
                report.add(AuditFinding::EntriesRemoved { chain, from: 1, to: n });
            }
        }
        // Chains that grew or began after the ends were read have another end by now.
        let grown: Vec<Uuid> = walk.grown.iter().map(|(chain, ..)| *chain).collect();
        let query = sqlx::query_as("SELECT chain, n FROM audit_chains WHERE chain = ANY ($1)");
        let ends: Vec<(Uuid, i64)> = self.values(query.bind(&grown)).await?;
        let ends: HashMap<Uuid, i64> = ends.into_iter().collect();
        for (chain, last) in walk.grown {
            match ends.get(&chain) {
                None => report.add(AuditFinding::ChainUnknown { chain }),
                Some(&end) if last > end => {
                    report.add(AuditFinding::EntriesAdded { chain, from: end + 1, to: last });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    async fn verify_checkpoints(
        &self,
        kept: &[(i64, String)],
        report: &mut AuditReport,
    ) -> Result<HashMap<Uuid, i64>> {
        let mut recorded = HashMap::new();
        let query =
            format!("SELECT {STORED} FROM audit_checkpoints WHERE n > $1 ORDER BY n LIMIT 100");
        let mut missing: BTreeSet<(i64, String)> =
            kept.iter().map(|(n, hash)| (*n, hash.to_lowercase())).collect();
        let (mut last, mut hash) = (0, Vec::new());
        loop {
            let page = sqlx::query_as(sqlx::AssertSqlSafe(query.as_str())).bind(last);
            let page: Vec<StoredCheckpoint> = self.values(page).await?;
            if page.is_empty() {
                break;
            }
            for checkpoint in page {
                let StoredCheckpoint { n, .. } = checkpoint;
                if n > last + 1 {
                    report.add(AuditFinding::CheckpointsRemoved { from: last + 1, to: n - 1 });
                } else if checkpoint.hash_after(&hash) != checkpoint.hash {
                    report.add(AuditFinding::CheckpointChanged { n });
                }
                missing.remove(&(n, hex(&checkpoint.hash)));
                self.compare(&checkpoint, &mut recorded, report).await?;
                report.checkpoints += 1;
                report.last_checkpoint = Some(format!("{n}:{}", hex(&checkpoint.hash)));
                (last, hash) = (n, checkpoint.hash);
            }
        }
        missing.into_iter().for_each(|(n, _)| report.add(AuditFinding::NotTheCheckpoint { n }));
        Ok(recorded)
    }

    /// Compares the entries that a checkpoint recorded with those that are there, and notes which it recorded.
    async fn compare(
        &self,
        checkpoint: &StoredCheckpoint,
        highest: &mut HashMap<Uuid, i64>,
        report: &mut AuditReport,
    ) -> Result<()> {
        let Some(recorded) = checkpoint.ends() else {
            report.add(AuditFinding::CheckpointChanged { n: checkpoint.n });
            return Ok(());
        };
        let query = sqlx::query_as(
            "SELECT r.chain, r.n FROM unnest($1::uuid[], $2::bigint[], $3::text[]) AS r (chain, n, hash)
             WHERE NOT EXISTS (SELECT FROM audit_log l
                               WHERE l.chain = r.chain AND l.n = r.n AND encode(l.hash, 'hex') = r.hash)",
        )
        .bind(recorded.iter().map(|(chain, ..)| *chain).collect::<Vec<_>>())
        .bind(recorded.iter().map(|(_, n, _)| *n).collect::<Vec<_>>())
        .bind(recorded.iter().map(|(.., hash)| hash.as_str()).collect::<Vec<_>>());
        let differing: Vec<(Uuid, i64)> = self.values(query).await?;
        for (chain, n) in differing {
            report.add(AuditFinding::NotAsRecorded { checkpoint: checkpoint.n, chain, n });
        }
        for (chain, n, _) in recorded {
            let highest = highest.entry(chain).or_default();
            *highest = n.max(*highest);
        }
        Ok(())
    }
}

/// The walk over all entries, chain by chain.
struct Walk {
    /// The ends of the chains that were not walked yet.
    ends: HashMap<Uuid, End>,
    /// Chains that have more entries than their end says, and the number of the last.
    grown: Vec<(Uuid, i64)>,
    last: Option<ChainedEntry>,
}

impl Walk {
    /// Checks the next entry.
    fn check(&mut self, entry: ChainedEntry, report: &mut AuditReport) {
        let ChainedEntry { chain, n, id, .. } = entry;
        if self.last.as_ref().is_some_and(|last| last.chain != chain) {
            self.end_chain(report);
        }
        let (before, previous) =
            self.last.as_ref().map_or((0, [].as_slice()), |last| (last.n, &last.hash));
        if n <= before {
            report.add(AuditFinding::EntriesAdded { chain, from: n, to: n });
        } else if n > before + 1 {
            report.add(AuditFinding::EntriesRemoved { chain, from: before + 1, to: n - 1 });
        } else if entry.hash_after(previous) != entry.hash {
            report.add(AuditFinding::EntryChanged { chain, n, id });
        }
        if self.ends.get(&chain).is_some_and(|end| end.n == n && end.hash != entry.hash) {
            report.add(AuditFinding::EndChanged { chain, n });
        }
        self.last = Some(entry);
    }

    /// Checks that the chain of the last entry has no more entries than were seen.
    fn end_chain(&mut self, report: &mut AuditReport) {
        let Some(ChainedEntry { chain, n, .. }) = self.last.take() else { return };
        match self.ends.remove(&chain) {
            None => self.grown.push((chain, n)),
            Some(end) if end.n < n => self.grown.push((chain, n)),
            Some(end) if end.n > n => {
                report.add(AuditFinding::EntriesRemoved { chain, from: n + 1, to: end.n });
            }
            Some(_) => {}
        }
    }
}
