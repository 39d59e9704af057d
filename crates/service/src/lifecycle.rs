//! From the start to the exit code: build, run, drain, and the ways in which that can go wrong.
//!
//! The first signal begins the drain; the second, or the deadline, ends it. Signals come through a
//! channel, so that all of this is a state machine which a test can drive without a process.

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::readiness::Check;
use crate::tasks::Tasks;

/// A request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGTERM, from whatever manages the process.
    Terminate,
    /// SIGINT: Ctrl-C.
    Interrupt,
}

/// How a process ended. Scripts read the codes: they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All work was finished after a signal.
    Drained,
    /// It could not be built, or a task failed while stopping.
    Failed,
    /// The deadline came before all work was finished.
    Deadline,
    /// A second signal came before all work was finished.
    Aborted,
}

impl End {
    /// 0 after a clean drain, 1 after a failure, 3 after the deadline, 4 after a second signal
    /// (2 is the code for bad settings, given before any of this begins).
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Drained => 0,
            Self::Failed => 1,
            Self::Deadline => 3,
            Self::Aborted => 4,
        }
    }
}

impl From<End> for ExitCode {
    fn from(end: End) -> Self {
        Self::from(end.code())
    }
}

/// Runs `build`, then whatever tasks it has spawned, until a signal; then drains.
pub(crate) async fn live(
    tasks: &Tasks,
    check: &Check,
    build: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    signals: &mut mpsc::Receiver<Signal>,
    deadline: Duration,
) -> End {
    // A task of its own, so that a panic in it is contained and an endless one can be cut.
    let build = AbortOnDropHandle::new(tokio::spawn(build));
    let built = tokio::select! {
        built = build => match built {
            Ok(built) => built,
            Err(error) => Err(anyhow::anyhow!(error)),
        },
        signal = signals.recv() => {
            tracing::info!(?signal, "stopping before the start was complete");
            return drain(tasks, check, signals, deadline).await;
        }
    };
    if let Err(error) = built {
        tracing::error!(reason = format!("{error:#}"), "cannot start");
        drain(tasks, check, signals, deadline).await;
        return End::Failed;
    }
    check.ready();
    tracing::info!("started");
    let signal = signals.recv().await;
    tracing::info!(?signal, "stopping");
    drain(tasks, check, signals, deadline).await
}

async fn drain(
    tasks: &Tasks,
    check: &Check,
    signals: &mut mpsc::Receiver<Signal>,
    deadline: Duration,
) -> End {
    let began = Instant::now();
    check.stopping();
    let second = async {
        if signals.recv().await.is_none() {
            // No more signals can come; the deadline remains.
            std::future::pending::<()>().await;
        }
    };
    let end = tokio::select! {
        // In this order: work that is finished at the deadline is finished.
        biased;
        clean = tasks.drain() => if clean { End::Drained } else { End::Failed },
        () = second => End::Aborted,
        () = tokio::time::sleep(deadline) => End::Deadline,
    };
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let unfinished = tasks.running().join(", ");
    match end {
        End::Drained => tracing::info!(took_ms, "drained in {took_ms} ms"),
        End::Failed => tracing::error!(took_ms, "stopped after {took_ms} ms; not all went well"),
        End::Deadline => tracing::error!(
            took_ms,
            unfinished,
            "stopped at the drain deadline with work unfinished: it will be delivered again"
        ),
        End::Aborted => tracing::error!(
            took_ms,
            unfinished,
            "stopped by a second signal with work unfinished: it will be delivered again"
        ),
    }
    end
}

