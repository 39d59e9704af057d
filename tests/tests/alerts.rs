//! The shipped alerting rules and routes in a real Prometheus and a real Alertmanager, with real workers.
//!
//! [`scraping`] and [`routes`] change addresses and intervals alone, and [`hurried`] divides the waiting
//! times of the shipped rules (`for:`); their expressions stay. When a rule fires with its real waiting time
//! is tested by `promtool` (`deploy/prometheus/tests`), with simulated time.

#![expect(clippy::unwrap_used, reason = "a failure here is the failure of the test")]

use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use system_tests::{
    ApiServer, COLLECTOR, Counts, LIMIT, MIGRATION, SAVER, STATISTICS, Scenario, key_of, message,
};
use testkit::fleet::Worker;
use testkit::monitoring::Monitor;
use testkit::place::workspace;
use testkit::wait::eventually;
use testkit::webhook::{Call, Webhook};

const SAVES: &str = "conversation.save_message";

/// The interval of scrapes, rule evaluations and notifications; 15 s to 5 min in production.
const INTERVAL: &str = "1s";

/// What the waiting times of the rules are divided by: a minute becomes three seconds.
const HURRY: u32 = 20;

#[tokio::test]
async fn a_dead_letter_raises_an_alert_and_its_replay_resolves_it() {
    let scenario = Scenario::new().await;
    let fleet = tokio::join!(
        scenario.start(SAVER),
        scenario.start(SAVER),
        scenario.start(MIGRATION),
        scenario.start(STATISTICS),
        scenario.start(COLLECTOR),
        scenario.start(COLLECTOR),
        api(&scenario),
    );
    let fleet: [Worker; 7] = fleet.into();
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let monitoring = Monitoring::of(&fleet).await;

    // A role that is not in the contract.
    let bad = message("alerts", "s", "m1", &json!({"role": "bot"}));
    agent.publish(&bad).await;
    let fired = monitoring.notified("VerbatimDeadLettersPresent", "firing").await;
    let labels = &fired["labels"];
    assert_eq!(labels["queue"], SAVES, "{fired}");
    assert_eq!((&labels["reason"], &labels["severity"]), (&json!("schema"), &json!("warning")));
    let annotations = &fired["annotations"];
    assert_eq!(annotations["summary"], format!("Dead letters of {SAVES}: 1 (reason schema)"));
    assert_eq!(annotations["runbook_url"], "docs/operations.md#verbatimdeadletterspresent");

    edit_and_replay(&scenario).await;
    let resolved = monitoring.notified("VerbatimDeadLettersPresent", "resolved").await;
    assert_eq!(resolved["labels"], *labels);
    let saved = reader.stored(&key_of(&bad)).await;
    assert_eq!(saved.len(), 1, "{saved:?}");

    // Two replicas report the dead letter, which is one alert; there was no other alert.
    monitoring.assert_only(labels, "/office-hours");
    scenario.finish(fleet).await;
}

/// The API, which Prometheus watches too.
async fn api(scenario: &Scenario) -> Worker {
    ApiServer::start(scenario, &[]).await.worker
}

#[tokio::test]
async fn a_missing_queue_raises_a_critical_alert_until_setup_declares_it() {
    let scenario = Scenario::new().await;
    let fleet = tokio::join!(
        scenario.start(SAVER),
        scenario.start(MIGRATION),
        scenario.start(STATISTICS),
        scenario.start(COLLECTOR),
        api(&scenario),
    );
    let fleet: [Worker; 5] = fleet.into();
    let monitoring = Monitoring::of(&fleet).await;
    scenario.rabbit().delete_queue("conversation.context").await;
    let fired = monitoring.notified("VerbatimQueueMissing", "firing").await;
    let labels = &fired["labels"];
    assert_eq!(
        (&labels["queue"], &labels["severity"]),
        (&json!("conversation.context"), &json!("critical"))
    );
    scenario.declare().await;
    monitoring.notified("VerbatimQueueMissing", "resolved").await;
    monitoring.assert_only(labels, "/pager");
    scenario.finish(fleet).await;
}

