//! Errors as RFC 9457 describes them: `application/problem+json`, with a pointer to each faulty field.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Response, StatusCode};
use domain::causes::with_causes;
use domain::failure::FailureClass;
use schemars::JsonSchema;
use serde::Serialize;

/// How long a client should wait while a server is unavailable. The fleet probes servers every second or two.
pub(crate) const SOON: Duration = Duration::from_secs(2);

/// The kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    TenantRequired,
    Unauthenticated,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    Conflict,
    TooLarge,
    Invalid,
    Refused,
    RateLimited,
    Internal,
    Unavailable,
    NotPublished,
    Busy,
    TooSlow,
    NotSetUp,
}

impl Kind {
    pub(crate) const ALL: [Self; 16] = [
        Self::TenantRequired,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::TooLarge,
        Self::Invalid,
        Self::Refused,
        Self::RateLimited,
        Self::Internal,
        Self::Unavailable,
        Self::NotPublished,
        Self::Busy,
        Self::TooSlow,
        Self::NotSetUp,
    ];

    /// Its status, its name in `type`, its title.
    pub(crate) const fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::TenantRequired => {
                (StatusCode::BAD_REQUEST, "tenant-required", "The request must name a tenant")
            }
            Self::Unauthenticated => (
                StatusCode::UNAUTHORIZED,
                "unauthenticated",
                "The request has no valid key or signature",
            ),
            Self::Forbidden => (
                StatusCode::FORBIDDEN,
                "forbidden",
                "The API key, or the API itself, may not do this",
            ),
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "There is no such thing"),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "This path has no such method",
            ),
            Self::Conflict => {
                (StatusCode::CONFLICT, "conflict", "What is stored does not allow the request")
            }
            Self::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The body of the request is too large")
            }
            Self::Invalid => {
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "A part of the request is invalid")
            }
            Self::Refused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "refused",
                "The actions are published; a worker did not carry out every one",
            ),
            Self::RateLimited => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate-limited",
                "Too many requests, or too many refused credentials",
            ),
            Self::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal", "The request failed unexpectedly")
            }
            Self::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "PostgreSQL is unavailable")
            }
            Self::NotPublished => (
                StatusCode::SERVICE_UNAVAILABLE,
                "not-published",
                "RabbitMQ did not confirm the action",
            ),
            Self::Busy => {
                (StatusCode::SERVICE_UNAVAILABLE, "busy", "Too many large requests at once")
            }
            Self::TooSlow => {
                (StatusCode::SERVICE_UNAVAILABLE, "too-slow", "The request took too long")
            }
            Self::NotSetUp => (
                StatusCode::NOT_IMPLEMENTED,
                "not-set-up",
                "The operator of the API has not set up this endpoint",
            ),
        }
    }
}

/// An error that a client gets.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) kind: Kind,
    detail: String,
    faults: Vec<Fault>,
    retry_after: Option<Duration>,
    /// For the log alone.
    pub(crate) cause: Option<String>,
}

/// A part of a request that is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Fault")]
pub(crate) struct Fault {
    /// What is wrong with it, and the remedy.
    pub(crate) detail: String,
    /// The parameter of the path or of the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parameter: Option<String>,
    /// The place in the body, as a JSON pointer in a URI fragment (RFC 6901).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pointer: Option<String>,
}

/// An error (RFC 9457).
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(crate) struct ProblemView<'a> {
    /// The kind of error, as a URN that is stable.
    r#type: String,
    /// The kind of error, in words.
    title: &'a str,
    /// The HTTP status.
    #[schemars(range(min = 400, max = 599))]
    status: u16,
    /// What went wrong with this request, and the remedy.
    detail: &'a str,
    /// The id of the request, which is also in the log.
    request_id: &'a str,
    /// Each part of the request that is invalid.
    #[serde(default, skip_serializing_if = "<[Fault]>::is_empty")]
    errors: &'a [Fault],
}

impl Problem {
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), faults: Vec::new(), retry_after: None, cause: None }
    }

    /// Parts of the request are invalid.
    pub(crate) fn invalid(faults: Vec<Fault>) -> Self {
        Self::with_faults(Kind::Invalid, faults)
    }

    /// An error that concerns parts of the request.
    pub(crate) fn with_faults(kind: Kind, faults: Vec<Fault>) -> Self {
        let named = |fault: &Fault| {
            let place = fault.parameter.as_deref().or(fault.pointer.as_deref()).unwrap_or("body");
            format!("{place}: {}", fault.detail)
        };
        let detail = faults.iter().map(named).collect::<Vec<_>>().join("; ");
        Self { faults, ..Self::new(kind, detail) }
    }

    /// The same for everything that is not there, or is another tenant's.
    pub(crate) fn not_found() -> Self {
        Self::new(Kind::NotFound, "nothing has this id; check the id and the tenant of the API key")
    }

    /// With the cause, for the log.
    pub(crate) fn caused_by(mut self, cause: &dyn std::error::Error) -> Self {
        self.cause = Some(with_causes(cause));
        self
    }

    pub(crate) fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    pub(crate) fn response(&self, request_id: &str) -> Response<Body> {
        let (status, name, title) = self.kind.parts();
        let view = ProblemView {
            r#type: format!("urn:verbatim:problem:{name}"),
            title,
            status: status.as_u16(),
            detail: &self.detail,
            request_id,
            errors: &self.faults,
        };
        let body = serde_json::to_vec(&view).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        if self.kind == Kind::Unauthenticated {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"verbatim\""));
            let signed = HeaderValue::from_static("Verbatim-HMAC-SHA256 realm=\"verbatim\"");
            headers.append(WWW_AUTHENTICATE, signed);
        }
        response
    }
}

impl From<database::Error> for Problem {
    fn from(error: database::Error) -> Self {
        Self::from(&error)
    }
}

impl From<&database::Error> for Problem {
    fn from(error: &database::Error) -> Self {
        let problem = match error.class() {
            _ if error.is_missing_privilege() => {
                let detail = "PostgreSQL does not accept this API: its role is not set up, or `verbatim setup` ran with \
                              another API_SECRET. The operator has to run `verbatim setup` with the secret of the API";
                Self::new(Kind::Unavailable, detail).retry_after(SOON)
            }
            FailureClass::Unavailable | FailureClass::Transient => {
                let detail = "PostgreSQL did not answer; repeat the request";
                Self::new(Kind::Unavailable, detail).retry_after(SOON)
            }
            FailureClass::Data | FailureClass::Retryable => {
                Self::new(Kind::Internal, "the log has the cause under this request_id")
            }
        };
        problem.caused_by(error)
    }
}