/// Forwards the signals of the operating system.
pub(crate) fn signals() -> std::io::Result<mpsc::Receiver<Signal>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Two are all that matter.
    let (sender, receiver) = mpsc::channel(2);
    drop(tokio::spawn(async move {
        loop {
            let signal = tokio::select! {
                Some(()) = terminate.recv() => Signal::Terminate,
                Some(()) = interrupt.recv() => Signal::Interrupt,
                else => return,
            };
            if sender.send(signal).await.is_err() {
                return;
            }
        }
    }));
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use metrics::Metrics;

    use super::*;
    use crate::readiness::Readiness;
    use crate::tasks::Stage;

    const DEADLINE: Duration = Duration::from_secs(25);

    struct Stand {
        tasks: Tasks,
        readiness: Readiness,
        send: mpsc::Sender<Signal>,
        receive: mpsc::Receiver<Signal>,
    }

    fn stand() -> Stand {
        let metrics = Metrics::new();
        let (send, receive) = mpsc::channel(2);
        Stand {
            tasks: Tasks::new(metrics.clone()),
            readiness: Readiness::new(metrics),
            send,
            receive,
        }
    }

    /// Runs the state machine over a task that needs `work` to finish once it is asked to.
    async fn run_with_work(work: Duration, signals: &[Signal]) -> (End, Duration) {
        let Stand { tasks, readiness, send, mut receive } = stand();
        tasks.spawn(Stage::Work, "batch", move |stopping| async move {
            stopping.cancelled().await;
            tokio::time::sleep(work).await;
            Ok(())
        });
        for signal in signals {
            send.send(*signal).await.expect("room for two");
        }
        let check = readiness.check("process");
        let began = Instant::now();
        let end = live(&tasks, &check, async { Ok(()) }, &mut receive, DEADLINE).await;
        assert!(!readiness.states()["process"].ready);
        (end, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_lets_work_finish_and_exits_with_zero() {
        let work = Duration::from_secs(24);
        let (end, took) = run_with_work(work, &[Signal::Terminate]).await;
        assert_eq!((end, end.code()), (End::Drained, 0));
        assert_eq!(took, work);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_a_drain_that_takes_too_long() {
        let (end, took) = run_with_work(Duration::from_secs(26), &[Signal::Terminate]).await;
        assert_eq!((end, end.code()), (End::Deadline, 3));
        assert_eq!(took, DEADLINE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_ends_the_drain_at_once() {
        let signals = [Signal::Terminate, Signal::Interrupt];
        let (end, took) = run_with_work(Duration::from_secs(10), &signals).await;
        assert_eq!((end, end.code()), (End::Aborted, 4));
        assert_eq!(took, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_cuts_a_start_that_waits_for_a_server() {
        let Stand { tasks, readiness, send, mut receive } = stand();
        send.send(Signal::Interrupt).await.expect("room for two");
        let check = readiness.check("process");
        let build = std::future::pending();
        assert_eq!(live(&tasks, &check, build, &mut receive, DEADLINE).await, End::Drained);
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_fails_or_panics_is_a_failure() {
        for build in [|| anyhow::bail!("the queue would lose messages"), || panic!("a bug")] {
            let Stand { tasks, readiness, send: _send, mut receive } = stand();
            let check = readiness.check("process");
            let end = live(&tasks, &check, async move { build() }, &mut receive, DEADLINE).await;
            assert_eq!((end, end.code()), (End::Failed, 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_is_ready_only_between_its_start_and_its_stop() {
        let Stand { tasks, readiness, send, mut receive } = stand();
        let check = readiness.check("process");
        assert!(!readiness.states()["process"].ready);
        let (observe, seen) = tokio::sync::oneshot::channel();
        let observer = tokio::spawn({
            let readiness = readiness.clone();
            async move {
                while !readiness.states()["process"].ready {
                    tokio::task::yield_now().await;
                }
                observe.send(()).expect("the test listens");
                send.send(Signal::Terminate).await.expect("room for two");
            }
        });
        let end = live(&tasks, &check, async { Ok(()) }, &mut receive, DEADLINE).await;
        assert_eq!(end, End::Drained);
        seen.await.expect("it was ready");
        observer.await.expect("no panic");
        assert_eq!(readiness.states()["process"].reason.as_deref(), Some("stopping"));
    }
}
