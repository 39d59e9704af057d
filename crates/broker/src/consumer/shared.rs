//! What all sessions of a consumer share.

use std::panic::AssertUnwindSafe;

use domain::clock::Clock;
use domain::failure::{Dependency, Unavailable};
use futures_util::FutureExt;
use tokio::sync::watch;

use super::broker_requeues::BrokerRequeues;
use super::observer::Observer;
use super::settings::{ConsumerState, Settings, Source};
use crate::connection::Endpoints;
use crate::{Handler, Publisher};

/// What all sessions of a consumer share.
pub(super) struct Shared<H> {
    pub(super) source: Source,
    pub(super) handler: H,
    pub(super) endpoints: Endpoints,
    pub(super) publisher: Publisher,
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    pub(super) observer: Observer,
    pub(super) state: watch::Sender<ConsumerState>,
    pub(super) broker_requeues: BrokerRequeues,
}

impl<H: Handler> Shared<H> {
    /// Checks whether a dependency is available again. For RabbitMQ this always succeeds: the next
    /// attempt to publish the unconfirmed copies is the check.
    pub(super) async fn probe(&self, dependency: Dependency) -> Result<(), Unavailable> {
        match dependency {
            Dependency::RabbitMq => Ok(()),
            Dependency::PostgreSql | Dependency::Redis => {
                let probe = AssertUnwindSafe(async { self.handler.probe().await });
                probe.catch_unwind().await.unwrap_or_else(|_| {
                    Err(Unavailable {
                        dependency,
                        source: self.observer.panicked("probing").into(),
                    })
                })
            }
        }
    }
}
