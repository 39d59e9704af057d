//! The bodies of requests and answers: how much of them is in memory, of one and of all together.
//!
//! A request takes memory as bytes arrive, so a client that sends slowly holds no more than it sent. When none is left, the
//! request waits until it gets as much as the largest body at once, from a part of the memory that is kept for that, and
//! releases what it had. So bodies that together are larger than the memory are read one after another: none waits for a
//! rest that another one holds. An answer holds its memory until it is sent.

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

    /// Takes so many bytes if there are as many.
    fn take_at_once(&self, bytes: usize) -> Option<Share> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
        Arc::clone(&self.left).try_acquire_many_owned(units).ok()
    }
}

/// The memory for the bodies of requests.
#[derive(Clone)]
pub(crate) struct RequestMemory {
    /// Taken as bytes arrive.
    arriving: Memory,
    /// Taken for whole bodies.
    whole: Memory,
    /// The size of the largest body.
    largest: usize,
}

impl RequestMemory {
    /// So many bytes for all bodies together, and at least for one of the largest size. Half is kept for whole bodies.
    pub(crate) fn new(bytes: usize, largest: usize) -> Self {
        let whole = largest.max(bytes / 2);
        let arriving = bytes.saturating_sub(whole);
        Self { arriving: Memory::new(arriving), whole: Memory::new(whole), largest }
    }
}

/// What a body that is being read holds.
#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    Arriving(Share),
    Whole(Share),
}

impl Held {
    /// Holds at least so many bytes.
    ///
    /// # Errors
    /// There is not as much; nothing is held.
    async fn grow(self, bytes: usize, memory: &RequestMemory) -> Result<Self, Problem> {
        let whole = async || memory.whole.take(memory.largest).await.map(Self::Whole);
        match self {
            Self::Whole(share) => Ok(Self::Whole(share)),
            Self::Nothing => match memory.arriving.take_at_once(bytes) {
                Some(share) => Ok(Self::Arriving(share)),
                None => whole().await,
            },
            Self::Arriving(mut share) => {
                let missing = bytes.saturating_sub(share.num_permits() * UNIT);
                match memory.arriving.take_at_once(missing) {
                    Some(more) => {
                        share.merge(more);
                        Ok(Self::Arriving(share))
                    }
                    // The share is free as soon as the memory of the whole body is there.
                    None => whole().await,
                }
            }
        }
    }

    /// What a body of so many bytes holds once it is read.
    fn of_read(self, bytes: usize) -> Option<Share> {
        match self {
            Self::Nothing => None,
            Self::Arriving(share) => Some(share),
            Self::Whole(mut share) => {
                shrink(&mut share, bytes);
                Some(share)
            }
        }
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

/// Reads a body.
pub(crate) async fn read(
    memory: &RequestMemory,
    headers: &HeaderMap,
    body: Body,
) -> Result<ReadBody, Problem> {
    let largest = memory.largest;
    let too_large = || {
        let detail = format!(
            "the body is larger than {largest} bytes (VERBATIM_MAX_REQUEST_BYTES); send fewer actions at once"
        );
        Problem::new(Kind::TooLarge, detail)
    };
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut data = body.into_data_stream();
    if length.is_some_and(|length: usize| length > largest) {
        discard(&mut data, largest).await;
        return Err(too_large());
    }
    let (mut bytes, mut held): (Vec<u8>, Held) = (Vec::new(), Held::Nothing);
    loop {
        let chunk = match timeout(STALLED, data.next()).await {
            Ok(None) => {
                let share = held.of_read(bytes.len());
                return Ok(ReadBody { bytes: bytes.into(), share });
            }
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
        held = match held.grow(bytes.len(), memory).await {
            Ok(held) => held,
            Err(busy) => {
                drop(bytes);
                discard(&mut data, largest).await;
                return Err(busy);
            }
        };
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::future::join_all;
    use tokio::sync::mpsc;

    use super::*;

    const LARGEST: usize = 1024 * 1024;

    /// Bodies that come in two parts: all first parts before any second one. What became of each.
    async fn read_all(memory: &RequestMemory, bodies: usize, first: usize) -> Vec<Option<usize>> {
        let (senders, reads): (Vec<_>, Vec<_>) = (0..bodies)
            .map(|_| {
                let (sender, mut receiver) = mpsc::unbounded_channel::<usize>();
                let parts = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
                let parts = parts.map(|bytes| Ok::<_, Infallible>(Bytes::from(vec![b' '; bytes])));
                let memory = memory.clone();
                let read = async move {
                    let read = read(&memory, &HeaderMap::new(), Body::from_stream(parts)).await;
                    read.ok().map(|body| body.bytes.len())
                };
                (sender, tokio::spawn(read))
            })
            .unzip();
        for part in [first, LARGEST - first] {
            for sender in &senders {
                sender.send(part).unwrap();
            }
            tokio::task::yield_now().await;
        }
        drop(senders);
        join_all(reads).await.into_iter().map(Result::unwrap).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_that_are_together_larger_than_the_memory_are_all_read() {
        // The first parts fill all of it.
        let memory = RequestMemory::new(4 * LARGEST, LARGEST);
        assert_eq!(read_all(&memory, 16, LARGEST / 4).await, [Some(LARGEST); 16]);
        // There is memory for one alone.
        let memory = RequestMemory::new(1, LARGEST);
        assert_eq!(read_all(&memory, 16, 1).await, [Some(LARGEST); 16]);
        assert_eq!(memory.arriving.left.available_permits(), 0);
        assert_eq!(memory.whole.left.available_permits(), LARGEST / UNIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_finds_no_memory_in_time_is_refused_and_holds_none() {
        let memory = RequestMemory::new(2 * LARGEST, LARGEST);
        let held = memory.whole.take(LARGEST).await.unwrap();
        let read = read_all(&memory, 5, LARGEST / 4).await;
        assert_eq!(read.iter().flatten().count(), 0, "{read:?}");
        assert_eq!(memory.arriving.left.available_permits(), LARGEST / UNIT);
        drop(held);
        assert_eq!(read_all(&memory, 5, LARGEST / 4).await, [Some(LARGEST); 5]);
    }
}
