//! What all sessions of a consumer share.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use domain::clock::Clock;
use domain::decode::Extent;
use domain::failure::{Dependency, Unavailable};
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::broker_requeues::BrokerRequeues;
use super::bytes_in_calls::BytesInCalls;
use super::observer::Observer;
use super::receipt_times::ReceiptTimes;
use super::settings::{ConsumerState, Settings};
use crate::connection::Endpoints;
use crate::reply::Replier;
use crate::source::{FailurePolicy, Source};
use crate::{Handler, Publisher};

pub(super) struct Shared<H> {
    pub(super) source: Source,
    pub(super) handler: H,
    /// Of a slow queue: the handlers with longer time limits, in order, for those for which the first was too short.
    pub(super) longer: Vec<H>,
    pub(super) endpoints: Endpoints,
    pub(super) publisher: Publisher,
    pub(super) replier: Replier,
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    pub(super) observer: Observer,
    pub(super) state: watch::Sender<ConsumerState>,
    pub(super) broker_requeues: BrokerRequeues,
    pub(super) receipt_times: ReceiptTimes,
    /// The calls of the handler that have begun and not ended, also those of earlier sessions.
    pub(super) calls: TaskTracker,
    /// The room for the bodies of these calls.
    pub(super) bytes_in_calls: BytesInCalls,
}

impl<H: Handler> Shared<H> {
    /// Checks whether a dependency is available again. For RabbitMQ this always succeeds: the next
    /// attempt to publish the unconfirmed copies is the check.
    pub(super) async fn probe(&self, dependency: Dependency) -> Result<(), Unavailable> {
        if dependency == Dependency::RabbitMq {
            return Ok(());
        }
        let probe = AssertUnwindSafe(async { self.handler.probe(dependency).await });
        probe.catch_unwind().await.unwrap_or_else(|_| {
            Err(Unavailable { dependency, source: self.observer.panicked("probing").into() })
        })
    }

    /// How much work a body is for the handler.
    pub(super) fn extent(&self, body: &[u8]) -> Extent {
        let extent = catch_unwind(AssertUnwindSafe(|| self.handler.extent(body)));
        extent.unwrap_or_else(|_| {
            self.observer.panicked("measuring");
            Extent::of_one(body)
        })
    }

    /// The handler of a message that was moved to the slow queue this often because it was too slow.
    pub(super) fn handler(&self, slow_level: u32) -> &H {
        let longer = slow_level.checked_sub(2).and_then(|n| usize::try_from(n).ok());
        let longer = longer.and_then(|n| self.longer.get(n).or_else(|| self.longer.last()));
        longer.unwrap_or(&self.handler)
    }

    /// How long deliveries are held while a dependency is unavailable; `None`: until they expire one by one.
    pub(super) fn hold_limit(&self) -> Option<Duration> {
        match self.source.failure_policy {
            FailurePolicy::Expire => None,
            FailurePolicy::DeadLetter(_) | FailurePolicy::RetryForever(_) => {
                Some(self.settings.hold_limit)
            }
        }
    }

    pub(super) async fn probe_all(&self) -> Result<(), Unavailable> {
        for dependency in H::NEEDS {
            self.probe(*dependency).await?;
        }
        Ok(())
    }
}
