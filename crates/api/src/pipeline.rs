//! What happens to a request before and after its handler, the same for every endpoint.
//!
//! | step | what fails there |
//! |---|---|
//! | the request gets an id; the time limit begins | 503 `too-slow` |
//! | the key is read and checked | 401, 429, 503 |
//! | the key's rate | 429 |
//! | the scope of the endpoint | 403 |
//! | the body is read | 413, 422 |
//! | the parameters are decoded; unknown ones are refused | 422 |
//! | the handler: tenant, database, RabbitMQ, answer | 400, 403, 404, 409, 422, 501, 503 |
//! | the audit log has the answer | 503 |
//! | headers, metrics, a log line | |

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use access::{ApiKey, Caller, NotAuthenticated, RequestSignature};
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{ConnectInfo, RawPathParams, Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ALLOW, AUTHORIZATION, ORIGIN, VARY,
};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use axum::middleware::{self, Next};
use axum::routing::{MethodFilter, get, on};
use metrics::{Counter, HttpStatus, RefusedCredential, Timing};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::api::Api;
use crate::audit::Audited;
use crate::bodies::{self, ReadBody};
use crate::client_address::client_address;
use crate::documents::DOCUMENTS;
use crate::endpoint::{Call, Endpoint, Handler, actor_name};
use crate::endpoints::ENDPOINTS;
use crate::endpoints::actions::IDEMPOTENCY_KEY;
use crate::parameters::Parameters;
use crate::problem::{Fault, Kind, Problem, SOON};
use crate::rates::{Allowance, Exceeded};
use crate::stale_reads;

