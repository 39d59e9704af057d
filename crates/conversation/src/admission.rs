//! Admitting a Redis server: its reign is compared with the one that PostgreSQL remembers.
//!
//! A server that restarted or was promoted may have forgotten writes, so every hot copy made
//! before is void: a new epoch says so before the connection is used.

use std::future::Future;
use std::pin::Pin;

use archive::{Archive, EpochChange};
use hot_store::Reign;
use metrics::{Counter, Metrics};

use crate::Fresh;

type Admitted = Pin<Box<dyn Future<Output = Result<(), archive::Error>> + Send>>;

/// Why a visitor may not use a Redis.
#[derive(Debug, thiserror::Error)]
pub enum NotTheFleets {
    /// The workers use another one, or it has restarted and none of them has noticed yet.
    #[error("it is not the Redis that the fleet uses")]
    AnotherReign,
    /// PostgreSQL, which knows, could not be asked.
    #[error(transparent)]
    Archive(#[from] archive::Error),
}

/// What [`hot_store::HotStore::open`] asks before it uses a connection, and every second after.
pub fn admission(
    archive: Archive,
    metrics: Metrics,
    fresh: Fresh,
) -> impl Fn(Reign) -> Admitted + Send + Sync + 'static {
    move |reign| {
        let (archive, metrics, fresh) = (archive.clone(), metrics.clone(), fresh.clone());
        Box::pin(async move {
            if archive.enter_reign(&reign.to_string(), fresh.draw()).await? == EpochChange::Changed
            {
                metrics.add(Counter::HotEpochChanges, 1);
                tracing::warn!(%reign, "Redis is not the server it was: every hot copy is void");
            }
            Ok(())
        })
    }
}

/// The admission of those who only look: it compares and changes nothing, so that a mistyped URL does
/// not void the fleet's hot copies.
pub fn visit(
    archive: Archive,
) -> impl Fn(Reign) -> Pin<Box<dyn Future<Output = Result<(), NotTheFleets>> + Send>>
+ Send
+ Sync
+ 'static {
    move |reign| {
        let archive = archive.clone();
        Box::pin(async move {
            if archive.is_reign(&reign.to_string()).await? {
                Ok(())
            } else {
                Err(NotTheFleets::AnotherReign)
            }
        })
    }
}