#[tokio::test]
async fn the_health_check_of_the_image_reports_the_workers_status() {
    let scenario = Scenario::new().await;
    let saver = scenario.start(SAVER).await;
    let address = saver.address().await.unwrap().to_string();
    let check = async |page: &str| {
        let script = workspace().join("deploy/healthcheck.sh");
        let mut command = std::process::Command::new(script);
        command.arg(page).env("VERBATIM_LISTEN", &address);
        tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap()
    };
    assert!(check("livez").await.status.success() && check("readyz").await.status.success());
    scenario.redis().stop().await.unwrap();
    eventually("the health check to fail", LIMIT, async || {
        let output = check("readyz").await;
        let reason = String::from_utf8_lossy(&output.stdout).into_owned();
        let fails = output.status.code() == Some(1) && reason.contains("Redis unavailable");
        if fails { Ok(()) } else { Err(format!("{}: {reason}", output.status)) }
    })
    .await;
    assert!(check("livez").await.status.success(), "a restart would not help");
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn a_missing_queue_is_distinguished_from_an_empty_one() {
    let scenario = Scenario::new().await;
    let collector = scenario.start(COLLECTOR).await;
    let (exists, queue) = ("verbatim_queue_exists", [("queue", "conversation.context")]);
    Counts::reach(&collector, exists, &queue, 1.0).await;
    scenario.rabbit().delete_queue("conversation.context").await;
    eventually("the queue to be reported missing", LIMIT, async || {
        match Counts::of(&collector).await.sum(exists, &queue) {
            0.0 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    assert!(collector.log().contains("the queue is missing"), "{}", collector.log_tail());
    scenario.declare().await;
    Counts::reach(&collector, exists, &queue, 1.0).await;
    scenario.finish([collector]).await;
}

#[tokio::test]
async fn dead_letter_counters_start_at_zero() {
    let scenario = Scenario::new().await;
    let collector = scenario.start(COLLECTOR).await;
    let body = collector.get("/metrics").await.unwrap().body;
    for counter in [
        r#"verbatim_dead_letters_stored_total{queue="conversation.save_message",reason="schema"} 0"#,
        r#"verbatim_messages_rerouted_total{cause="unrouted",queue="domain.unrouted"} 0"#,
    ] {
        assert!(body.lines().any(|line| line == counter), "no {counter} in\n{body}");
    }
    scenario.finish([collector]).await;
}

/// Repairs the dead letter with a known fault and replays it, as an operator does.
async fn edit_and_replay(scenario: &Scenario) {
    let id = scenario.sql("SELECT id FROM dead_letters").await;
    let edit = ["dead-letters", "edit", &id, "--set", "role=assistant"];
    for arguments in [&edit[..], &["dead-letters", "replay", &id]] {
        let output = scenario.verbatim(arguments).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {}\n{error}", output.status);
    }
}

/// Prometheus and Alertmanager with the shipped configuration, and the receiver of notifications.
struct Monitoring {
    prometheus: Monitor,
    _alertmanager: Monitor,
    receiver: Webhook,
}

impl Monitoring {
    /// Scrapes every replica of these workers.
    async fn of(fleet: &[Worker]) -> Self {
        let receiver = Webhook::listen().await.unwrap();
        let alertmanager = Monitor::alertmanager(&routes(receiver.address())).await.unwrap();
        let config = scraping(fleet, alertmanager.address()).await;
        let prometheus = Monitor::prometheus(&config, &hurried_rules()).await.unwrap();
        eventually("all replicas to be scraped", LIMIT, async || {
            let path = "/api/v1/query?query=sum(up)";
            let answer = prometheus.get(path).await.map_err(|error| format!("{error:#}"))?;
            let up = answer["data"]["result"][0]["value"][1].as_str().unwrap_or_default();
            if up == fleet.len().to_string() { Ok(()) } else { Err(answer.to_string()) }
        })
        .await;
        Self { prometheus, _alertmanager: alertmanager, receiver }
    }

    /// Waits until the receiver is notified of an alert with a status, and returns the alert.
    async fn notified(&self, name: &str, status: &str) -> Value {
        eventually(format!("a notification that {name} is {status}"), LIMIT, async || {
            let is_it =
                |alert: &&Value| alert["status"] == status && alert["labels"]["alertname"] == name;
            let calls = self.receiver.calls();
            match calls.iter().flat_map(alerts).rfind(is_it) {
                Some(alert) => Ok(alert.clone()),
                None => Err(format!(
                    "notifications {calls:?}; alerts in Prometheus {}",
                    self.pending().await
                )),
            }
        })
        .await
    }

    /// Checks that only this alert was notified, at this path alone.
    fn assert_only(&self, labels: &Value, path: &str) {
        let calls = self.receiver.calls();
        let other = calls.iter().flat_map(alerts).find(|alert| alert["labels"] != *labels);
        assert_eq!(other, None, "{calls:#?}");
        assert!(calls.iter().all(|call| call.path == path), "{calls:#?}");
    }

    async fn pending(&self) -> String {
        match self.prometheus.get("/api/v1/alerts").await {
            Ok(answer) => answer["data"]["alerts"].to_string(),
            Err(error) => format!("{error:#}\n{}", self.prometheus.log_tail()),
        }
    }
}

fn alerts(call: &Call) -> &[Value] {
    call.body["alerts"].as_array().unwrap()
}

/// The shipped Prometheus configuration, with the addresses of these workers instead of Docker's names.
async fn scraping(fleet: &[Worker], alertmanager: SocketAddr) -> Value {
    let mut config = shipped("prometheus/prometheus.yml");
    config["global"] = json!({"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL});
    config["rule_files"] = json!(["rules-*.yml"]);
    config["alerting"]["alertmanagers"] =
        json!([{"static_configs": [{"targets": [alertmanager.to_string()]}]}]);
    for job in config["scrape_configs"].as_array_mut().unwrap() {
        let name = job["job_name"].as_str().unwrap().to_owned();
        let mut replicas = Vec::new();
        for worker in fleet.iter().filter(|worker| worker.name().starts_with(&name)) {
            replicas.push(worker.address().await.unwrap().to_string());
        }
        assert!(!replicas.is_empty(), "no worker of job {name}");
        let job = job.as_object_mut().unwrap();
        job.remove("dns_sd_configs").unwrap();
        job.insert("static_configs".to_owned(), json!([{ "targets": replicas }]));
    }
    config
}

/// The files of shipped rules, with shorter waiting times.
fn hurried_rules() -> Vec<Value> {
    let folder = workspace().join("deploy/prometheus/rules");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|file| hurried(yaml(&file))).collect()
}

fn hurried(mut rules: Value) -> Value {
    for group in rules["groups"].as_array_mut().unwrap() {
        for rule in group["rules"].as_array_mut().unwrap() {
            if let Some(wait) = rule["for"].as_str() {
                let wait = humantime::parse_duration(wait).unwrap() / HURRY;
                rule["for"] = json!(format!("{}ms", wait.as_millis()));
            }
        }
    }
    rules
}

/// The shipped routes, with this test's receiver and short waiting times.
fn routes(webhook: SocketAddr) -> Value {
    let mut config = shipped("alertmanager/alertmanager.yml");
    config["route"]["group_interval"] = json!(INTERVAL);
    config["route"]["group_wait"] = json!(INTERVAL);
    for route in config["route"]["routes"].as_array_mut().unwrap() {
        route["group_wait"] = json!(INTERVAL);
    }
    for receiver in config["receivers"].as_array_mut().unwrap() {
        let url = &mut receiver["webhook_configs"][0]["url"];
        let path = url.as_str().unwrap().rsplit('/').next().unwrap();
        *url = json!(format!("http://{webhook}/{path}"));
    }
    config
}

fn shipped(file: &str) -> Value {
    yaml(&workspace().join("deploy").join(file))
}

fn yaml(file: &Path) -> Value {
    serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}
