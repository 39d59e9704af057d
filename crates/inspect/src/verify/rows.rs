//! Checks conversations and days against the rows that they are derived from.

use std::collections::HashMap;
use std::time::Duration;

use database::{ConversationCheck, DayCheck, DayKey, Differences, Repair};
use domain::ids::ConversationKey;
use tokio::time::{Instant, sleep_until};

use super::finding::{Finding, Kind, describe};
use super::run::{Incomplete, Run, VerifyingSettings};

/// Conversations or days that one statement checks. Those with many messages or conversations may exceed the
/// statement timeout; then fewer are checked at once.
const PAGE: u32 = 100;
/// Conversation numbers that one statement searches for orphaned rows: some milliseconds.
pub(super) const NUMBERS: u32 = 2_000;
/// The most conversations or days that are remembered for a second check: some megabytes.
pub(super) const REMEMBERED: u32 = 10_000;
/// The precision of the activity time, which is added to the idle limit.
const TOUCH: Duration = Duration::from_secs(database::TOUCH_SECONDS as u64);
/// How long to wait before statistics that are due count as overdue. They are refreshed every few seconds.
const SETTLE: Duration = Duration::from_secs(10);

impl Run<'_> {
    /// Every conversation in scope.
    pub(super) async fn conversations(&mut self) -> Result<(), Incomplete> {
        let database = &self.verifier.database;
        let check = async |part: &[ConversationKey]| database.check_conversations(part).await;
        let mut due = Vec::new();
        let mut after = None;
        loop {
            let (chosen, last) = self.conversations_after(after.as_ref()).await?;
            for check in in_parts(&chosen, &check).await? {
                let overdue = self.is_overdue(check.statistics_due_for, Duration::ZERO);
                if overdue && due.len() < REMEMBERED as usize {
                    due.push((check.key.clone(), check.version.clone()));
                }
                self.report_conversation(check).await;
            }
            self.checked(chosen.len());
            match last {
                None => break,
                last => after = last,
            }
        }
        let report = async |run: &mut Self, check: ConversationCheck| {
            if let Some(seconds) = check.statistics_due_for {
                let detail = format!("archived {} ago, not computed yet", duration(seconds));
                let finding = Finding::of(Kind::StatisticsOverdue, &check.key, detail);
                run.found(finding, None).await;
            }
        };
        let version = |it: &ConversationCheck| (it.key.clone(), it.version.clone());
        self.unchanged(due, Instant::now(), check, version, report).await
    }

    /// The next conversations in scope, and the last one that was looked at if there may be more after it.
    pub(super) async fn conversations_after(
        &self,
        after: Option<&ConversationKey>,
    ) -> Result<(Vec<ConversationKey>, Option<ConversationKey>), Incomplete> {
        let database = &self.verifier.database;
        let keys = database.conversation_keys(self.scope, after, PAGE).await?;
        let last = keys.last().filter(|_| keys.len() == PAGE as usize).cloned();
        let chosen = match self.scope.since {
            Some(since) => database.touched_since(&keys, since).await?,
            None => keys,
        };
        Ok((chosen, last))
    }

    async fn report_conversation(&mut self, check: ConversationCheck) {
        for (kind, detail) in self.faults(&check) {
            let repair = match kind {
                Kind::ClosingStuck | Kind::TotalsDiffer => {
                    Some(Repair::CloseAgain(check.key.clone()))
                }
                Kind::StatisticsDiffer => Some(Repair::Statistics(check.key.clone())),
                _ => None,
            };
            self.found(Finding::of(kind, &check.key, detail), repair).await;
        }
    }

    /// What is wrong with a conversation, but for statistics that are due.
    fn faults(&self, check: &ConversationCheck) -> Vec<(Kind, String)> {
        let VerifyingSettings { grace, idle, .. } = self.verifier.settings;
        let overdue = |seconds, limit| {
            self.is_overdue(seconds, limit).then(|| duration(seconds.unwrap_or_default()))
        };
        let mut faults = Vec::new();
        if let Some(lease) = overdue(check.lease_over_for, Duration::ZERO) {
            faults.push((Kind::ClosingStuck, format!("status closing, lease expired {lease} ago")));
        }
        if let Some(requested) = overdue(check.requested_for, grace) {
            let detail = format!("close requested {requested} ago, not closed yet");
            faults.push((Kind::CloseOverdue, detail));
        }
        if let Some(idle) = overdue(check.idle_for, idle + TOUCH) {
            faults.push((Kind::CloseOverdue, format!("no message for {idle}, not closed yet")));
        }
        if check.unreadable > 0 {
            let detail = format!("{} of {} messages", check.unreadable, check.messages);
            faults.push((Kind::MessagesUnreadable, detail));
        }
        if !check.totals.is_empty() {
            let gone = check.messages == 0;
            let kind = if gone { Kind::MessagesGone } else { Kind::TotalsDiffer };
            faults.push((kind, describe(&check.totals)));
            // Wrong totals make the statistics wrong; the repair of the totals corrects both.
            return faults;
        }
        let statistics = match &check.statistics {
            Differences::None if check.without_day => "no row of its day in daily_stats".to_owned(),
            Differences::None => return faults,
            Differences::Missing => "no row in conversation_stats".to_owned(),
            Differences::Fields(fields) => describe(fields),
        };
        faults.push((Kind::StatisticsDiffer, statistics));
        faults
    }

    /// Every day in scope. `dirty` are those that were marked dirty when verifying began.
    pub(super) async fn days(&mut self, dirty: &[(DayKey, String)]) -> Result<(), Incomplete> {
        if self.scope.conversation.is_some() {
            let cause =
                "days cover many conversations; they are checked only without --conversation";
            return Err(Incomplete::Skipped { cause: cause.to_owned() });
        }
        let database = &self.verifier.database;
        let check = async |part: &[DayKey]| database.check_days(part).await;
        let dirty: HashMap<&DayKey, &String> =
            dirty.iter().map(|(key, version)| (key, version)).collect();
        let mut still = Vec::new();
        let mut after = None;
        loop {
            let keys = database.day_keys(self.scope, after.as_ref(), PAGE).await?;
            after = keys.last().cloned();
            for check in in_parts(&keys, &check).await? {
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
        let report = async |run: &mut Self, check: DayCheck| {
            if check.dirty {
                run.report_day(Kind::DayOverdue, &check).await;
            }
        };
        let version = |it: &DayCheck| (it.key.clone(), it.version.clone());
        self.unchanged(still, self.began, check, version, report).await
    }

    /// Checks again what was due, once a statistics-worker had the time to refresh it, and reports what has the
    /// version that it had then.
    async fn unchanged<K: Clone + PartialEq, C>(
        &mut self,
        due: Vec<(K, String)>,
        since: Instant,
        check: impl AsyncFn(&[K]) -> Result<Vec<C>, database::Error>,
        version: fn(&C) -> (K, String),
        report: impl AsyncFn(&mut Self, C),
    ) -> Result<(), Incomplete> {
        if !due.is_empty() {
            sleep_until(since + SETTLE.min(self.verifier.settings.overdue_after)).await;
        }
        for page in due.chunks(PAGE as usize) {
            let keys: Vec<K> = page.iter().map(|(key, _)| key.clone()).collect();
            for check in in_parts(&keys, &check).await? {
                if page.contains(&version(&check)) {
                    report(self, check).await;
                }
            }
        }
        Ok(())
    }

    async fn report_day(&mut self, kind: Kind, check: &DayCheck) {
        let DayKey { tenant_id, agent_id, model_name, day } = &check.key;
        let detail = match kind {
            Kind::DayOverdue => "marked dirty, not recomputed yet".to_owned(),
            _ => describe(&check.differences),
        };
        let agent = if agent_id.is_empty() { "(no agent)" } else { agent_id };
        let model = if model_name.is_empty() { "(no model)" } else { model_name };
        let finding = Finding {
            tenant_id: Some(tenant_id.clone()),
            ..Finding::about(kind, Some(format!("{day} {agent} {model}")), detail)
        };
        let repair = (kind == Kind::DayDiffers).then(|| Repair::Day(check.key.clone()));
        self.found(finding, repair).await;
    }

    /// Rows without the row that they belong to.
    pub(super) async fn integrity(&mut self) -> Result<(), Incomplete> {
        let database = &self.verifier.database;
        let mut after = None;
        loop {
            let (orphans, last) =
                database.orphaned_statistics(self.scope, after.as_ref(), NUMBERS).await?;
            for orphan in orphans {
                let detail = "the conversation does not exist";
                let finding = Finding {
                    tenant_id: Some(orphan.tenant_id.clone()),
                    conversation_id: Some(orphan.conversation_id.clone()),
                    ..Finding::about(Kind::StatisticsOrphaned, None, detail)
                };
                self.found(finding, Some(Repair::DropStatistics(orphan))).await;
            }
            match last {
                None => break,
                last => after = last,
            }
        }
        self.orphaned_words().await?;
        if !self.scope.is_everything() {
            let cause = "messages without a conversation have no tenant; they are checked only without filters";
            return Err(Incomplete::Skipped { cause: cause.to_owned() });
        }
        let mut after = Some(i64::MIN);
        while let Some(number) = after {
            let (orphans, checked, last) = database.orphaned_rows(number, NUMBERS).await?;
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
}

/// Checks a page; in smaller parts if the statement times out.
pub(super) async fn in_parts<K, T>(
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
fn duration(seconds: f64) -> String {
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
