//! Checkpoints of the audit log: once a minute one of the replicas records the ends of all chains, and logs the hash, so
//! that a later change of the log is found with what was logged.

use database::CHECKPOINT_EVERY;
use domain::causes::with_causes;
use service::Service;
use tokio::time::{MissedTickBehavior, interval};
use worker::Stores;

/// Makes checkpoints until the process stops.
pub(crate) fn run(service: &Service, stores: &Stores) {
    let database = stores.database.clone();
    service.support("audit-checkpoints", move |stopping| {
        let database = database.clone();
        async move {
            let checkpoints = async {
                let mut ticks = interval(CHECKPOINT_EVERY);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    match database.checkpoint_audit().await {
                        Ok(Some(made)) => tracing::info!(
                            checkpoint = made.n,
                            hash = made.hash,
                            chains = made.chains,
                            "audit log: checkpoint {}:{} of {} chains",
                            made.n,
                            made.hash,
                            made.chains
                        ),
                        Ok(None) => {}
                        Err(error) => tracing::warn!(
                            error = with_causes(&error),
                            "the checkpoint of the audit log failed; the next attempt is in a minute"
                        ),
                    }
                }
            };
            stopping.run_until_cancelled(checkpoints).await;
            Ok(())
        }
    });
}
