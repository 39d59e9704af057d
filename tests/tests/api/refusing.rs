//! Requests that are refused: each with a problem that says why.

use serde_json::{Value, json};
use system_tests::{ApiServer, Scenario};

use testkit::http::Response;

use crate::{archived, started, started_with, with_status};

/// The dead letter of the tenant acme.
const DEAD_LETTER: &str = "0b7a1f9e-3c55-4a53-9d0e-6f2f5f3c9a11";

/// An action that is valid over HTTP and as a dead letter.
const ACTION: &str =
    r#"{"action_type":"conversation.session_opened","tenant_id":"acme","session_id":"s"}"#;

/// Stores that dead letter.
async fn dead_letter(scenario: &Scenario) {
    let columns = "id, queue, reason, error, tenant_id, routing_key, exchange, body, properties, headers, attempts, \
                   replay_count, first_failed_at, last_failed_at";
    let values = format!(
        "'{DEAD_LETTER}', 'q', 'schema', 'e', 'acme', 'r', '', '{ACTION}', '{{}}', '{{}}', 1, 0, now(), now()"
    );
    scenario.sql(&format!("INSERT INTO dead_letters ({columns}) VALUES ({values})")).await;
}

/// A valid request to an endpoint.
struct Valid {
    method: String,
    path: String,
    scope: String,
    body: &'static str,
}

impl Valid {
    async fn send(&self, api: &ApiServer, header: Option<&str>, more: &str) -> Response {
        let authorization = header.map(|value| ("authorization", value));
        let headers: Vec<_> = authorization.into_iter().collect();
        api.send(&self.method, &format!("{}{more}", self.path), &headers, self.body).await
    }

    async fn with_key(&self, api: &ApiServer, key: &str) -> Response {
        self.send(api, Some(&format!("Bearer {key}")), "").await
    }
}

/// A valid request to each endpoint of the OpenAPI document.
async fn endpoints(api: &ApiServer, tenant: &str) -> Vec<Valid> {
    let openapi = with_status(&api.request("GET", "/openapi.json", &[]).await, 200);
    let mut endpoints = Vec::new();
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let about = operation["description"].as_str().unwrap();
            let scope = about.rsplit_once("Scope: `").unwrap().1.trim_end_matches("`.");
            let path = path.replace("{tenant_id}", tenant).replace("{conversation_id}", "c0");
            endpoints.push(Valid {
                method: method.to_uppercase(),
                path: path.replace("{agent_id}", "ada").replace("{dead_letter_id}", DEAD_LETTER),
                scope: scope.to_owned(),
                body: match operation["operationId"].as_str().unwrap() {
                    "publish_actions" => ACTION,
                    "discard_dead_letter" => r#"{"reason":"a test"}"#,
                    _ => "",
                },
            });
        }
    }
    assert!(endpoints.len() >= 9 && endpoints.iter().all(|it| !it.path.contains('{')));
    endpoints
}

fn kind(problem: &Value) -> &str {
    problem["type"].as_str().unwrap().strip_prefix("urn:verbatim:problem:").unwrap()
}

