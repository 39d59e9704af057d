//! What an endpoint is: a row of the table in `endpoints.rs`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use access::{Caller, Scope, TenantOfCaller};
use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use database::{ApiDatabase, ApiReadReplica, Database, ReplicaState, ReplicaStates, WalPosition};
use domain::ids::TenantId;
use schemars::{Schema, SchemaGenerator};
use serde::Serialize;

use crate::after;
use crate::api::Api;
use crate::audit::Audited;
use crate::bodies::{Share, holding, shrink};
use crate::etag::ETag;
use crate::parameters::{Declared, Parameters};
use crate::problem::{Kind, Problem};

/// An endpoint that needs a key.
pub(crate) struct Endpoint {
    /// Its name in metrics, in logs and as `operationId`.
    pub(crate) name: &'static str,
    pub(crate) method: Method,
    /// With parameters in braces.
    pub(crate) path: &'static str,
    pub(crate) scope: Scope,
    /// One line.
    pub(crate) summary: &'static str,
    /// What else a caller must know.
    pub(crate) about: &'static str,
    pub(crate) parameters: &'static [&'static dyn Declared],
    /// The schema of the body; `None`: it has none.
    pub(crate) body: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// The schema of the answer.
    pub(crate) answer: fn(&mut SchemaGenerator) -> Schema,
    /// Whether a client may ask with `If-None-Match`.
    pub(crate) conditional: Conditional,
    pub(crate) publishes: Publishes,
    pub(crate) handler: Handler,
}

/// What answers a request, and which PostgreSQL it reads.
pub(crate) enum Handler {
    /// It reads the primary alone.
    Fresh(fn(Call) -> Answering),
    /// Its answer may be stale: it reads the rows that it gets, of the read replica or of the primary. If the replica fails,
    /// it runs again.
    MayBeStale(StaleHandler),
}

/// A handler whose answer may be stale.
pub(crate) type StaleHandler = fn(Call, Rows) -> Answering;

/// Whether a request publishes actions: then it takes a key of idempotency, and may be answered before they take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Publishes {
    Yes,
    No,
}

/// Whether an answer has an ETag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conditional {
    Yes,
    No,
}

/// A handler at work.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Result<Answer, Problem>> + Send>>;

/// A request that was authenticated.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) api: Arc<Api>,
    pub(crate) endpoint: &'static Endpoint,
    pub(crate) caller: Arc<Caller>,
    pub(crate) parameters: Parameters,
    pub(crate) headers: HeaderMap,
    /// Empty, unless the endpoint has a body.
    pub(crate) body: Bytes,
}

/// The rows that a handler reads whose answer may be stale.
#[derive(Clone)]
pub(crate) struct Rows(Source);

#[derive(Clone)]
enum Source {
    Primary(ApiDatabase),
    Replica(ApiReadReplica, Arc<ReplicaStates>),
}

impl Rows {
    pub(crate) fn of_primary(database: ApiDatabase) -> Self {
        Self(Source::Primary(database))
    }

    pub(crate) fn of_replica(replica: ApiReadReplica) -> Self {
        Self(Source::Replica(replica, Arc::default()))
    }

    /// The rows of this tenant.
    pub(crate) fn of(&self, tenant: &TenantId) -> Database {
        match &self.0 {
            Source::Primary(database) => database.of(tenant),
            Source::Replica(replica, states) => replica.of(tenant, states),
        }
    }

    /// Fails unless these rows are at least as new as those of the page before, which were read from a primary, or from a
    /// replica that was so far. Called before and after the page is read.
    ///
    /// # Errors
    /// The primary has to answer.
    pub(crate) fn continues(&self, read_at: Option<&str>) -> Result<(), Problem> {
        let Source::Replica(_, states) = &self.0 else { return Ok(()) };
        let before = read_at.and_then(after::position);
        let is_after = |before: WalPosition| {
            states.all().iter().all(|it| it.history == before.history && it.replayed >= before.lsn)
        };
        match before.is_some_and(is_after) {
            true => Ok(()),
            false => Err(Problem::new(Kind::Unavailable, "the read replica lacks this page")),
        }
    }

    /// How far the replica was when the page was read, for the cursor; `None` for the primary.
    pub(crate) fn read_at(&self) -> Option<String> {
        let least = self.states().into_iter().min_by_key(|it| it.replayed)?;
        let position = WalPosition { history: least.history, lsn: least.replayed };
        Some(after::value(position))
    }

    /// What the transactions saw of the replica; empty for the primary.
    pub(crate) fn states(&self) -> Vec<ReplicaState> {
        match &self.0 {
            Source::Primary(_) => Vec::new(),
            Source::Replica(_, states) => states.all(),
        }
    }
}

