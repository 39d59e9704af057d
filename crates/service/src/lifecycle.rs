//! From the start to the exit code: build, run, drain, and their failures.
//!
//! The first signal starts the drain; the second signal, or the deadline, ends it. Signals arrive through
//! a channel, so that a test can drive this state machine without a process.

use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::readiness::Check;
use crate::tasks::{Tasks, panic_text};

/// The name of a signal that requests to stop.
pub type Signal = &'static str;

/// As Docker, Kubernetes and systemd send it.
const TERMINATE: Signal = "SIGTERM";
/// Ctrl-C.
const INTERRUPT: Signal = "SIGINT";
/// The channel of the signals is closed.
const NONE: Signal = "no signal";

/// How a process ended, with its exit code. The codes are stable: scripts depend on them. (2 means
/// invalid settings; the process then ends before it starts anything.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// A signal was received and every task finished.
    Drained = 0,
    /// The process could not start, or a task failed while stopping.
    Failed = 1,
    /// The drain deadline passed before every task had finished.
    Deadline = 3,
    /// A second signal was received before every task had finished.
    Aborted = 4,
}

impl From<End> for ExitCode {
    fn from(end: End) -> Self {
        Self::from(end as u8)
    }
}

/// Runs `build` and the tasks that it has spawned until a signal; then drains.
pub(crate) async fn live(
    tasks: &Tasks,
    check: &Check,
    build: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    signals: &mut mpsc::Receiver<Signal>,
    deadline: Duration,
) -> End {
    // A separate task: its panic is caught, and a signal can abort it.
    let build = AbortOnDropHandle::new(tokio::spawn(build));
    let built = tokio::select! {
        built = build => match built {
            Ok(built) => built,
            Err(error) => Err(anyhow::anyhow!(panic_text(error))),
        },
        signal = signals.recv() => {
            let signal = signal.unwrap_or(NONE);
            tracing::info!(signal, "received {signal} during startup; shutting down");
            return drain(tasks, check, signals, deadline).await;
        }
    };
    if let Err(error) = built {
        let reason = format!("{error:#}");
        tracing::error!(reason, "cannot start: {reason}");
        drain(tasks, check, signals, deadline).await;
        return End::Failed;
    }
    check.ready();
    tracing::info!("started");
    let signal = signals.recv().await.unwrap_or(NONE);
    let limit_s = deadline.as_secs_f64();
    tracing::info!(
        signal,
        limit_s,
        "received {signal}; shutting down within {limit_s} s (drain_deadline)"
    );
    drain(tasks, check, signals, deadline).await
}

async fn drain(
    tasks: &Tasks,
    check: &Check,
    signals: &mut mpsc::Receiver<Signal>,
    deadline: Duration,
) -> End {
    let began = Instant::now();
    check.stopping("stopping");
    let second = async {
        if signals.recv().await.is_none() {
            // The channel is closed: only the deadline can end the drain now.
            std::future::pending::<()>().await;
        }
    };
    let end = tokio::select! {
        // In this order: a drain that completes exactly at the deadline counts as complete.
        biased;
        clean = tasks.drain() => if clean { End::Drained } else { End::Failed },
        () = second => End::Aborted,
        () = tokio::time::sleep(deadline) => End::Deadline,
    };
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (failed, unfinished) = (tasks.failed().join(", "), tasks.running().join(", "));
    match end {
        End::Drained => tracing::info!(took_ms, "shutdown complete after {took_ms} ms"),
        End::Failed => tracing::error!(
            took_ms,
            failed,
            "shutdown finished with errors after {took_ms} ms; failed tasks: {failed}"
        ),
        End::Deadline => tracing::error!(
            took_ms,
            unfinished,
            "shutdown aborted by the drain deadline (drain_deadline) after {took_ms} ms; unfinished \
             tasks: {unfinished}; their unacknowledged messages will be redelivered"
        ),
        End::Aborted => tracing::error!(
            took_ms,
            unfinished,
            "shutdown aborted by a second signal after {took_ms} ms; unfinished tasks: {unfinished}; \
             their unacknowledged messages will be redelivered"
        ),
    }
    end
}

