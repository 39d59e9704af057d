//! The bodies of requests: how much of them is in memory, of one request and of all together.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::problem::{Kind, Problem};

/// The unit in which memory is counted, so that any amount of it is a number of permits.
const UNIT: usize = 1024;

/// How much of a body that is too large is read and thrown away, in multiples of the largest one, and for how long. A
/// connection that is closed before its client has sent everything is reset, and the client sees no answer.
const DISCARDED: usize = 8;
const DISCARDED_FOR: Duration = Duration::from_secs(5);

/// The limits of bodies, and what is left.
pub(crate) struct Bodies {
    /// Of one request.
    largest: usize,
    /// Of all requests together, in units.
    left: Arc<Semaphore>,
}

/// A body, and its share of the memory until it is dropped.
#[derive(Default)]
pub(crate) struct ReadBody {
    pub(crate) bytes: Bytes,
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    /// With these limits for one request and for all together, which is at least as much.
    pub(crate) fn new(largest: usize, together: usize) -> Self {
        let left = together.max(largest).div_ceil(UNIT);
        Self { largest, left: Arc::new(Semaphore::new(left.min(Semaphore::MAX_PERMITS))) }
    }

    /// Reads a body. Waits while the bodies of other requests take all of the memory.
    pub(crate) async fn read(&self, headers: &HeaderMap, body: Body) -> Result<ReadBody, Problem> {
        let too_large = || {
            let detail =
                "the body is larger than VERBATIM_MAX_REQUEST_BYTES; send fewer actions at once";
            Problem::new(Kind::TooLarge, detail)
        };
        let length = headers
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        // Without a length it may have all.
        let reserved = length.unwrap_or(self.largest);
        if reserved > self.largest {
            discard(body, self.largest.saturating_mul(DISCARDED)).await;
            return Err(too_large());
        }
        let units = u32::try_from(reserved.div_ceil(UNIT)).map_err(|_| too_large())?;
        let permit = Arc::clone(&self.left).acquire_many_owned(units).await.ok();
        match to_bytes(body, self.largest).await {
            Ok(bytes) => Ok(ReadBody { bytes, permit }),
            // Only a body without a length can be found to be too large here.
            Err(_) if length.is_none() => Err(too_large()),
            Err(error) => {
                let detail = "the body ended early; send it again";
                Err(Problem::new(Kind::Invalid, detail).caused_by(&error))
            }
        }
    }
}

/// Reads a body to its end, or up to so many bytes, and throws it away.
async fn discard(body: Body, limit: usize) {
    let mut data = body.into_data_stream();
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