/// An answer that is no problem.
pub(crate) struct Answer {
    status: StatusCode,
    body: Vec<u8>,
    etag: Option<ETag>,
    is_known: bool,
    /// Its share of the memory for pages.
    share: Option<Share>,
    /// What the audit log says of it.
    pub(crate) audited: Audited,
    /// Headers of its own.
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Call {
    /// The tenant of the request: that of the key. A request may name it; an operator's must.
    pub(crate) fn tenant(&self) -> Result<TenantId, Problem> {
        let named = self.parameters.raw("tenant_id");
        match (&self.caller.tenant, named) {
            (TenantOfCaller::One(tenant), None) => Ok(tenant.clone()),
            (TenantOfCaller::One(tenant), Some(named)) if tenant.as_str() == named => {
                Ok(tenant.clone())
            }
            // Another tenant's is answered as what never was.
            (TenantOfCaller::One(_), Some(_)) => {
                self.api.note_foreign_tenant(&self.caller);
                Err(Problem::not_found())
            }
            (TenantOfCaller::Every, Some(named)) => {
                TenantId::new(named).map_err(|_| Problem::not_found())
            }
            (TenantOfCaller::Every, None) => Err(Problem::new(
                Kind::TenantRequired,
                "the key is an operator's, for every tenant: add ?tenant_id=",
            )),
        }
    }

    /// The tenant of a request for dead letters: as [`Self::tenant`], but an operator's key may leave it out. `None` is
    /// every tenant, and what names none.
    pub(crate) fn tenant_or_every(&self) -> Result<Option<TenantId>, Problem> {
        match (&self.caller.tenant, self.parameters.raw("tenant_id")) {
            (TenantOfCaller::Every, None) => Ok(None),
            _ => self.tenant().map(Some),
        }
    }

    /// The dead letters of this tenant; with `None` of every tenant.
    pub(crate) fn dead_letters(&self, tenant: Option<&TenantId>) -> Result<Database, Problem> {
        let operators = self.api.operators.as_ref().ok_or_else(|| {
            let detail = "set API_OPERATOR_DATABASE_URL for `verbatim setup` and for the API";
            Problem::new(Kind::NotSetUp, detail)
        })?;
        Ok(operators.of(tenant))
    }

    /// Who calls, as the audit log names them.
    pub(crate) fn actor_name(&self) -> String {
        actor_name(&self.caller)
    }

    /// The rows of this tenant, from the primary.
    pub(crate) fn database(&self, tenant: &TenantId) -> Database {
        self.api.database.of(tenant)
    }
}

/// The name of a caller in the audit log.
pub(crate) fn actor_name(caller: &Caller) -> String {
    format!("API key {}", caller.key)
}

impl Answer {
    /// A JSON document, and what the audit log says of it.
    pub(crate) fn json(value: &impl Serialize, audited: Audited) -> Result<Self, Problem> {
        let body = serde_json::to_vec(value).map_err(|error| {
            let detail = "the answer could not be written as JSON";
            Problem::new(Kind::Internal, detail).caused_by(&error)
        })?;
        let (status, headers) = (StatusCode::OK, Vec::new());
        Ok(Self { status, body, etag: None, is_known: false, share: None, audited, headers })
    }

    /// The answer with this tag; without a body if the client has it already.
    pub(crate) fn tagged(mut self, etag: ETag, headers: &HeaderMap) -> Self {
        self.is_known = etag.is_known(headers);
        self.etag = Some(etag);
        self
    }

    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// The answer, which holds of this share what it needs, until it is sent.
    pub(crate) fn holding(self, mut share: Share) -> Self {
        shrink(&mut share, self.body.len());
        Self { share: Some(share), ..self }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.body
    }

    pub(crate) fn response(self) -> Response<Body> {
        let mut response = match self.is_known {
            true => Response::new(Body::empty()),
            false => {
                let length = self.body.len();
                let mut response = Response::new(holding(self.body, self.share));
                response.headers_mut().insert(CONTENT_LENGTH, length.into());
                response
            }
        };
        // What was said must not stay in shared caches; with a tag a client may keep it and ask again.
        *response.status_mut() = self.status;
        let caching = if self.etag.is_some() { "private, no-cache" } else { "no-store" };
        if self.is_known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(caching));
        if !self.is_known {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(value) = self.etag.and_then(|etag| etag.value()) {
            headers.insert(ETAG, value);
        }
        headers.extend(self.headers);
        response
    }
}