/// Forwards SIGTERM and SIGINT of the operating system.
///
/// # Errors
/// The operating system refuses to report them.
pub fn signals() -> std::io::Result<mpsc::Receiver<Signal>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // The first starts the drain, the second ends it; further ones have no effect.
    let (sender, receiver) = mpsc::channel(2);
    drop(tokio::spawn(async move {
        loop {
            let signal = tokio::select! {
                Some(()) = terminate.recv() => TERMINATE,
                Some(()) = interrupt.recv() => INTERRUPT,
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

    struct Fixture {
        tasks: Tasks,
        readiness: Readiness,
        send: mpsc::Sender<Signal>,
        receive: mpsc::Receiver<Signal>,
    }

    fn fixture() -> Fixture {
        let metrics = Metrics::new();
        let (send, receive) = mpsc::channel(2);
        Fixture {
            tasks: Tasks::new(metrics.clone()),
            readiness: Readiness::new(metrics),
            send,
            receive,
        }
    }

    /// Runs the state machine with a task that takes `work` to finish after its token is cancelled.
    async fn run_with_work(work: Duration, signals: &[Signal]) -> (End, Duration) {
        let Fixture { tasks, readiness, send, mut receive } = fixture();
        tasks.spawn(Stage::Work, "batch", move |stopping| async move {
            stopping.cancelled().await;
            tokio::time::sleep(work).await;
            Ok(())
        });
        for signal in signals {
            send.send(signal).await.expect("room for two");
        }
        let check = readiness.check("process");
        let began = Instant::now();
        let end = live(&tasks, &check, async { Ok(()) }, &mut receive, DEADLINE).await;
        assert!(!readiness.states()["process"].ready);
        (end, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_signal_tasks_finish_and_the_exit_code_is_0() {
        let work = Duration::from_secs(24);
        let (end, took) = run_with_work(work, &[TERMINATE]).await;
        assert_eq!((end, end as u8), (End::Drained, 0));
        assert_eq!(took, work);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_a_drain_that_takes_too_long() {
        let (end, took) = run_with_work(Duration::from_secs(26), &[TERMINATE]).await;
        assert_eq!((end, end as u8), (End::Deadline, 3));
        assert_eq!(took, DEADLINE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_ends_the_drain_at_once() {
        let signals = [TERMINATE, INTERRUPT];
        let (end, took) = run_with_work(Duration::from_secs(10), &signals).await;
        assert_eq!((end, end as u8), (End::Aborted, 4));
        assert_eq!(took, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_aborts_a_start_that_waits_for_a_server() {
        let Fixture { tasks, readiness, send, mut receive } = fixture();
        send.send(INTERRUPT).await.expect("room for two");
        let check = readiness.check("process");
        let build = std::future::pending();
        assert_eq!(live(&tasks, &check, build, &mut receive, DEADLINE).await, End::Drained);
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_fails_or_panics_is_a_failure() {
        for build in [|| anyhow::bail!("the queue is not durable"), || panic!("a bug")] {
            let Fixture { tasks, readiness, send: _send, mut receive } = fixture();
            let check = readiness.check("process");
            let end = live(&tasks, &check, async move { build() }, &mut receive, DEADLINE).await;
            assert_eq!((end, end as u8), (End::Failed, 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_is_ready_only_between_its_start_and_its_stop() {
        let Fixture { tasks, readiness, send, mut receive } = fixture();
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
                send.send(TERMINATE).await.expect("room for two");
            }
        });
        let end = live(&tasks, &check, async { Ok(()) }, &mut receive, DEADLINE).await;
        assert_eq!(end, End::Drained);
        seen.await.expect("it was ready");
        observer.await.expect("no panic");
        assert_eq!(readiness.states()["process"].reason.as_deref(), Some("stopping"));
    }
}
