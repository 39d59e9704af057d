//! What all requests share.

use std::sync::Arc;

use access::{Authenticator, Secrets};
use database::ApiDatabase;
use metrics::Metrics;
use service::Service;
use stores::ApiDatabaseServer;

use crate::rates::Rates;
use crate::settings::Settings;

/// The API of one process.
pub(crate) struct Api {
    pub(crate) settings: Settings,
    pub(crate) database: ApiDatabase,
    pub(crate) secrets: Secrets,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) rates: Rates,
    pub(crate) metrics: Metrics,
    pub(crate) clock: domain::clock::Clock,
}

impl Api {
    pub(crate) fn new(
        service: &Service,
        settings: Settings,
        server: ApiDatabaseServer,
        authenticator: Arc<Authenticator>,
    ) -> Self {
        Self {
            rates: Rates::new(settings.key_rate, settings.key_burst),
            settings,
            database: server.database,
            secrets: server.secrets,
            authenticator,
            metrics: service.metrics().clone(),
            clock: service.clock().clone(),
        }
    }
}
