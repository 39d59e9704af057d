//! Requests whose answers may be stale: from the read replica where it may answer, else from the primary.
//!
//! Whatever fails on the replica is repeated on the primary, also a query that PostgreSQL cancelled because of a conflict
//! with recovery. Every answer says which server it is from, and how stale it may be.

use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue};
use database::WalPosition;
use metrics::{Counter, ReadServer};

use crate::after;
use crate::endpoint::{Answer, Call, Rows, StaleHandler};
use crate::problem::Problem;
use crate::read_replica::{NotAdmitted, ReadReplica};

/// Which server an answer is from: `primary` or `replica`.
pub(crate) const SERVED_BY: HeaderName = HeaderName::from_static("verbatim-served-by");

/// How stale an answer of the replica may be, in milliseconds.
pub(crate) const LAG: HeaderName = HeaderName::from_static("verbatim-replica-lag-ms");

/// Runs a handler whose answer may be stale.
pub(crate) async fn answer(call: Call, handler: StaleHandler) -> Result<Answer, Problem> {
    let after = after::of_request(&call.headers)?;
    let api = Arc::clone(&call.api);
    let server = match &api.read_replica {
        None => ReadServer::Primary,
        Some(replica) => match replica.admits(after).await {
            Err(NotAdmitted::Unusable) => ReadServer::PrimaryUnusable,
            Err(NotAdmitted::Behind) => ReadServer::PrimaryBehind,
            Ok(()) => match of_replica(replica, &call, handler, after).await {
                Some(answered) => {
                    api.metrics.add(Counter::StaleReads { server: ReadServer::Replica }, 1);
                    return answered;
                }
                None => ReadServer::PrimaryRepeated,
            },
        },
    };
    api.metrics.add(Counter::StaleReads { server }, 1);
    let answer = handler(call, Rows::of_primary(api.database.clone())).await?;
    Ok(answer.with_header(SERVED_BY, HeaderValue::from_static("primary")))
}

/// The answer of the replica; `None`: the primary has to answer.
async fn of_replica(
    replica: &ReadReplica,
    call: &Call,
    handler: StaleHandler,
    after: Option<WalPosition>,
) -> Option<Result<Answer, Problem>> {
    let rows = Rows::of_replica(replica.connections());
    let answered = tokio::select! {
        answered = handler(call.clone(), rows.clone()) => answered,
        () = replica.lost() => return None,
    };
    let answer = match answered {
        Ok(answer) => answer,
        Err(problem) if problem.kind.parts().0.is_server_error() => {
            let cause = problem.cause.as_deref().unwrap_or_default();
            tracing::debug!(
                error = cause,
                "a read of the replica failed; repeating it on the primary"
            );
            return None;
        }
        Err(problem) => return Some(Err(problem)),
    };
    let lag = replica.lag_of(&rows.states(), after)?;
    // Rounded up: the number is not too small.
    let milliseconds = u64::try_from(lag.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
    let answer = answer.with_header(SERVED_BY, HeaderValue::from_static("replica"));
    Some(Ok(answer.with_header(LAG, milliseconds.into())))
}
