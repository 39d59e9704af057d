//! Checks conversations and days against the rows that they are derived from.

use std::collections::HashMap;
use std::time::Duration;

use database::{ConversationCheck, DayCheck, DayKey, Differences, OrphanedStatistics, Repair};
use domain::ids::ConversationKey;
use tokio::time::{Instant, sleep_until};

use super::finding::{Finding, Kind, describe};
use super::run::{Incomplete, Run, VerifyingSettings};

/// Conversations or days that one statement checks. Those with many messages or conversations may exceed the
/// statement timeout; then fewer are checked at once.
const PAGE: u32 = 100;
/// Conversation numbers that one statement searches for orphaned rows: some milliseconds.
const NUMBERS: u32 = 2_000;
/// The most conversations or days that are remembered for a second check: some megabytes.
pub(super) const REMEMBERED: u32 = 10_000;
/// The precision of the activity time, which is added to the idle limit.
const TOUCH: Duration = Duration::from_secs(database::TOUCH_SECONDS as u64);
/// How long to wait before statistics that are due count as overdue. They are refreshed every few seconds.
const SETTLE: Duration = Duration::from_secs(10);

impl Run<'_> {
    /// Every conversation in scope.
    pub(super) async fn conversations(&mut self) -> Result<(), Incomplete> {
        let mut due: Vec<(ConversationKey, String)> = Vec::new();
        let mut after = None;
        loop {
            let database = &self.verifier.database;
            let keys = database.conversation_keys(self.scope, after.as_ref(), PAGE).await?;
            after = keys.last().cloned();
            let full = keys.len() == PAGE as usize;
            let chosen = match self.scope.since {
                Some(since) => database.touched_since(&keys, since).await?,
                None => keys,
            };
            for check in self.check(&chosen).await? {
                let overdue = self.is_overdue(check.statistics_due_for, Duration::ZERO);
                if overdue && due.len() < REMEMBERED as usize {
                    due.push((check.key.clone(), check.version.clone()));
                }
                self.report_conversation(check).await;
            }
            self.checked(chosen.len());
            if !full {
                break;
            }
        }
        self.still_due(due).await
    }

    async fn check(
        &self,
        keys: &[ConversationKey],
    ) -> Result<Vec<ConversationCheck>, database::Error> {
        let database = &self.verifier.database;
        in_parts(keys, async |part| database.check_conversations(part).await).await
    }

    async fn check_days(&self, keys: &[DayKey]) -> Result<Vec<DayCheck>, database::Error> {
        let database = &self.verifier.database;
        in_parts(keys, async |part| database.check_days(part).await).await
    }

    async fn report_conversation(&mut self, check: ConversationCheck) {
        let VerifyingSettings { grace, idle, .. } = self.verifier.settings;
        let key = &check.key;
        if self.is_overdue(check.lease_over_for, Duration::ZERO) {
            let detail =
                format!("status closing, lease expired {} ago", duration(check.lease_over_for));
            let finding = Finding::of(Kind::ClosingStuck, key, detail);
            self.found(finding, Some(Repair::CloseAgain(key.clone()))).await;
        }
        if self.is_overdue(check.requested_for, grace) {
            let detail =
                format!("close requested {} ago, not closed yet", duration(check.requested_for));
            self.found(Finding::of(Kind::CloseOverdue, key, detail), None).await;
        }
        if self.is_overdue(check.idle_for, idle + TOUCH) {
            let detail = format!("no message for {}, not closed yet", duration(check.idle_for));
            self.found(Finding::of(Kind::CloseOverdue, key, detail), None).await;
        }
        if check.unreadable > 0 {
            let detail = format!("{} of {} messages", check.unreadable, check.messages);
            self.found(Finding::of(Kind::MessagesUnreadable, key, detail), None).await;
        }
        if !check.totals.is_empty() {
            let detail = describe(&check.totals);
            if check.messages == 0 {
                self.found(Finding::of(Kind::MessagesGone, key, detail), None).await;
            } else {
                let finding = Finding::of(Kind::TotalsDiffer, key, detail);
                self.found(finding, Some(Repair::CloseAgain(key.clone()))).await;
            }
        }
        let statistics = match &check.statistics {
            Differences::None if check.without_day => {
                Some("no row of its day in daily_stats".to_owned())
            }
            Differences::None => None,
            Differences::Missing => Some("no row in conversation_stats".to_owned()),
            Differences::Fields(fields) => Some(describe(fields)),
        };
        // Wrong totals make the statistics wrong; the repair of the totals corrects both.
        if let Some(detail) = statistics.filter(|_| check.totals.is_empty()) {
            let finding = Finding::of(Kind::StatisticsDiffer, key, detail);
            self.found(finding, Some(Repair::Statistics(key.clone()))).await;
        }
    }

    /// Reports statistics that were due at the first check and are unchanged since.
    async fn still_due(&mut self, due: Vec<(ConversationKey, String)>) -> Result<(), Incomplete> {
        if due.is_empty() {
            return Ok(());
        }
        self.settle(Instant::now()).await;
        let versions: HashMap<ConversationKey, String> = due.iter().cloned().collect();
        let keys: Vec<ConversationKey> = due.into_iter().map(|(key, _)| key).collect();
        for page in keys.chunks(PAGE as usize) {
            for check in self.check(page).await? {
                let same = versions.get(&check.key) == Some(&check.version);
                if let Some(seconds) = check.statistics_due_for.filter(|_| same) {
                    let detail =
                        format!("archived {} ago, not computed yet", duration(Some(seconds)));
                    let finding = Finding::of(Kind::StatisticsOverdue, &check.key, detail);
                    self.found(finding, None).await;
                }
            }
        }
        Ok(())
    }

    /// Every day in scope. `dirty` are those that were marked dirty when verifying began.
    pub(super) async fn days(&mut self, dirty: &[(DayKey, String)]) -> Result<(), Incomplete> {
        if self.scope.conversation.is_some() {
            return Err(Incomplete::skipped(
                "days cover many conversations; they are checked only without --conversation",
            ));
        }
        let mut still: Vec<(DayKey, String)> = Vec::new();
        let dirty: HashMap<&DayKey, &String> =
            dirty.iter().map(|(key, version)| (key, version)).collect();
        let mut after = None;
        loop {
            let database = &self.verifier.database;
            let keys = database.day_keys(self.scope, after.as_ref(), PAGE).await?;
            after = keys.last().cloned();
            for check in self.check_days(&keys).await? {
                if check.dirty && dirty.get(&check.key) == Some(&&check.version) {
                    still.push((check.key, check.version));
                } else if !check.differences.is_empty() {
                    self.report_day(Kind::DayDiffers, &check).await;
                }
            }
            self.checked(keys.len());
            if keys.len() < PAGE as usize {
                break;
            }
        }
        if still.is_empty() {
            return Ok(());
        }
        self.settle(self.began).await;
        let keys: Vec<DayKey> = still.iter().map(|(key, _)| key.clone()).collect();
        let versions: HashMap<DayKey, String> = still.into_iter().collect();
        for page in keys.chunks(PAGE as usize) {
            for check in self.check_days(page).await? {
                if check.dirty && versions.get(&check.key) == Some(&check.version) {
                    self.report_day(Kind::DayOverdue, &check).await;
                }
            }
        }
        Ok(())
    }

    async fn report_day(&mut self, kind: Kind, check: &DayCheck) {
        let DayKey { tenant_id, agent_id, day } = &check.key;
        let detail = match kind {
            Kind::DayOverdue => "marked dirty, not recomputed yet".to_owned(),
            _ => describe(&check.differences),
        };
        let agent = if agent_id.is_empty() { "(no agent)" } else { agent_id };
        let finding = Finding {
            tenant_id: Some(tenant_id.clone()),
            ..Finding::about(kind, Some(format!("{day} {agent}")), detail)
        };
        let repair = (kind == Kind::DayDiffers).then(|| Repair::Day(check.key.clone()));
        self.found(finding, repair).await;
    }

    /// Rows without the row that they belong to.
    pub(super) async fn integrity(&mut self) -> Result<(), Incomplete> {
        let mut after: Option<OrphanedStatistics> = None;
        loop {
            let (orphans, last) = self
                .verifier
                .database
                .orphaned_statistics(self.scope, after.as_ref(), NUMBERS)
                .await?;
            for orphan in orphans {
                let finding = Finding {
                    tenant_id: Some(orphan.tenant_id.clone()),
                    conversation_id: Some(orphan.conversation_id.clone()),
                    ..Finding::about(
                        Kind::StatisticsOrphaned,
                        None,
                        "the conversation does not exist",
                    )
                };
                self.found(finding, Some(Repair::DropStatistics(orphan))).await;
            }
            match last {
                None => break,
                last => after = last,
            }
        }
        if !self.scope.is_everything() {
            return Err(Incomplete::skipped(
                "messages without a conversation have no tenant; they are checked only without filters",
            ));
        }
        let mut after = Some(i64::MIN);
        while let Some(number) = after {
            let (orphans, checked, last) =
                self.verifier.database.orphaned_rows(number, NUMBERS).await?;
            for orphan in orphans {
                let detail = format!(
                    "{} messages with conversation number {}; the first is {}",
                    orphan.messages, orphan.conversation, orphan.first_id
                );
                let finding = Finding::about(Kind::MessagesOrphaned, Some(orphan.first_id), detail);
                self.found(finding, None).await;
            }
            self.checked(checked);
            after = last;
        }
        Ok(())
    }

    /// Whether work of the fleet is overdue.
    fn is_overdue(&self, seconds: Option<f64>, limit: Duration) -> bool {
        let limit = limit + self.verifier.settings.overdue_after;
        seconds.is_some_and(|seconds| seconds > limit.as_secs_f64())
    }

    /// Waits long enough for a statistics-worker to refresh what is due.
    async fn settle(&self, since: Instant) {
        sleep_until(since + SETTLE.min(self.verifier.settings.overdue_after)).await;
    }
}

