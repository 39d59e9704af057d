//! The steps of background work in PostgreSQL: together with others or apart, each within a time limit.
//!
//! A step handles a batch. If it fails although PostgreSQL answers, it is repeated for each item by itself, so that
//! one that is too slow or locked does not stop the others. A batch is small, so this takes fewer long waits than
//! halving it: one for each item that is too slow.

use std::time::Duration;

use database::{Database, Limits};
use domain::causes::with_causes;
use domain::failure::FailureClass;
use metrics::{Counter, Metrics, TransactionRetry};

use crate::background::Background;
use crate::limited_database::LimitedDatabase;
use crate::transient::retry_transient;

/// How long a statement of a step with others may take.
const STATEMENT_LIMIT: Duration = Duration::from_secs(2);

/// How long a step with others waits for a lock: longer than any transaction of the fleet holds one.
const LOCK_LIMIT: Duration = Duration::from_millis(500);

/// If so many items in a row fail by themselves, and none has succeeded, a test write decides whether the cause may be
/// these items (a table may be locked, or the server too slow for anything).
const FAILED_ALONE: usize = 3;

/// Steps of one kind of background work. Clones share their connection.
#[derive(Clone)]
pub(crate) struct Steps {
    /// PostgreSQL, with the time limit of these steps.
    pub(crate) database: Database,
    /// PostgreSQL with the usual limits.
    pub(crate) usual: Database,
    pub(crate) metrics: Metrics,
    pub(crate) background: Background,
    pace: Pace,
}

/// Whether other background work of the process waits for these steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Steps take turns with other background work.
    InTurn,
    /// Steps take no turn: they may last for minutes.
    Apart,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Database(#[from] database::Error),
    /// Counting tokens panicked. Without its source: the message of a panic may contain content.
    #[error("counting tokens panicked; the worker's log names the location")]
    Count,
    /// It was not at its end within the time for it, and what it did is stored.
    #[error("not done within {0:?}")]
    Unfinished(Duration),
    /// The row of the conversation stayed locked.
    #[error("the row of the conversation stayed locked for {0:?}")]
    Locked(Duration),
}

/// What a failure says about a single item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    TooSlow,
    Locked,
    /// Any other failure, such as stored data that cannot be read.
    Other,
}

/// What became of a batch.
pub(crate) struct Done<'a, T, R> {
    pub(crate) results: Vec<R>,
    /// Items that failed by themselves.
    pub(crate) failed: Vec<(&'a T, StepError)>,
    /// Items that were not tried, because everything failed.
    pub(crate) untried: &'a [T],
}

impl StepError {
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Unfinished(_) => Fault::TooSlow,
            Self::Locked(_) => Fault::Locked,
            Self::Count => Fault::Other,
            Self::Database(error) if error.is_lock() => Fault::Locked,
            Self::Database(error) if error.is_time_out() => Fault::TooSlow,
            Self::Database(_) => Fault::Other,
        }
    }

    /// Whether the cause may be a single item, if PostgreSQL answers.
    fn may_be_of_one(&self) -> bool {
        match self {
            Self::Database(error) => {
                error.is_time_out() || !self.is_as_in_an_outage() || error.may_concern_one_item()
            }
            Self::Count | Self::Unfinished(_) | Self::Locked(_) => true,
        }
    }

    fn is_as_in_an_outage(&self) -> bool {
        matches!(self, Self::Database(error) if error.class() == FailureClass::Unavailable && !error.is_time_out())
    }
}

impl Steps {
    /// Steps that take turns with other background work, and fail soon.
    pub(crate) fn in_turn(database: &Database, metrics: Metrics, background: Background) -> Self {
        let Limits { time_out, lock_time_out } = database.limits();
        let limits = Limits {
            time_out: time_out.min(STATEMENT_LIMIT),
            lock_time_out: lock_time_out.min(LOCK_LIMIT),
        };
        Self {
            database: database.limited(limits),
            usual: database.clone(),
            metrics,
            background,
            pace: Pace::InTurn,
        }
    }

    /// The same steps apart from others, with this time limit for a statement, on a connection of their own.
    pub(crate) fn apart(&self, limit: Duration) -> Self {
        let database = LimitedDatabase::of_slow_items(&self.usual, limit).batches().clone();
        Self { database, pace: Pace::Apart, ..self.clone() }
    }

    /// Within which time an item may be handled with others; `None` if it is handled apart.
    pub(crate) fn time_with_others(&self) -> Option<Duration> {
        (self.pace == Pace::InTurn).then(|| self.database.limits().time_out)
    }

    /// One step. Transient failures are retried.
    pub(crate) async fn step<T, F>(&self, work: impl FnMut() -> F) -> Result<T, StepError>
    where
        F: Future<Output = database::Result<T>>,
    {
        Ok(self.paced(retry_transient(&self.metrics, work)).await?)
    }

    /// One throttled piece of work.
    pub(crate) async fn paced<T>(&self, work: impl Future<Output = T>) -> T {
        match self.pace {
            Pace::InTurn => self.background.throttled(work).await,
            Pace::Apart => self.background.throttled_without_turn(work).await,
        }
    }

    /// Whether the cause of this error may be a single item. PostgreSQL is asked whether it answers; after an error that
    /// speaks of an outage, whether it accepts a test write.
    pub(crate) async fn is_of_one(&self, error: &StepError) -> bool {
        error.may_be_of_one()
            && if error.is_as_in_an_outage() {
                self.usual.check_save().await.is_ok()
            } else {
                self.usual.probe().await.is_ok()
            }
    }

    /// Work on a batch; if it fails although PostgreSQL answers, on each item by itself.
    ///
    /// # Errors
    /// PostgreSQL is unavailable.
    pub(crate) async fn in_parts<'a, T, R, F>(
        &self,
        items: &'a [T],
        work: impl Fn(&'a [T]) -> F,
    ) -> Result<Done<'a, T, R>, StepError>
    where
        F: Future<Output = Result<Vec<R>, StepError>>,
    {
        let mut done = Done { results: Vec::new(), failed: Vec::new(), untried: &[] };
        if items.is_empty() {
            return Ok(done);
        }
        let error = match work(items).await {
            Ok(results) => return Ok(Done { results, ..done }),
            Err(error) => error,
        };
        if !self.is_of_one(&error).await {
            return Err(error);
        }
        if let [item] = items {
            done.failed.push((item, error));
            return Ok(done);
        }
        self.metrics.add(Counter::TransactionRetries { class: TransactionRetry::Split }, 1);
        let mut succeeded = false;
        for item in items {
            match work(std::slice::from_ref(item)).await {
                Ok(results) => {
                    succeeded = true;
                    done.results.extend(results);
                }
                Err(error) => {
                    if !self.is_of_one(&error).await {
                        return Err(error);
                    }
                    done.failed.push((item, error));
                }
            }
            if !succeeded
                && done.failed.len() == FAILED_ALONE
                && self.database.check_save().await.is_err()
            {
                // One of them is tried apart, and all others again later.
                done.failed.truncate(1);
                done.untried = &items[1..];
                tracing::warn!(
                    error = with_causes(&error),
                    "PostgreSQL answers, but {FAILED_ALONE} of {} conversations or days failed even by themselves, \
                     and none succeeded; they are tried again",
                    items.len()
                );
                break;
            }
        }
        Ok(done)
    }
}
