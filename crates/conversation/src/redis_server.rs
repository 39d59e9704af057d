//! Checking which servers are connected: the identities of Redis (run id and replication id) and PostgreSQL
//! (system identifier, timeline, table `hot_epoch`) are compared with those recorded in PostgreSQL.
//!
//! A Redis that restarted or was promoted may have lost writes, a PostgreSQL that failed over or was restored
//! may have lost commits. So when an identity changes, a new epoch invalidates all hot copies made before, and
//! only then is the connection to Redis used. Until then no reader believes a copy: each read compares
//! PostgreSQL itself.

use std::pin::Pin;

use database::{Database, EpochChange, Recorded};
use hot_store::ServerIdentity;
use metrics::{Counter, EpochCause, Metrics};

use crate::RandomSource;

type Recording = Pin<Box<dyn Future<Output = Result<(), database::Error>> + Send>>;

/// Why a program that only reads must not use this Redis server.
#[derive(Debug, thiserror::Error)]
pub enum UnknownServer {
    /// The workers use another server, or this one restarted and no worker has recorded that yet.
    #[error(
        "its identity (run id, replication id) is not the one that the workers recorded: REDIS_URL names \
         another server than theirs, or the server just restarted"
    )]
    Redis,
    /// PostgreSQL failed over, or was restored or moved, and no worker has recorded that yet.
    #[error(
        "PostgreSQL (system identifier, timeline, table hot_epoch) is not the one that the workers \
         recorded: it just failed over or was restored, and no worker has invalidated the hot copies yet"
    )]
    PostgreSql,
    /// A standby may have old numbers, with which an incomplete copy would look complete.
    #[error("PostgreSQL is a standby, which cannot tell whether a hot copy is complete")]
    Standby,
    /// The recorded identities could not be read from PostgreSQL.
    #[error(transparent)]
    Database(#[from] database::Error),
}

/// The check of a worker. [`hot_store::HotStore::open`] calls it before it uses a connection, and every
/// second after. It records the identities of both servers in PostgreSQL; if one changed, the epoch changes with
/// it, which invalidates all hot copies.
pub fn record_server(
    database: Database,
    metrics: Metrics,
    random: RandomSource,
) -> impl Fn(ServerIdentity) -> Recording + Send + Sync + 'static {
    move |server_identity| {
        let (database, metrics, random) = (database.clone(), metrics.clone(), random.clone());
        Box::pin(async move {
            let identity = server_identity.to_string();
            let changed = match database.record_server_identity(&identity, random.next()).await? {
                EpochChange::Same => None,
                EpochChange::First => {
                    tracing::info!(%server_identity, "first Redis server recorded");
                    Some(EpochCause::First)
                }
                EpochChange::Changed { redis, postgresql } => {
                    if redis {
                        tracing::warn!(
                            %server_identity,
                            "Redis server changed (run id, replication id); all hot copies invalidated"
                        );
                    }
                    if let Some(differences) = &postgresql {
                        tracing::warn!(
                            "PostgreSQL server changed ({differences}); all hot copies invalidated"
                        );
                    }
                    Some(match (redis, postgresql) {
                        (_, None) => EpochCause::Redis,
                        (false, Some(_)) => EpochCause::PostgreSql,
                        (true, Some(_)) => EpochCause::Both,
                    })
                }
            };
            if let Some(cause) = changed {
                metrics.add(Counter::HotEpochChanges { cause }, 1);
            }
            Ok(())
        })
    }
}

/// The check of a program that only reads: it compares the identities with the recorded ones and changes
/// nothing, so that a mistyped URL does not invalidate the fleet's hot copies.
pub fn check_server(
    database: Database,
) -> impl Fn(ServerIdentity) -> Pin<Box<dyn Future<Output = Result<(), UnknownServer>> + Send>>
+ Send
+ Sync
+ 'static {
    move |server_identity| {
        let database = database.clone();
        Box::pin(async move {
            match database.recorded(&server_identity.to_string()).await? {
                Recorded::Both => Ok(()),
                Recorded::NotRedis => Err(UnknownServer::Redis),
                Recorded::NotPostgreSql => Err(UnknownServer::PostgreSql),
                Recorded::Standby => Err(UnknownServer::Standby),
            }
        })
    }
}
