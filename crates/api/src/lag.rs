//! How stale the answers of a read replica may be.
//!
//! The API asks the primary for its position again and again, and notes when it asked. A replica that has replayed a
//! position has everything that was committed when the API asked for it. So an answer is at most as old as the newest
//! position that the replica had replayed before the answer was read. Only the clock of this process counts. While the
//! primary does not answer, there is no newer position, and the number grows. An unknown number is never 0.

use std::collections::VecDeque;
use std::time::Duration;

use database::{History, Lsn, ReplicaState, WalPosition};
use tokio::time::Instant;

/// Positions of the primary, with the times at which the API asked for them.
#[derive(Debug)]
pub(crate) struct Lag {
    /// A replica that is further behind is not used.
    max: Duration,
    history: Option<History>,
    /// Of this history, both ascending: at most those of the last `max`, and one before them.
    positions: VecDeque<Asked>,
    /// The newest one that the replica has replayed, which may be older than these.
    replayed: Option<Asked>,
    /// Whether the replica had replayed what this primary had not written yet: it follows another server.
    is_ahead: bool,
}

/// A position, and when the API asked for it.
#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Instant,
    lsn: Lsn,
}

/// Why a replica may not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    #[error(
        "the primary has not said yet how far it is, or the read replica has not replayed that yet"
    )]
    Unknown,
    #[error(
        "it belongs to another cluster than API_DATABASE_URL (another system identifier): correct the URL, or rebuild it \
         from the primary"
    )]
    AnotherCluster,
    #[error(
        "it is no standby: it was promoted, or the URL leads to a primary. Rebuild it from the primary, or correct the URL"
    )]
    Promoted,
    #[error(
        "it replays timeline {replica}, and the primary writes timeline {primary}: after a failover it has to follow the \
         new primary, and is used from its next restart point on"
    )]
    AnotherTimeline { replica: u32, primary: u32 },
    #[error(
        "it has replayed what the primary has not written, so it follows another server: rebuild it from the primary"
    )]
    Ahead,
    #[error("it is more than VERBATIM_REPLICA_MAX_LAG behind")]
    TooOld,
}

impl Lag {
    pub(crate) fn new(max: Duration) -> Self {
        Self { max, history: None, positions: VecDeque::new(), replayed: None, is_ahead: false }
    }

    /// The history of the primary.
    pub(crate) fn history(&self) -> Option<History> {
        self.history
    }

    /// The newest position of the primary, and when the API asked for it.
    pub(crate) fn newest(&self) -> Option<(Instant, WalPosition)> {
        let Asked { at, lsn } = *self.positions.back()?;
        Some((at, WalPosition { history: self.history?, lsn }))
    }

    /// Notes the position of the primary, for which the API asked at this time.
    pub(crate) fn asked(&mut self, at: Instant, position: WalPosition) {
        let is_later = self.positions.back().is_none_or(|last| last.lsn <= position.lsn);
        if self.history != Some(position.history) || !is_later {
            *self = Self { history: Some(position.history), ..Self::new(self.max) };
        }
        match self.positions.back_mut() {
            // Nothing was written since: what has this position has all until now.
            Some(last) if last.lsn == position.lsn => last.at = at,
            _ => self.positions.push_back(Asked { at, lsn: position.lsn }),
        }
        while self.positions.get(1).is_some_and(|second| second.at + self.max < at) {
            self.positions.pop_front();
        }
    }

    /// Compares the newest position of the primary with a state of the replica from before the API asked for it. What was
    /// ahead once may be behind later, and has other rows all the same.
    pub(crate) fn compare(&mut self, before: &ReplicaState) {
        let is_same = self.history == Some(before.history) && before.is_standby;
        self.is_ahead |=
            is_same && self.positions.back().is_some_and(|it| it.lsn < before.replayed);
    }

    /// The replica did not answer; then it may be another server.
    pub(crate) fn lost(&mut self) {
        self.is_ahead = false;
    }

    /// Notes how far the replica is.
    pub(crate) fn replayed(&mut self, state: &ReplicaState) {
        if self.history == Some(state.history) {
            self.replayed = self.newest_until(state.replayed);
        }
    }

    /// How old the last noted state of the replica is; `None`: that is unknown.
    pub(crate) fn of_replayed(&self, now: Instant) -> Option<Duration> {
        self.replayed.map(|it| now - it.at)
    }

    /// How old at most that is which a statement reads now that began in this state.
    ///
    /// # Errors
    /// The replica may not answer.
    pub(crate) fn of(&self, state: &ReplicaState, now: Instant) -> Result<Duration, Unusable> {
        let history = self.history.ok_or(Unusable::Unknown)?;
        let (replica, primary) = (state.history.timeline, history.timeline);
        if state.history.system != history.system {
            return Err(Unusable::AnotherCluster);
        }
        if !state.is_standby {
            return Err(Unusable::Promoted);
        }
        if replica != primary {
            return Err(Unusable::AnotherTimeline { replica, primary });
        }
        if self.is_ahead {
            return Err(Unusable::Ahead);
        }
        let newest = self.newest_until(state.replayed).ok_or(Unusable::Unknown)?;
        let lag = now - newest.at;
        if lag <= self.max { Ok(lag) } else { Err(Unusable::TooOld) }
    }

