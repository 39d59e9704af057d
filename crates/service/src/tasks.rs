//! Supervised tasks: a task that ends before the shutdown is restarted.
//!
//! A process consists of tasks that run until the shutdown. A task that ends earlier, by a panic, an error
//! or a plain return, has failed: the failure is counted and logged, and the task is restarted after a
//! pause that grows with each failure. Other tasks are not affected. During the shutdown no task is
//! restarted.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::failure_policy::LONGEST_PAUSE;
use metrics::{Counter, Metrics, TaskEnd};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// The pause before the first restart; it doubles with each consecutive failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A task that ran this long was healthy: its next failure counts as the first again.
const STEADY: Duration = Duration::from_secs(60);

/// After this many consecutive failures of a task, about half a minute of them, `/livez` fails: a restart
/// of the process may help.
const MAX_FAILURES: u32 = 20;

/// The order in which tasks stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Consumers and jobs: stopped first.
    Work,
    /// Tasks that [`Self::Work`] depends on: stopped after every task of that stage has finished.
    Support,
}

/// The tasks of a process. Clones share the same tasks.
#[derive(Clone)]
pub(crate) struct Tasks(Arc<Inner>);

struct Inner {
    work: Group,
    support: Group,
    states: Mutex<Vec<(&'static str, TaskState)>>,
    metrics: Metrics,
}

#[derive(Default)]
struct Group {
    stopping: CancellationToken,
    tracker: TaskTracker,
}

/// The state of a supervised task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub(crate) enum TaskState {
    Running,
    /// Failed; it will be restarted after a pause.
    Failed {
        failures: u32,
    },
    /// Ended as requested during the shutdown.
    Finished,
    /// Failed during the shutdown.
    FailedWhileStopping,
}

