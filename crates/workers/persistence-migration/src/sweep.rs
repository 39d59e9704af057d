//! The closing sweep: every second, until nothing is due.

use std::time::Duration;

use conversation::Closer;
use service::Service;

/// Sweeps until the process stops.
pub(crate) fn run(service: &Service, closer: Closer, interval: Duration) {
    service.supervise("closing-sweep", move |stopping| {
        let closer = closer.clone();
        async move {
            while !stopping.is_cancelled() {
                match closer.sweep().await {
                    // More may be due: a sweep is bounded.
                    Ok(swept) if swept.archived + swept.dropped > 0 => continue,
                    Ok(_) => {}
                    Err(error) => {
                        let error: &(dyn std::error::Error + 'static) = &error;
                        tracing::warn!(error, "a closing sweep stopped; the next one goes on");
                    }
                }
                stopping.run_until_cancelled(tokio::time::sleep(interval)).await;
            }
            Ok(())
        }
    });
}