/// The parameters of a path, which may be no UTF-8.
type PathParams = Result<RawPathParams, RawPathParamsRejection>;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The endpoint that a request reached, for metrics.
#[derive(Debug, Clone, Copy)]
struct Reached(&'static str);

/// The id of a request.
#[derive(Debug, Clone)]
struct RequestId(String);

/// All paths of the API.
pub(crate) fn router(api: &Arc<Api>) -> Router {
    let mut router = Router::new();
    for endpoint in &ENDPOINTS {
        let handler = move |state: State<Arc<Api>>, path: PathParams, request: Request| {
            answer(endpoint, state, path, request)
        };
        // Only standard methods are in the table.
        let filter = MethodFilter::try_from(endpoint.method.clone()).unwrap_or(MethodFilter::GET);
        router = router.route(endpoint.path, on(filter, handler));
    }
    for document in &DOCUMENTS {
        let handler = move || async move { reached(document.name, document.response()) };
        router = router.route(document.path, get(handler));
    }
    router
        .fallback(|request: Request| async move {
            let detail = "no endpoint has this path; GET / lists them";
            problem("unknown", &request, &Problem::new(Kind::NotFound, detail))
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let detail = format!(
                "{} is not possible here; the header Allow lists what is",
                request.method()
            );
            problem("unknown", &request, &Problem::new(Kind::MethodNotAllowed, detail))
        })
        .layer(middleware::from_fn_with_state(Arc::clone(api), frame))
        .with_state(Arc::clone(api))
}

/// Around each request: its id, its time limit, the headers of its answer, metrics, and the log.
async fn frame(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response<Body> {
    let started = Instant::now();
    let id = request_id(request.headers());
    let origin = request.headers().get(ORIGIN).cloned();
    let method = request.method().clone();
    request.extensions_mut().insert(RequestId(id.clone()));
    let is_preflight = method == Method::OPTIONS && origin.is_some();
    let mut response = if is_preflight {
        reached("preflight", no_content())
    } else {
        match timeout(api.settings.request_timeout, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                let limit = api.settings.request_timeout;
                let detail = format!(
                    "the request took longer than {limit:?} (VERBATIM_REQUEST_TIMEOUT); ask for less, or repeat it"
                );
                let problem =
                    Problem::new(Kind::TooSlow, detail).retry_after(Duration::from_secs(1));
                reached("unknown", problem.response(&id))
            }
        }
    };
    let Reached(endpoint) = response.extensions().get().copied().unwrap_or(Reached("unknown"));
    let status = response.status();
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    allow_origin(&api.settings.cors_origins, origin.as_ref(), is_preflight, headers);
    let elapsed = started.elapsed();
    api.metrics.add(Counter::HttpRequests { endpoint, status: http_status(status) }, 1);
    api.metrics.observe(Timing::HttpRequest { endpoint }, elapsed);
    tracing::debug!(
        request_id = id,
        endpoint,
        status = status.as_u16(),
        milliseconds = elapsed.as_millis(),
        "request answered"
    );
    response
}

async fn answer(
    endpoint: &'static Endpoint,
    State(api): State<Arc<Api>>,
    path: PathParams,
    request: Request,
) -> Response<Body> {
    let id = request.extensions().get::<RequestId>().map_or("", |id| &id.0).to_owned();
    let mut allowance = None;
    let answer = handle(endpoint, api, path, request, &id, &mut allowance).await;
    let mut response = answer.unwrap_or_else(|problem| {
        if let (Some(cause), status) = (&problem.cause, problem.kind.parts().0) {
            tracing::warn!(
                request_id = id,
                endpoint = endpoint.name,
                error = cause,
                "request failed with status {status}"
            );
        }
        problem.response(&id)
    });
    if let Some(allowance) = allowance {
        allowance.write(response.headers_mut());
    }
    reached(endpoint.name, response)
}

async fn handle(
    endpoint: &'static Endpoint,
    api: Arc<Api>,
    path: PathParams,
    request: Request,
    request_id: &str,
    allowance: &mut Option<Allowance>,
) -> Result<Response<Body>, Problem> {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let peer = peer.map_or(IpAddr::from([0; 16]), |ConnectInfo(peer)| peer.ip());
    let address = client_address(peer, request.headers(), api.settings.proxies());
    let target = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let signed = (request.method().as_str(), target);
    let credential = Credential::of(request.headers())
        .map_err(|(reason, detail)| refused(&api, address, reason, detail))?;
    let mut limited = |exceeded: Exceeded| {
        *allowance = Some(exceeded.allowance);
        let detail = format!("{}; wait as long as Retry-After says", exceeded.allowance);
        Problem::new(Kind::RateLimited, detail).retry_after(exceeded.wait)
    };
    if let Credential::Signature(signature) = &credential {
        // Checking it would cost a commit.
        api.rates.check(signature.key()).map_err(&mut limited)?;
    }
    let (caller, signature) = authenticated(&api, credential, signed, address).await?;
    let taken = api.rates.take(&caller.key).map_err(limited)?;
    *allowance = Some(taken);
    if !caller.may(endpoint.scope) {
        let scope = endpoint.scope.as_str();
        let detail = format!(
            "the key has no scope {scope}; create one with it: verbatim keys create --scope {scope}"
        );
        return Err(Problem::new(Kind::Forbidden, detail));
    }
    let path = path.map_err(|_| {
        let fault = Fault {
            detail: "it is not percent-encoded UTF-8".to_owned(),
            parameter: Some("path".to_owned()),
            pointer: None,
        };
        Problem::invalid(vec![fault])
    })?;
    let (parts, body) = request.into_parts();
    let body = match endpoint.body {
        None => ReadBody::default(),
        Some(_) => bodies::read(&api.requests, &parts.headers, body).await?,
    };
    if signature.is_some() && parts.headers.contains_key(IDEMPOTENCY_KEY) {
        // Whoever changes it on its way would choose which action counts as a repetition.
        let detail = "the header Idempotency-Key is not part of the signature; give the action an `action_id` in place of it";
        return Err(Problem::new(Kind::Invalid, detail));
    }
    if signature.is_some_and(|signature| !signature.is_of_body(&body.bytes)) {
        let detail = "the body is not the one that was signed: its SHA-256 is not `digest`";
        return Err(refused(&api, address, RefusedCredential::Signature, detail.to_owned()));
    }
    let path = path.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let query = parts.uri.query().unwrap_or_default();
    let parameters = Parameters::of(path, query, endpoint.parameters);
    let (audit, actor) = (api.audit.clone(), actor_name(&caller));
    let call = Call { api, endpoint, caller, parameters, headers: parts.headers, body: body.bytes };
    // The memory of the body is free when the answer is ready.
    let answer = match endpoint.handler {
        Handler::Fresh(handler) => handler(call).await,
        Handler::MayBeStale(handler) => stale_reads::answer(call, handler).await,
    };
    drop(body.share);
    let mut answer = answer?;
    if let Audited::Entry { detail, .. } = &mut answer.audited {
        detail["request_id"] = request_id.into();
        detail["address"] = address.to_canonical().to_string().into();
    }
    audit.record(actor, endpoint.name, answer.audited.clone()).await?;
    Ok(answer.response())
}

/// A credential that is not accepted.
fn refused(api: &Api, address: IpAddr, reason: RefusedCredential, detail: String) -> Problem {
    count_refused(api, address, reason);
    Problem::new(Kind::Unauthenticated, detail)
}

fn count_refused(api: &Api, address: IpAddr, reason: RefusedCredential) {
    api.metrics.add(Counter::RefusedCredentials { reason }, 1);
    api.note_refused(address);
}

/// What the header `Authorization` holds.
enum Credential {
    Key(ApiKey),
    Signature(RequestSignature),
}

impl Credential {
    fn of(headers: &HeaderMap) -> Result<Self, (RefusedCredential, String)> {
        let header = headers.get(AUTHORIZATION).ok_or_else(|| {
            (RefusedCredential::Missing, "send a key: `Authorization: Bearer vbt_…`".to_owned())
        })?;
        let malformed = |detail: String| (RefusedCredential::Malformed, detail);
        let scheme = header.to_str().ok().and_then(|text| text.split_once(' '));
        match scheme {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => {
                let key = ApiKey::parse(key.trim());
                key.map(Self::Key).map_err(|fault| malformed(format!("the key: {fault}")))
            }
            Some((scheme, text)) if scheme.eq_ignore_ascii_case(access::SCHEME) => {
                let signature = RequestSignature::parse(text.trim());
                signature.map(Self::Signature).map_err(|fault| malformed(fault.to_string()))
            }
            _ => {
                let scheme = access::SCHEME;
                Err(malformed(format!("Authorization must be `Bearer vbt_…` or `{scheme} key=…`")))
            }
        }
    }
}

/// The caller with this credential, and the signature to compare the body with. `signed` are the method, and
/// the path with its query.
async fn authenticated(
    api: &Api,
    credential: Credential,
    signed: (&str, &str),
    address: IpAddr,
) -> Result<(Arc<Caller>, Option<RequestSignature>), Problem> {
    let caller = match &credential {
        Credential::Key(key) => api.authenticator.caller(key, address).await,
        Credential::Signature(signature) => {
            api.authenticator.signed(signature, signed, address).await
        }
    };
    let error = match (caller, credential) {
        (Ok(caller), Credential::Key(_)) => return Ok((caller, None)),
        (Ok(caller), Credential::Signature(signature)) => return Ok((caller, Some(signature))),
        (Err(error), _) => error,
    };
    let detail = error.to_string();
    let reason = match error {
        NotAuthenticated::Unknown => RefusedCredential::Unknown,
        NotAuthenticated::Revoked => RefusedCredential::Revoked,
        NotAuthenticated::Expired => RefusedCredential::Expired,
        NotAuthenticated::Address => RefusedCredential::Address,
        NotAuthenticated::Signature => RefusedCredential::Signature,
        NotAuthenticated::Stale(_) | NotAuthenticated::NonceUnknown => RefusedCredential::Stale,
        NotAuthenticated::Replayed => RefusedCredential::Replayed,
        NotAuthenticated::TooMany(wait) => {
            count_refused(api, address, RefusedCredential::Limited);
            return Err(Problem::new(Kind::RateLimited, detail).retry_after(wait));
        }
        NotAuthenticated::Unavailable(source) => {
            return Err(Problem::new(Kind::Unavailable, detail)
                .retry_after(SOON)
                .caused_by(&source));
        }
    };
    Err(refused(api, address, reason, detail))
}

fn problem(endpoint: &'static str, request: &Request, problem: &Problem) -> Response<Body> {
    let id = request.extensions().get::<RequestId>().map_or("", |id| &id.0);
    reached(endpoint, problem.response(id))
}

fn reached(endpoint: &'static str, mut response: Response<Body>) -> Response<Body> {
    response.extensions_mut().insert(Reached(endpoint));
    response
}

fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// The id that the client gave, if it may stand in a header and a log line; else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let is_plain =
        |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    given.filter(is_plain).map_or_else(|| Uuid::now_v7().to_string(), str::to_owned)
}

