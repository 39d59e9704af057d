//! The bodies of requests and answers: how much of them is in memory, of one and of all together.
//!
//! Memory is taken as bytes arrive, so a client that sends slowly holds no more than it sent. An answer holds its memory
//! until it is sent.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::problem::{Kind, Problem};

/// The unit in which memory is counted, so that any amount of it is a number of permits.
const UNIT: usize = 1024;

/// How long a client may send nothing in the middle of a body.
const STALLED: Duration = Duration::from_secs(10);

/// How long a request waits for memory that others have. Waiting longer would make each of them wait for the others.
const WAIT_FOR_MEMORY: Duration = Duration::from_secs(5);

/// How much of a body that is too large is read and thrown away, in multiples of the largest one, and for how long. A
/// connection that is closed before its client has sent everything is reset, and the client sees no answer.
const DISCARDED: usize = 8;
const DISCARDED_FOR: Duration = Duration::from_secs(5);

/// An amount of memory that is shared.
#[derive(Clone)]
pub(crate) struct Memory {
    left: Arc<Semaphore>,
    units: u32,
}

/// A share of it, until it is dropped.
pub(crate) type Share = OwnedSemaphorePermit;

impl Memory {
    pub(crate) fn new(bytes: usize) -> Self {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let units = units.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self { left: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Takes so many bytes, or all there are if that is less; waits for them.
    pub(crate) async fn take(&self, bytes: usize) -> Result<Share, Problem> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units);
        let taken =
            timeout(WAIT_FOR_MEMORY, Arc::clone(&self.left).acquire_many_owned(units)).await;
        taken.ok().and_then(Result::ok).ok_or_else(|| {
            let detail = "too many large requests at once; repeat the request";
            Problem::new(Kind::Busy, detail).retry_after(Duration::from_secs(2))
        })
    }
}

/// Frees what an answer of so many bytes does not need.
pub(crate) fn shrink(share: &mut Share, bytes: usize) {
    let surplus = share.num_permits().saturating_sub(bytes.div_ceil(UNIT));
    drop(share.split(surplus));
}

/// A body, and its share of the memory.
#[derive(Default)]
pub(crate) struct ReadBody {
    pub(crate) bytes: Bytes,
    pub(crate) share: Option<Share>,
}

/// Reads a body of at most this size.
pub(crate) async fn read(
    memory: &Memory,
    largest: usize,
    headers: &HeaderMap,
    body: Body,
) -> Result<ReadBody, Problem> {
    let too_large = || {
        let detail =
            "the body is larger than VERBATIM_MAX_REQUEST_BYTES; send fewer actions at once";
        Problem::new(Kind::TooLarge, detail)
    };
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut data = body.into_data_stream();
    if length.is_some_and(|length: usize| length > largest) {
        discard(&mut data, largest).await;
        return Err(too_large());
    }
    let (mut bytes, mut share): (Vec<u8>, Option<Share>) = (Vec::new(), None);
    loop {
        let chunk = match timeout(STALLED, data.next()).await {
            Ok(None) => return Ok(ReadBody { bytes: bytes.into(), share }),
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(error))) => {
                let detail = "the body ended early, or its chunks are malformed; send it again";
                return Err(Problem::new(Kind::Invalid, detail).caused_by(&error));
            }
            Err(_) => {
                let detail =
                    format!("nothing of the body came for {} s; send it again", STALLED.as_secs());
                return Err(Problem::new(Kind::Invalid, detail));
            }
        };
        if bytes.len() + chunk.len() > largest {
            discard(&mut data, largest).await;
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
        let held = share.as_ref().map_or(0, Share::num_permits) * UNIT;
        if bytes.len() > held {
            match (memory.take(bytes.len() - held).await, &mut share) {
                (Ok(more), Some(share)) => share.merge(more),
                (Ok(more), None) => share = Some(more),
                (Err(busy), _) => {
                    // Others wait for this memory.
                    drop((bytes, share));
                    discard(&mut data, largest).await;
                    return Err(busy);
                }
            }
        }
    }
}

/// Reads a body to its end, or up to some multiple of the largest one, and throws it away.
async fn discard(data: &mut axum::body::BodyDataStream, largest: usize) {
    let limit = largest.saturating_mul(DISCARDED);
    let all = async {
        let mut read = 0;
        while let Some(Ok(chunk)) = data.next().await {
            read += chunk.len();
            if read > limit {
                break;
            }
        }
    };
    // What has not come by then is not waited for.
    timeout(DISCARDED_FOR, all).await.ok();
}

/// The body of an answer, which holds its share until all of it is sent.
pub(crate) fn holding(bytes: Vec<u8>, share: Option<Share>) -> Body {
    let Some(share) = share else { return Body::from(bytes) };
    // The second poll comes when the first part has been written.
    let parts = futures_util::stream::unfold((Some(bytes), share), |(bytes, share)| async move {
        let bytes = bytes?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(bytes)), (None, share)))
    });
    Body::from_stream(parts)
}
