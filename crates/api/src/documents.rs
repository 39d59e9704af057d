//! What everyone may read: the index, the OpenAPI document, its page for people, and `/llms.txt`.

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest as _, Sha256};

use crate::endpoints::ENDPOINTS;
use crate::openapi::DOCUMENT;
use crate::reference::{PAGE, STYLE};

/// Nothing is loaded, run, sent or framed; one style is applied, which is known by its hash.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = BASE64_STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
});

/// A document at a path.
pub(crate) struct Document {
    pub(crate) path: &'static str,
    /// Its name in metrics and logs.
    pub(crate) name: &'static str,
    content_type: &'static str,
    text: fn() -> String,
}

/// Every document.
pub(crate) static DOCUMENTS: [Document; 4] = [
    Document { path: "/", name: "index", content_type: "text/plain; charset=utf-8", text: index },
    Document {
        path: "/openapi.json",
        name: "openapi",
        content_type: "application/vnd.oai.openapi+json;version=3.1",
        text: || DOCUMENT.clone(),
    },
    Document {
        path: "/docs",
        name: "docs",
        content_type: "text/html; charset=utf-8",
        text: || PAGE.clone(),
    },
    Document {
        path: "/llms.txt",
        name: "llms",
        content_type: "text/markdown; charset=utf-8",
        text: llms,
    },
];

impl Document {
    pub(crate) fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from((self.text)()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
        response
    }
}

fn index() -> String {
    let mut text = format!("conversation-api {}\n\n", service::VERSION);
    for endpoint in &ENDPOINTS {
        text.push_str(&format!(
            "{:<6} {}\n       {}\n",
            endpoint.method, endpoint.path, endpoint.summary
        ));
    }
    text.push_str(
        "\nTo read: /docs    OpenAPI 3.1: /openapi.json    For language models: /llms.txt\n",
    );
    text
}

/// As llmstxt.org describes it.
fn llms() -> String {
    let mut text = String::from(
        "# Verbatim\n\n\
         > Conversations of AI agents and their users, stored word for word. This API reads them and their \
         statistics, publishes actions, and handles dead letters.\n\n\
         Every request needs a key: `Authorization: Bearer vbt_…`. The tenant is that of the key; the key of an operator \
         adds `?tenant_id=`. A program that must not send its secret signs its requests: `securitySchemes` of \
         /openapi.json. Errors are RFC 9457 problems (`application/problem+json`) that name each faulty parameter. \
         Lists come in pages: repeat the request with `cursor` set to `next` of the answer until `next` is null.\n\n\
         ## Endpoints\n\n",
    );
    for endpoint in &ENDPOINTS {
        let parameters: Vec<&str> = endpoint.parameters.iter().map(|it| it.name()).collect();
        text.push_str(&format!(
            "- `{} {}`: {}. {} Scope `{}`. Parameters: {}.\n",
            endpoint.method,
            endpoint.path,
            endpoint.summary,
            endpoint.about,
            endpoint.scope.as_str(),
            parameters.join(", "),
        ));
    }
    text.push_str(
        "\n## Documents\n\n- [OpenAPI 3.1](/openapi.json): every parameter and every field of the answers\n\
         - [The same as a page](/docs), with an example of each call\n",
    );
    text
}
