//! Whether a server is available, in `/readyz` and in the metrics.

use std::error::Error;
use std::time::Duration;

use backon::ExponentialBuilder;
use domain::causes::with_causes;
use domain::failure::Dependency;
use domain::failure_policy::LONGEST_PAUSE;
use metrics::{Gauge, Metrics};
use service::{Check, Service};

/// How often PostgreSQL and RabbitMQ are probed, and Redis while it is unavailable.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Sets whether a server is available. `fault`: why it is not.
pub(crate) fn set_state(
    check: &Check,
    metrics: &Metrics,
    dependency: Dependency,
    fault: Option<String>,
) {
    metrics.set(Gauge::DependencyUp { dependency }, if fault.is_none() { 1.0 } else { 0.0 });
    match fault {
        None => check.ready(),
        Some(reason) => check.not_ready(reason),
    }
}

/// Maintains a check by probing a server until the process stops.
pub(crate) fn watch<P, F, E>(
    service: &Service,
    task: &'static str,
    check: &'static str,
    dependency: Dependency,
    probe: P,
) where
    P: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Error + Send,
{
    let metrics = service.metrics().clone();
    let run = service.checked(check, move |stopping, check| {
        let (metrics, probe) = (metrics.clone(), probe.clone());
        async move {
            let watch = async {
                loop {
                    let fault = probe().await.err().map(|error| with_causes(&error));
                    set_state(&check, &metrics, dependency, fault);
                    tokio::time::sleep(PROBE_EVERY).await;
                }
            };
            stopping.run_until_cancelled(watch).await;
            Ok(())
        }
    });
    service.support(task, run);
}

/// The pauses of a start that waits for an unavailable server. Jitter at most doubles a pause, so it is at most
/// [`LONGEST_PAUSE`], 1 s.
pub(crate) fn pauses() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(LONGEST_PAUSE / 2)
        .with_jitter()
        .without_max_times()
}
