//! The state of a session.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use domain::failure::Unavailable;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::hold::Hold;
use super::phase::Phase;
use crate::Handler;
use crate::body_limit::BodyLimit;
use crate::connection::Connection;
use crate::consumer::batch::{Batch, Finished, Received};
use crate::consumer::batch_builder::BatchBuilder;
use crate::consumer::end::End;
use crate::consumer::prefetch::Prefetch;
use crate::consumer::settlement::Copy;
use crate::consumer::shared::Shared;
use crate::consumer::unacked::{Tag, UnackedDeliveries};

pub(in crate::consumer) struct Session<H: Handler> {
    pub(super) shared: Arc<Shared<H>>,
    pub(super) shutdown: CancellationToken,
    pub(super) connection: Connection,
    pub(super) channel: lapin::Channel,
    pub(super) stream: lapin::Consumer,
    pub(super) phase: Phase,
    pub(super) prefetch: Prefetch,
    /// The prefetch with which the consumer was registered.
    pub(super) registered: u16,
    pub(super) unacked: UnackedDeliveries,
    /// Which bodies are received, and which deliveries that are being handled have large ones.
    pub(super) limit: BodyLimit,
    pub(super) large: HashSet<Tag>,
    /// Deliveries whose large bodies were left out, because another consumer of this process has one.
    pub(super) waiting_for_memory: VecDeque<Tag>,
    /// Deliveries that were requeued over the byte limit and are not logged yet.
    pub(super) over_byte_limit: usize,
    pub(super) batch_builder: BatchBuilder<Received>,
    /// Batches being handled, and the probe of a hold.
    pub(super) tasks: JoinSet<Report<H::Item>>,
    pub(super) in_flight: usize,
    pub(super) hold: Option<Hold<H::Item>>,
    /// Of a slow queue: the message that is being handled.
    pub(super) slow: SlowMessage,
    /// When the last delivery was received or the last batch finished.
    pub(super) last_progress: Instant,
    /// When the depth of the queue was last requested.
    pub(super) last_depth_request: Instant,
    pub(super) last_suspect_check: Instant,
    pub(super) checks: tokio::time::Interval,
}

/// A message of a slow queue that is being handled: what is needed to requeue it as a new copy.
#[derive(Default)]
pub(super) struct SlowMessage {
    pub(super) tags: Vec<Tag>,
    pub(super) ids: Vec<String>,
    pub(super) copies: Vec<Copy>,
}

pub(super) enum Report<I> {
    Finished(Finished),
    Held(Batch<I>, Unavailable),
    Probed(Result<(), Unavailable>),
    RequestSent(Result<(), End>),
}
