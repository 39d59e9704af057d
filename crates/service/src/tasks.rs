//! Supervised tasks: what ends on its own, by a panic or otherwise, is started again.
//!
//! A process consists of tasks that run for ever. One that ends before it is asked to is a failure,
//! however politely it ended: it is counted, logged and restarted with a growing pause, and its
//! neighbours do not notice. Once stopping has begun nothing is started again.

use std::any::Any;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{Counter, Metrics, TaskEnd};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// The first pause before a task is started again; it doubles with each failure in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause: the fleet promises to work again 5 s after what stopped it is gone.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A task that ran this long was healthy: its next failure is the first of a new row.
const STEADY: Duration = Duration::from_secs(60);

/// So many failures in a row, about half a minute of them, and the process is not live: perhaps a
/// fresh one does better.
const HOPELESS: u32 = 20;

/// In which order tasks stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Does the work: asked to finish first.
    Work,
    /// The work leans on it: asked to end when all work is finished.
    Support,
}

/// The tasks of a process. Clones share them.
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
    /// It runs.
    Running,
    /// It failed and is about to be started again.
    Failed {
        /// Failures in a row.
        failures: u32,
    },
    /// It was asked to end and did.
    Finished,
    /// It was asked to end, and failed while ending.
    Unfinished,
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

    /// Runs what `factory` makes, again and again, until the stage stops. The token tells when.
    pub(crate) fn spawn<F, T>(&self, stage: Stage, name: &'static str, factory: F)
    where
        F: Fn(CancellationToken) -> T + Send + Sync + 'static,
        T: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let group = self.group(stage);
        let place = {
            let mut states = self.lock();
            states.push((name, TaskState::Running));
            states.len() - 1
        };
        let task = Task { tasks: self.clone(), name, place, stopping: group.stopping.clone() };
        let supervisor = task.supervise(Arc::new(factory));
        // What is lost with the handle is only the way to abort it; the runtime's end does that.
        drop(group.tracker.spawn(supervisor));
    }

    /// Cancelled when a stage is asked to stop.
    pub(crate) fn stopping(&self, stage: Stage) -> CancellationToken {
        self.group(stage).stopping.clone()
    }

    /// Stops the work, waits for it, then does the same with what it leaned on. True if every task
    /// finished well.
    pub(crate) async fn drain(&self) -> bool {
        for stage in [Stage::Work, Stage::Support] {
            let group = self.group(stage);
            group.stopping.cancel();
            group.tracker.close();
            group.tracker.wait().await;
        }
        self.lock().iter().all(|(_, state)| *state == TaskState::Finished)
    }

    /// The names of tasks that have not ended.
    pub(crate) fn running(&self) -> Vec<&'static str> {
        let running =
            |state: &TaskState| matches!(state, TaskState::Running | TaskState::Failed { .. });
        self.lock().iter().filter(|(_, state)| running(state)).map(|(name, _)| *name).collect()
    }

    /// Every task with its state, in the order of their starts.
    pub(crate) fn states(&self) -> Vec<(&'static str, TaskState)> {
        self.lock().clone()
    }

    /// False when some task fails again and again.
    pub(crate) fn live(&self) -> bool {
        let hopeless = |state: &TaskState| matches!(state, TaskState::Failed { failures } if *failures >= HOPELESS);
        !self.lock().iter().any(|(_, state)| hopeless(state))
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

/// One supervised task.
struct Task {
    tasks: Tasks,
    name: &'static str,
    /// Where its state is; two tasks may have one name.
    place: usize,
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
            self.set(TaskState::Running);
            let began = Instant::now();
            let attempt = {
                let (factory, stopping) = (Arc::clone(&factory), stopping.clone());
                // The factory runs inside the task: its panics are contained as well.
                async move { factory(stopping).await }
            };
            let (cause, reason) = match AbortOnDropHandle::new(tokio::spawn(attempt)).await {
                Ok(Ok(())) if stopping.is_cancelled() => {
                    self.set(TaskState::Finished);
                    return;
                }
                Ok(Ok(())) => (TaskEnd::Returned, "it returned although it should run".to_owned()),
                Ok(Err(error)) => (TaskEnd::Failed, format!("{error:#}")),
                Err(error) => (TaskEnd::Panicked, panic_text(error)),
            };
            if stopping.is_cancelled() {
                tracing::error!(task = name, reason, "task {name} failed while stopping");
                self.set(TaskState::Unfinished);
                return;
            }
            failures = if began.elapsed() >= STEADY { 1 } else { failures + 1 };
            let pause = pause(failures);
            self.tasks.0.metrics.add(Counter::TaskRestarts { task: name, cause }, 1);
            self.set(TaskState::Failed { failures });
            tracing::error!(
                task = name,
                reason,
                failures,
                pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                "task {name} ended and will be started again"
            );
            let cancelled = stopping.run_until_cancelled(tokio::time::sleep(pause)).await.is_none();
            if cancelled {
                self.set(TaskState::Finished);
                return;
            }
        }
    }

    fn set(&self, state: TaskState) {
        if let Some(entry) = self.tasks.lock().get_mut(self.place) {
            entry.1 = state;
        }
    }
}