/// The headers by which a browser lets a page of another origin read the answer (Fetch standard, "HTTP extensions").
fn allow_origin(
    allowed: &[HeaderValue],
    origin: Option<&HeaderValue>,
    is_preflight: bool,
    headers: &mut HeaderMap,
) {
    if allowed.is_empty() {
        return;
    }
    headers.append(VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = origin else { return };
    if !allowed.iter().any(|it| it == origin || it == "*") {
        return;
    }
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    let exposed = "ETag, Retry-After, RateLimit, RateLimit-Policy, Verbatim-After, Verbatim-Replica-Lag-Ms, \
                   Verbatim-Served-By, X-Request-Id";
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(exposed));
    if is_preflight {
        let methods = HeaderValue::from_static("GET, POST");
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods.clone());
        headers.insert(ALLOW, methods);
        let sent = "Authorization, Content-Type, If-None-Match, Idempotency-Key, Verbatim-After, X-Request-Id";
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(sent));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
}

fn http_status(status: StatusCode) -> HttpStatus {
    match status.as_u16() {
        ..400 => HttpStatus::Succeeded,
        429 => HttpStatus::RateLimited,
        // 501: the operator of the API has not set up the endpoint, so it is no failure.
        401 | 403 | 501 => HttpStatus::Refused,
        400..=499 => HttpStatus::Invalid,
        503 => HttpStatus::Unavailable,
        _ => HttpStatus::Failed,
    }
}