/// Checks a page; in smaller parts if the statement times out.
async fn in_parts<K, T>(
    keys: &[K],
    check: impl AsyncFn(&[K]) -> Result<Vec<T>, database::Error>,
) -> Result<Vec<T>, database::Error> {
    let mut found = Vec::with_capacity(keys.len());
    let mut parts = vec![keys];
    while let Some(part) = parts.pop() {
        match check(part).await {
            Ok(more) => found.extend(more),
            Err(error) if error.is_time_out() && part.len() > 1 => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Seconds as text, in the unit that fits.
fn duration(seconds: Option<f64>) -> String {
    let seconds = seconds.unwrap_or_default();
    match seconds {
        ..120.0 => format!("{seconds:.0} s"),
        ..7_200.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.0} h", seconds / 3_600.0),
        _ => format!("{:.0} days", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_page_that_times_out_is_checked_in_parts_and_in_order() {
        let at_most = |most: usize| {
            async move |part: &[u8]| match part.len() > most {
                true => Err(database::Error::TimedOut(Duration::from_secs(1))),
                false => Ok(part.to_vec()),
            }
        };
        let page = [1, 2, 3, 4, 5, 6, 7];
        assert_eq!(in_parts(&page, at_most(2)).await.unwrap(), page);
        in_parts(&page, at_most(0)).await.unwrap_err();
    }
}