    /// The newest position that is this one or before it.
    fn newest_until(&self, lsn: Lsn) -> Option<Asked> {
        let until = self.positions.partition_point(|it| it.lsn <= lsn);
        let known = until.checked_sub(1).and_then(|last| self.positions.get(last)).copied();
        known.or(self.replayed.filter(|it| it.lsn <= lsn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(30);
    const HISTORY: History = History { system: 7, timeline: 1 };

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn position(lsn: u64) -> WalPosition {
        WalPosition { history: HISTORY, lsn: Lsn(lsn) }
    }

    fn standby(replayed: u64) -> ReplicaState {
        ReplicaState { history: HISTORY, is_standby: true, replayed: Lsn(replayed) }
    }

    #[test]
    fn an_answer_is_as_old_as_the_newest_position_that_its_server_had_replayed() {
        let start = Instant::now();
        let mut lag = Lag::new(MAX);
        assert_eq!(lag.of(&standby(100), start), Err(Unusable::Unknown));
        for (second, lsn) in [(0, 100), (1, 200), (2, 200), (3, 300)] {
            lag.asked(start + seconds(second), position(lsn));
        }
        let now = start + seconds(4);
        // What was flushed before any position that is known.
        assert_eq!(lag.of(&standby(99), now), Err(Unusable::Unknown));
        assert_eq!(lag.of(&standby(100), now), Ok(seconds(4)));
        assert_eq!(lag.of(&standby(199), now), Ok(seconds(4)));
        // An idle primary: at second 2 nothing was missing.
        assert_eq!(lag.of(&standby(200), now), Ok(seconds(2)));
        assert_eq!(lag.of(&standby(400), now), Ok(seconds(1)));
    }

    #[test]
    fn while_the_primary_is_silent_an_answer_becomes_older_until_it_is_too_old() {
        let start = Instant::now();
        let mut lag = Lag::new(MAX);
        lag.asked(start, position(100));
        assert_eq!(lag.of(&standby(100), start + seconds(30)), Ok(seconds(30)));
        assert_eq!(lag.of(&standby(100), start + seconds(31)), Err(Unusable::TooOld));
    }

    #[test]
    fn a_replica_that_stands_still_becomes_too_old_and_its_age_goes_on() {
        let start = Instant::now();
        let mut lag = Lag::new(MAX);
        for second in 0..200 {
            lag.asked(start + seconds(second), position(100 + second));
            lag.replayed(&standby(105));
        }
        let now = start + seconds(200);
        assert_eq!(lag.of(&standby(105), now), Err(Unusable::TooOld));
        assert_eq!(lag.of_replayed(now), Some(seconds(195)));
        assert!(lag.positions.len() < 40, "{}", lag.positions.len());
        // As soon as it goes on.
        assert_eq!(lag.of(&standby(290), now), Ok(seconds(10)));
    }

    #[test]
    fn a_promoted_server_another_cluster_and_another_timeline_never_answer() {
        let start = Instant::now();
        let mut lag = Lag::new(MAX);
        lag.asked(start, position(100));
        let promoted = ReplicaState { is_standby: false, ..standby(100) };
        assert_eq!(lag.of(&promoted, start), Err(Unusable::Promoted));
        let other = History { system: 8, ..HISTORY };
        let other = ReplicaState { history: other, ..standby(100) };
        assert_eq!(lag.of(&other, start), Err(Unusable::AnotherCluster));
        // The primary fails over: positions of the old timeline say nothing about the new one.
        let history = History { timeline: 2, ..HISTORY };
        lag.asked(start + seconds(1), WalPosition { history, lsn: Lsn(90) });
        let expected = Unusable::AnotherTimeline { replica: 1, primary: 2 };
        assert_eq!(lag.of(&standby(100), start + seconds(1)), Err(expected));
        let follows = ReplicaState { history, ..standby(95) };
        assert_eq!(lag.of(&follows, start + seconds(1)), Ok(seconds(0)));
        assert_eq!(lag.of_replayed(start), None);
    }

    #[test]
    fn what_is_ahead_of_the_primary_follows_another_server_and_never_answers() {
        let start = Instant::now();
        let mut lag = Lag::new(MAX);
        lag.asked(start, position(100));
        lag.compare(&standby(100));
        assert_eq!(lag.of(&standby(150), start), Ok(seconds(0)));
        lag.asked(start, position(120));
        lag.compare(&standby(150));
        assert_eq!(lag.of(&standby(150), start), Err(Unusable::Ahead));
        // Also when the primary has written more.
        lag.asked(start, position(200));
        lag.compare(&standby(150));
        assert_eq!(lag.of(&standby(200), start), Err(Unusable::Ahead));
    }
}
