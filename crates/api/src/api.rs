//! What all requests share.

use std::net::IpAddr;
use std::sync::Arc;

use access::{Anomalies, Anomaly, Authenticator, Caller, Secrets};
use broker::{Endpoints, Publisher, Replies};
use database::{ApiDatabase, NewAuditEntry, OperatorDatabase};
use domain::amqp_users::AmqpUsers;
use metrics::{AnomalyKind, Counter, Metrics};
use serde_json::Value;
use service::Service;
use stores::ApiDatabaseServer;

use crate::audit::AuditLog;
use crate::bodies::{Memory, RequestMemory};
use crate::rates::Rates;
use crate::read_replica::ReadReplica;
use crate::settings::Settings;

/// The API of one process.
pub(crate) struct Api {
    pub(crate) settings: Settings,
    pub(crate) database: ApiDatabase,
    /// `None`: API_OPERATOR_DATABASE_URL is not set.
    pub(crate) operators: Option<OperatorDatabase>,
    pub(crate) audit: AuditLog,
    pub(crate) read_replica: Option<Arc<ReadReplica>>,
    pub(crate) secrets: Secrets,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) rates: Rates,
    /// For the bodies of requests.
    pub(crate) requests: RequestMemory,
    /// For pages of messages, until they are sent.
    pub(crate) pages: Memory,
    anomalies: Anomalies,
    pub(crate) publisher: Publisher,
    pub(crate) replies: Replies,
    /// The user that RabbitMQ validates, where the workers check it.
    pub(crate) amqp_user: Option<String>,
    pub(crate) metrics: Metrics,
    pub(crate) clock: domain::clock::Clock,
}

impl Api {
    pub(crate) fn new(
        service: &Service,
        settings: Settings,
        server: ApiDatabaseServer,
        read_replica: Option<Arc<ReadReplica>>,
        authenticator: Arc<Authenticator>,
        endpoints: &Endpoints,
    ) -> Self {
        let is_checked = settings.users.amqp_users.as_ref().is_some_and(AmqpUsers::is_set);
        Self {
            publisher: Publisher::new(endpoints.clone(), service.metrics().clone()),
            replies: receive_replies(service, endpoints),
            amqp_user: is_checked.then(|| endpoints.user().to_owned()),
            rates: Rates::new(settings.key_rate, settings.key_burst),
            requests: RequestMemory::new(settings.max_requests_bytes, settings.max_request_bytes),
            pages: Memory::new(settings.max_pages_bytes.max(settings.max_page_bytes)),
            anomalies: Anomalies::new(settings.anomalies()),
            settings,
            audit: AuditLog::start(service, &server.database),
            database: server.database,
            operators: server.operators,
            read_replica,
            secrets: server.secrets,
            authenticator,
            metrics: service.metrics().clone(),
            clock: service.clock().clone(),
        }
    }
}

impl Api {
    /// Counts a key that was refused.
    pub(crate) fn note_refused(&self, address: IpAddr) {
        if let Some(anomaly) = self.anomalies.refused(address) {
            tracing::warn!(%address, "anomaly: many keys from one address are refused");
            self.count(anomaly, "anomaly.refused_keys", address.to_string());
        }
    }

    /// Counts a request that named a tenant which is not that of its key.
    pub(crate) fn note_foreign_tenant(&self, caller: &Caller) {
        if let Some(anomaly) = self.anomalies.foreign_tenant(&caller.key) {
            tracing::warn!(key = caller.key, "anomaly: a key names tenants that are not its own");
            self.count(anomaly, "anomaly.foreign_tenants", caller.key.clone());
        }
    }

    /// Counts messages that were read.
    pub(crate) fn note_read(&self, caller: &Caller, messages: usize) {
        if let Some(anomaly) = self.anomalies.read(&caller.key, messages as u64) {
            tracing::warn!(
                key = caller.key,
                "anomaly: a key reads far more messages than in its usual hour"
            );
            self.count(anomaly, "anomaly.reads", caller.key.clone());
        }
    }

    /// Counts and audits an anomaly of a key or an address.
    fn count(&self, anomaly: Anomaly, action: &'static str, subject: String) {
        self.audit.note(NewAuditEntry {
            actor: "conversation-api".to_owned(),
            action,
            tenant: None,
            subject: Some(subject),
            detail: Value::Null,
        });
        let kind = match anomaly {
            Anomaly::RefusedKeys => AnomalyKind::RefusedKeys,
            Anomaly::ForeignTenants => AnomalyKind::ForeignTenants,
            Anomaly::Reads => AnomalyKind::Reads,
        };
        self.metrics.add(Counter::Anomalies { kind }, 1);
    }
}

/// Receives replies until the process stops.
fn receive_replies(service: &Service, endpoints: &Endpoints) -> Replies {
    let replies = Replies::default();
    let (receiving, endpoints) = (replies.clone(), endpoints.clone());
    service.support("replies", move |stopping| {
        let (receiving, endpoints) = (receiving.clone(), endpoints.clone());
        async move {
            receiving.receive(endpoints, stopping).await;
            Ok(())
        }
    });
    replies
}