/// The text of a panic's payload, where it is one that stands in the code. A formatted one may quote
/// what somebody said (slicing inside of a character quotes the whole string): the place tells enough.
pub(crate) fn payload_text(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("its text may quote data")
}

fn panic_text(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(payload) => format!("it panicked: {}", payload_text(&*payload)),
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

    /// A task that ends in a given way at first and then runs until it is stopped. Each start is
    /// reported.
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
    async fn a_panicking_task_is_counted_and_started_again() {
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
    async fn a_task_that_returns_or_fails_before_its_time_is_started_again() {
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
    async fn a_panicking_task_does_not_disturb_its_neighbour() {
        let tasks = Tasks::new(Metrics::new());
        let (mut bad, factory) = recovering(|start| (start < 3).then(|| panic!("bad")));
        tasks.spawn(Stage::Work, "bad", factory);
        let (mut good, factory) = recovering(|_| None);
        tasks.spawn(Stage::Work, "good", factory);
        while bad.recv().await != Some(3) {}
        assert_eq!(good.recv().await, Some(0));
        assert!(good.try_recv().is_err(), "the neighbour was started twice");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_never_recovers_makes_the_process_not_live_and_can_still_be_stopped() {
        let tasks = Tasks::new(Metrics::new());
        let (mut starts, factory) = recovering(|_| Some(Err(anyhow::anyhow!("broken"))));
        tasks.spawn(Stage::Work, "t", factory);
        assert_eq!(starts.recv().await, Some(0));
        assert!(tasks.live());
        while starts.recv().await != Some(HOPELESS) {}
        // The start after the last failure is reported while the state says "running"; the next
        // failure follows at once, in paused time before anything else.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!tasks.live());
        assert!(tasks.drain().await);
    }

    #[tokio::test(start_paused = true)]
    async fn support_ends_only_after_all_work_has_finished() {
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
        tasks.stopping(Stage::Work).cancelled().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!tasks.stopping(Stage::Support).is_cancelled());
        finish.send(true).expect("the consumer listens");
        assert!(drain.await.expect("no panic"));
        assert!(tasks.running().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_while_stopping_is_not_a_clean_drain() {
        let tasks = Tasks::new(Metrics::new());
        tasks.spawn(Stage::Work, "t", |stopping| async move {
            stopping.cancelled().await;
            anyhow::bail!("the last batch was lost")
        });
        assert!(!tasks.drain().await);
        assert_eq!(tasks.states(), [("t", TaskState::Unfinished)]);
    }

    #[test]
    fn pauses_double_up_to_a_cap() {
        let pauses: Vec<u128> = (1..=7).map(|n| pause(n).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }
}