impl Tasks {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            work: Group::default(),
            support: Group::default(),
            states: Mutex::default(),
            metrics,
        }))
    }

    /// Runs the future that `factory` returns, and restarts it until the stage stops; then the token is
    /// cancelled.
    pub(crate) fn spawn<F, T>(&self, stage: Stage, name: &'static str, factory: F)
    where
        F: Fn(CancellationToken) -> T + Send + Sync + 'static,
        T: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let group = self.group(stage);
        let index = {
            let mut states = self.lock();
            states.push((name, TaskState::Running));
            states.len() - 1
        };
        let task = Task { tasks: self.clone(), name, index, stopping: group.stopping.clone() };
        let supervisor = task.supervise(Arc::new(factory));
        // The handle is not needed: the end of the runtime aborts the task.
        drop(group.tracker.spawn(supervisor));
    }

    /// Cancelled when the tasks of [`Stage::Work`] are to stop.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.group(Stage::Work).stopping.clone()
    }

    /// The drain of the stage waits until the token is dropped.
    pub(crate) fn busy(&self, stage: Stage) -> TaskTrackerToken {
        self.group(stage).tracker.token()
    }

    /// Stops the tasks of [`Stage::Work`], waits for them, then does the same for [`Stage::Support`]. True
    /// if no task failed.
    pub(crate) async fn drain(&self) -> bool {
        for stage in [Stage::Work, Stage::Support] {
            let group = self.group(stage);
            group.stopping.cancel();
            group.tracker.close();
            group.tracker.wait().await;
        }
        self.lock().iter().all(|(_, state)| *state == TaskState::Finished)
    }

    /// The names of the tasks that have not ended.
    pub(crate) fn running(&self) -> Vec<&'static str> {
        self.names(|state| matches!(state, TaskState::Running | TaskState::Failed { .. }))
    }

    /// The names of the tasks that failed during the shutdown.
    pub(crate) fn failed(&self) -> Vec<&'static str> {
        self.names(|state| state == TaskState::FailedWhileStopping)
    }

    fn names(&self, wanted: impl Fn(TaskState) -> bool) -> Vec<&'static str> {
        self.lock().iter().filter(|(_, state)| wanted(*state)).map(|(name, _)| *name).collect()
    }

    /// Every task with its state, in the order of the starts.
    pub(crate) fn states(&self) -> Vec<(&'static str, TaskState)> {
        self.lock().clone()
    }

    /// False if a task has failed [`MAX_FAILURES`] times in a row.
    pub(crate) fn live(&self) -> bool {
        self.names(|state| matches!(state, TaskState::Failed { failures: MAX_FAILURES.. }))
            .is_empty()
    }

    fn group(&self, stage: Stage) -> &Group {
        match stage {
            Stage::Work => &self.0.work,
            Stage::Support => &self.0.support,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(&'static str, TaskState)>> {
        self.0.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Task {
    tasks: Tasks,
    name: &'static str,
    /// The index of its state: two tasks may have the same name.
    index: usize,
    stopping: CancellationToken,
}

impl Task {
    async fn supervise<F, T>(self, factory: Arc<F>)
    where
        F: Fn(CancellationToken) -> T + Send + Sync + 'static,
        T: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let Self { name, ref stopping, .. } = self;
        let mut failures = 0;
        loop {
            if failures > 0 {
                tracing::info!(task = name, failures, "task {name} restarted");
            }
            self.set(TaskState::Running);
            let began = Instant::now();
            let attempt = {
                let (factory, stopping) = (Arc::clone(&factory), stopping.clone());
                // The factory runs inside the task, so that its panics are caught too.
                async move { factory(stopping).await }
            };
            let (cause, reason) = match AbortOnDropHandle::new(tokio::spawn(attempt)).await {
                Ok(Ok(())) if stopping.is_cancelled() => {
                    self.set(TaskState::Finished);
                    return;
                }
                Ok(Ok(())) => (TaskEnd::Returned, "returned before the shutdown".to_owned()),
                Ok(Err(error)) => (TaskEnd::Failed, format!("{error:#}")),
                Err(error) => (TaskEnd::Panicked, panic_text(error)),
            };
            if stopping.is_cancelled() {
                tracing::error!(
                    task = name,
                    reason,
                    "task {name} failed during the shutdown: {reason}"
                );
                self.set(TaskState::FailedWhileStopping);
                return;
            }
            failures = if began.elapsed() >= STEADY { 1 } else { failures + 1 };
            let pause = pause(failures);
            self.tasks.0.metrics.add(Counter::TaskRestarts { task: name, cause }, 1);
            self.set(TaskState::Failed { failures });
            let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            tracing::error!(
                task = name,
                reason,
                failures,
                pause_ms,
                "task {name} failed: {reason}; restarting in {pause_ms} ms"
            );
            let cancelled = stopping.run_until_cancelled(tokio::time::sleep(pause)).await.is_none();
            if cancelled {
                self.set(TaskState::Finished);
                return;
            }
        }
    }

    fn set(&self, state: TaskState) {
        if let Some(entry) = self.tasks.lock().get_mut(self.index) {
            entry.1 = state;
        }
    }
}

/// The message of a panic if it is a literal of the code. A formatted message is omitted, because it may
/// contain the content of a message: slicing a string inside a character quotes the whole string.
pub(crate) fn payload_text(payload: &(dyn Any + Send)) -> &'static str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .unwrap_or("panic message omitted: it may contain data")
}

/// Why a task ended without a result.
pub(crate) fn panic_text(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(payload) => format!("panicked: {}", payload_text(&*payload)),
        Err(error) => error.to_string(),
    }
}

fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::mpsc;

    use super::*;

    /// A task whose first runs end as `ends` says and whose later runs last until it is stopped. Each
    /// start is reported.
    fn recovering(
        ends: fn(u32) -> Option<anyhow::Result<()>>,
    ) -> (
        mpsc::UnboundedReceiver<u32>,
        impl Fn(CancellationToken) -> futures::Boxed + Send + Sync + 'static,
    ) {
        let (report, starts) = mpsc::unbounded_channel();
        let count = Arc::new(AtomicU32::new(0));
        let factory = move |stopping: CancellationToken| -> futures::Boxed {
            let start = count.fetch_add(1, Ordering::Relaxed);
            let report = report.clone();
            Box::pin(async move {
                report.send(start).expect("the test listens");
                if let Some(end) = ends(start) {
                    return end;
                }
                stopping.cancelled().await;
                Ok(())
            })
        };
        (starts, factory)
    }

    mod futures {
        pub(super) type Boxed = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;
    }

    fn restarts(metrics: &Metrics, cause: TaskEnd) -> u64 {
        metrics.count(Counter::TaskRestarts { task: "t", cause })
    }

    #[tokio::test(start_paused = true)]
    async fn a_panicking_task_is_counted_and_restarted() {
        let metrics = Metrics::new();
        let tasks = Tasks::new(metrics.clone());
        let (mut starts, factory) = recovering(|start| match start {
            0 | 1 => panic!("start {start}"),
            _ => None,
        });
        tasks.spawn(Stage::Work, "t", factory);
        for start in 0..3 {
            assert_eq!(starts.recv().await, Some(start));
        }
        assert_eq!(restarts(&metrics, TaskEnd::Panicked), 2);
        assert!(tasks.drain().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_returns_or_fails_before_the_shutdown_is_restarted() {
        let metrics = Metrics::new();
        let tasks = Tasks::new(metrics.clone());
        let (mut starts, factory) = recovering(|start| match start {
            0 => Some(Ok(())),
            1 => Some(Err(anyhow::anyhow!("broken"))),
            _ => None,
        });
        tasks.spawn(Stage::Work, "t", factory);
        for start in 0..3 {
            assert_eq!(starts.recv().await, Some(start));
        }
        assert_eq!(restarts(&metrics, TaskEnd::Returned), 1);
        assert_eq!(restarts(&metrics, TaskEnd::Failed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panicking_task_does_not_affect_another_task() {
        let tasks = Tasks::new(Metrics::new());
        let (mut bad, factory) = recovering(|start| (start < 3).then(|| panic!("bad")));
        tasks.spawn(Stage::Work, "bad", factory);
        let (mut good, factory) = recovering(|_| None);
        tasks.spawn(Stage::Work, "good", factory);
        while bad.recv().await != Some(3) {}
        assert_eq!(good.recv().await, Some(0));
        assert!(good.try_recv().is_err(), "the other task was started twice");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_never_recovers_makes_the_process_not_live_and_can_still_be_stopped() {
        let tasks = Tasks::new(Metrics::new());
        let (mut starts, factory) = recovering(|_| Some(Err(anyhow::anyhow!("broken"))));
        tasks.spawn(Stage::Work, "t", factory);
        assert_eq!(starts.recv().await, Some(0));
        assert!(tasks.live());
        while starts.recv().await != Some(MAX_FAILURES) {}
        // The start after the last failure is reported while the state is still "running". The next
        // failure follows immediately: time is paused, so it comes before the sleep ends.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!tasks.live());
        assert!(tasks.drain().await);
    }

    #[tokio::test(start_paused = true)]
    async fn support_tasks_stop_only_after_all_work_tasks_have_finished() {
        let tasks = Tasks::new(Metrics::new());
        let (finish, finished) = tokio::sync::watch::channel(false);
        tasks.spawn(Stage::Work, "consumer", move |stopping| {
            let mut finished = finished.clone();
            async move {
                stopping.cancelled().await;
                finished.wait_for(|finished| *finished).await?;
                Ok(())
            }
        });
        tasks.spawn(Stage::Support, "watcher", |stopping| async move {
            stopping.cancelled().await;
            Ok(())
        });
        let drain = tokio::spawn({
            let tasks = tasks.clone();
            async move { tasks.drain().await }
        });
        tasks.group(Stage::Work).stopping.cancelled().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!tasks.group(Stage::Support).stopping.is_cancelled());
        finish.send(true).expect("the consumer listens");
        assert!(drain.await.expect("no panic"));
        assert!(tasks.running().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_during_the_shutdown_is_not_a_clean_drain() {
        let tasks = Tasks::new(Metrics::new());
        tasks.spawn(Stage::Work, "t", |stopping| async move {
            stopping.cancelled().await;
            anyhow::bail!("the last batch failed")
        });
        assert!(!tasks.drain().await);
        assert_eq!(tasks.states(), [("t", TaskState::FailedWhileStopping)]);
        assert_eq!(tasks.failed(), ["t"]);
    }

    #[test]
    fn pauses_double_up_to_a_cap() {
        let pauses: Vec<u128> = (1..=7).map(|n| pause(n).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000, 1000]);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }
}
