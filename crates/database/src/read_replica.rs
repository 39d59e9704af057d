//! A read replica of PostgreSQL (a streaming standby), as the conversation-api reads it.

use std::sync::Arc;

use domain::ids::TenantId;
use sqlx::FromRow;

use crate::connect::read_only;
use crate::wal_position::{STATE, StateRow, corrupt};
use crate::{
    ApiDatabase, Database, History, Limits, Lsn, ReplicaState, ReplicaStates, Result, SchemaError,
    Settings, Statements, TenantKey, WalPosition,
};

/// The position up to which the primary has flushed its log, which is where the last commit ends; nulls on a standby.
/// The insert position is not it: it is behind the header of a page that no record has begun.
const POSITION: &str = "
    SELECT system_identifier AS system, left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline,
           (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint AS lsn
    FROM pg_control_system() WHERE NOT pg_is_in_recovery()";

#[derive(FromRow)]
struct PositionRow {
    system: i64,
    timeline: String,
    lsn: i64,
}

impl ApiDatabase {
    /// How far this primary has written its log.
    ///
    /// # Errors
    /// PostgreSQL failed, or it is a standby.
    pub async fn wal_position(&self) -> Result<WalPosition> {
        let rows: Vec<PositionRow> = self.untenanted().values(sqlx::query_as(POSITION)).await?;
        let row = rows.into_iter().next().ok_or_else(read_only)?;
        let timeline =
            u32::from_str_radix(&row.timeline, 16).map_err(|_| corrupt(&row.timeline))?;
        let history = History { system: row.system.cast_unsigned(), timeline };
        Ok(WalPosition { history, lsn: Lsn(row.lsn.cast_unsigned()) })
    }
}

/// The connections of the role of the API to a read replica. Cheap to clone.
#[derive(Clone)]
pub struct ApiReadReplica(ApiDatabase);

impl ApiReadReplica {
    /// Creates the pool. It connects on first use.
    ///
    /// # Errors
    /// The URL cannot be parsed.
    pub fn open(settings: &Settings, key: TenantKey, statements: Statements) -> Result<Self> {
        ApiDatabase::open(settings, key, statements).map(Self)
    }

    /// The same server, on one connection of its own, with these limits: an answer does not wait for those to others.
    #[must_use]
    pub fn apart(&self, limits: Limits) -> Self {
        Self(self.0.apart(limits))
    }

    /// The rows of this tenant. Each transaction first notes the state of the server, so that whoever has the rows can
    /// tell how old they may be.
    #[must_use]
    pub fn of(&self, tenant: &TenantId, states: &Arc<ReplicaStates>) -> Database {
        self.0.of(tenant).noting(Arc::clone(states))
    }

    /// What the server says of itself.
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn state(&self) -> Result<ReplicaState> {
        let row: StateRow = self.0.untenanted().value(sqlx::query_as(STATE)).await?;
        row.state()
    }

    /// As [`ApiDatabase::verify`].
    ///
    /// # Errors
    /// As there.
    pub async fn verify(&self) -> Result<(), SchemaError> {
        self.0.verify().await
    }
}