#[tokio::test]
async fn every_endpoint_needs_a_key_with_its_scope() {
    let (scenario, api) = started().await;
    archived(&scenario, "acme", 1, 1).await;
    dead_letter(&scenario).await;
    let all = api.key("acme", &["read", "write", "operate"]).await;
    let nothing = api.key("acme", &["export"]).await;
    let endpoints = endpoints(&api, "acme").await;
    for endpoint in &endpoints {
        let path = &endpoint.path;
        // It was perhaps replayed or discarded by the endpoint before.
        scenario.sql("UPDATE dead_letters SET status = 'open', status_changed_at = NULL").await;
        let answer = endpoint.with_key(&api, &all).await;
        assert!([200, 202].contains(&answer.status), "{path}: {answer:?}");
        let missing = endpoint.send(&api, None, "").await;
        assert_eq!(kind(&with_status(&missing, 401)), "unauthenticated");
        assert!(missing.header("www-authenticate").unwrap().starts_with("Bearer"));
        let last = if all.ends_with('x') { 'y' } else { 'x' };
        for (header, said) in [
            ("Basic dTpw".to_owned(), "must be `Bearer"),
            ("Bearer".to_owned(), "must be `Bearer"),
            ("Bearer vbt_x".to_owned(), "form"),
            (format!("Bearer {}", &all[..all.len() - 1]), "form"),
            (format!("Bearer {}{last}", &all[..all.len() - 1]), "checksum"),
        ] {
            let problem = with_status(&endpoint.send(&api, Some(&header), "").await, 401);
            assert!(problem["detail"].as_str().unwrap().contains(said), "{header}: {problem}");
        }
        let unknown = access::ApiKey::generate().unwrap();
        let problem = with_status(&endpoint.with_key(&api, unknown.expose()).await, 401);
        assert_eq!(problem["detail"], "the key is unknown");
        let problem = with_status(&endpoint.with_key(&api, &nothing).await, 403);
        let said = format!("no scope {}", endpoint.scope);
        assert!(problem["detail"].as_str().unwrap().contains(&said), "{problem}");
    }
    let metrics = api.worker.get("/metrics").await.unwrap().body;
    for reason in ["missing", "unknown"] {
        let count = endpoints.len();
        let line = format!("verbatim_refused_credentials_total{{reason=\"{reason}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn every_endpoint_refuses_what_it_does_not_know_and_names_it() {
    let (scenario, api) = started().await;
    archived(&scenario, "acme", 1, 1).await;
    dead_letter(&scenario).await;
    let key = api.key("acme", &["read", "write", "operate"]).await;
    let bearer = format!("Bearer {key}");
    for endpoint in endpoints(&api, "acme").await {
        let path = &endpoint.path;
        let problem = with_status(&endpoint.send(&api, Some(&bearer), "?max=5&x=1").await, 422);
        let named: Vec<_> =
            problem["errors"].as_array().unwrap().iter().map(|it| &it["parameter"]).collect();
        assert_eq!(named, ["max", "x"], "{path}: {problem}");
        let method = api.request("DELETE", path, &[]).await;
        assert_eq!(kind(&with_status(&method, 405)), "method-not-allowed");
        let allowed = if endpoint.method == "GET" { "GET,HEAD" } else { "POST" };
        assert_eq!(method.header("allow"), Some(allowed), "{path}");
        let unknown = with_status(&api.get(&key, &format!("{path}/x/y")).await, 404);
        assert!(unknown["detail"].as_str().unwrap().contains("no endpoint"), "{unknown}");
    }
    let long = "x".repeat(513);
    for (query, parameter) in [
        ("list/acme?limit=0", "limit"),
        ("list/acme?limit=201", "limit"),
        ("list/acme?limit=ten", "limit"),
        ("list/acme?status=open", "status"),
        ("list/acme?from=yesterday", "from"),
        ("list/acme?to=2026-13-01T00:00:00Z", "to"),
        ("list/acme?agent_id=", "agent_id"),
        ("list/acme?agent_id=a%00b", "agent_id"),
        ("list/acme?agent_id=%ff", "agent_id"),
        (&format!("list/acme?user_id={long}"), "user_id"),
        ("list/acme?cursor=AAAA", "cursor"),
        ("list/acme?limit=5&limit=6", "limit"),
        ("stats/acme?from=2026-01-02&to=2026-01-01", "from"),
        ("stats/acme?from=2020-01-01&to=2026-01-01", "from"),
        ("stats/acme?from=2026-1-1", "from"),
        ("stats/acme?to=-9999-1-01", "to"),
        ("stats/acme?to=%2B10000-1-1", "to"),
        ("stats/acme?to=1969-12-31", "to"),
        ("%ff/full", "path"),
        ("c0/full?order=up", "order"),
        ("c0/full?limit=1001", "limit"),
        ("c0/full?cursor=%20", "cursor"),
    ] {
        let problem =
            with_status(&api.get(&key, &format!("/api/conversations/{query}")).await, 422);
        assert_eq!(problem["errors"][0]["parameter"], parameter, "{query}: {problem}");
        assert!(problem["errors"].as_array().unwrap().len() == 1, "{query}: {problem}");
    }
    // Injection through every text: it is data.
    for text in [
        "' OR 1=1 --",
        "'; DROP TABLE conversations; --",
        "%' UNION SELECT 1",
        "$1",
        "\\",
        "\"",
        "{}",
    ] {
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
        for parameter in ["agent_id", "user_id", "model"] {
            let path = format!("/api/conversations/list/acme?{parameter}={encoded}");
            assert_eq!(api.json(&key, &path).await["conversations"], json!([]), "{text}");
        }
        with_status(&api.get(&key, &format!("/api/conversations/{encoded}/full")).await, 404);
        with_status(&api.get(&key, &format!("/api/conversations/list/{encoded}")).await, 404);
        let agent = api.json(&key, &format!("/api/agents/{encoded}/stats")).await;
        assert_eq!(agent["totals"]["conversations"], 0, "{text}");
    }
}

#[tokio::test]
async fn the_key_of_an_operator_must_name_a_tenant() {
    let (scenario, api) = started().await;
    archived(&scenario, "acme", 1, 1).await;
    let operator = api.operator_key(&["read"]).await;
    for path in ["/api/conversations/c0/full", "/api/agents/ada/stats"] {
        assert_eq!(kind(&with_status(&api.get(&operator, path).await, 400)), "tenant-required");
        with_status(&api.get(&operator, &format!("{path}?tenant_id=acme")).await, 200);
    }
    with_status(&api.get(&operator, "/api/conversations/list/acme").await, 200);
    with_status(&api.get(&operator, "/api/conversations/c0/full?tenant_id=globex").await, 404);
}

#[tokio::test]
async fn a_key_that_asks_too_often_gets_the_time_of_its_next_request_and_other_keys_are_not_affected()
 {
    let settings = [("VERBATIM_KEY_RATE", "1"), ("VERBATIM_KEY_BURST", "3")];
    let (_scenario, api) = started_with(&settings).await;
    let (eager, calm) = (api.key("acme", &["read"]).await, api.key("acme", &["read"]).await);
    let path = "/api/conversations/list/acme";
    let mut refused = None;
    for _ in 0..20 {
        let response = api.get(&eager, path).await;
        assert!(response.header("ratelimit-policy").unwrap().contains("q=3"), "{response:?}");
        if response.status == 429 {
            refused = Some(response);
            break;
        }
    }
    let refused = refused.expect("one of 20 requests is refused");
    assert_eq!(kind(&with_status(&refused, 429)), "rate-limited");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.header("ratelimit").unwrap().contains("r=0"), "{refused:?}");
    with_status(&api.get(&calm, path).await, 200);
}

#[tokio::test]
async fn an_address_of_many_unknown_keys_gets_429_and_other_addresses_and_remembered_keys_an_answer()
 {
    let settings = [
        ("VERBATIM_REFUSED_RATE", "1"),
        ("VERBATIM_REFUSED_BURST", "3"),
        ("VERBATIM_TRUSTED_PROXIES", "127.0.0.0/8"),
    ];
    let (_scenario, api) = started_with(&settings).await;
    let path = "/api/conversations/list/acme";
    let (known, new) = (api.key("acme", &["read"]).await, api.key("acme", &["read"]).await);
    let from = async |address: &str, key: &str| {
        api.get_with(key, path, &[("x-forwarded-for", address)]).await
    };
    with_status(&from("2001:db8::1", &known).await, 200);
    let mut limited = None;
    for n in 0..50 {
        let unknown = access::ApiKey::generate().unwrap();
        let response = from(&format!("2001:db8::{n}"), unknown.expose()).await;
        if response.status == 429 {
            limited = Some(response);
            break;
        }
        with_status(&response, 401);
    }
    let limited = limited.expect("one of 50 unknown keys is not looked up");
    let problem = with_status(&limited, 429);
    assert_eq!(kind(&problem), "rate-limited");
    assert!(problem["detail"].as_str().unwrap().contains("from this address"), "{problem}");
    assert_eq!(limited.header("retry-after"), Some("1"));
    with_status(&from("2001:db8::1", &known).await, 200);
    with_status(&from("2001:db8:0:1::1", &new).await, 200);
    let metrics = api.worker.get("/metrics").await.unwrap().body;
    let line = "verbatim_refused_credentials_total{reason=\"limited\"} 1\n";
    assert!(metrics.contains(line), "{line} in {metrics}");
}

#[tokio::test]
async fn browsers_may_call_from_the_configured_origins_alone() {
    let (_scenario, api) =
        started_with(&[("VERBATIM_CORS_ORIGINS", "https://crm.example.com")]).await;
    let allowed = async |origin: &str, method: &str| {
        let headers = [("origin", origin), ("access-control-request-method", "GET")];
        let response = api.request(method, "/api/conversations/list/acme", &headers).await;
        response.header("access-control-allow-origin").map(str::to_owned)
    };
    for method in ["OPTIONS", "GET"] {
        let crm = allowed("https://crm.example.com", method).await;
        assert_eq!(crm.as_deref(), Some("https://crm.example.com"), "{method}");
        assert_eq!(allowed("https://evil.example.com", method).await, None, "{method}");
    }
}

#[tokio::test]
async fn a_request_keeps_the_id_that_its_client_gave_if_it_is_plain() {
    let (_scenario, api) = started().await;
    let key = api.key("acme", &["read"]).await;
    let of = async |id: &str| {
        let headers = [("x-request-id", id)];
        let response = api.get_with(&key, "/api/conversations/x/full", &headers).await;
        with_status(&response, 404)["request_id"].as_str().unwrap().to_owned()
    };
    assert_eq!(of("my-id-1").await, "my-id-1");
    for bad in ["", "a b", &"x".repeat(129)] {
        assert_ne!(of(bad).await, *bad);
    }
}
