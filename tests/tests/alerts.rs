//! From a dead letter to a person and back: the shipped rules and routes in a real Prometheus and a real
//! Alertmanager, over a real fleet.
//!
//! What differs from production is in [`scraping`] and [`routes`]: where things are, and how often
//! they are looked at. The rules are those that ship, and what they wait for (`for:`) is waited for.

#![expect(clippy::unwrap_used, reason = "a failure here is the failure of the test")]

use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use system_tests::{Counts, LIMIT, MIGRATION, SAVER, STATISTICS, Scenario, key, message};
use testkit::fleet::Worker;
use testkit::monitoring::Monitor;
use testkit::place::workspace;
use testkit::wait::eventually;
use testkit::webhook::{Call, Webhook};

const SAVES: &str = "conversation.save_message";

/// How often everything is done that takes 15 s to 5 min in production.
const OFTEN: &str = "1s";

/// For an alert to be told: what its rule waits for, which is a minute at most here, and as much again.
const OVERDUE_AFTER: Duration = Duration::from_secs(150);

#[tokio::test]
async fn a_dead_letter_raises_an_alert_and_its_replay_resolves_it() {
    let scenario = Scenario::new().await;
    let fleet = tokio::join!(
        scenario.start(SAVER),
        scenario.start(SAVER),
        scenario.start(MIGRATION),
        scenario.start(STATISTICS),
        scenario.start(STATISTICS),
    );
    let fleet: [Worker; 5] = fleet.into();
    let (agent, reader) = (scenario.agent(), scenario.reader());
    let watch = Watch::over(&fleet).await;

    // A role that no contract knows.
    let mistaken = message("alerts", "s", "m1", &json!({"role": "bot"}));
    agent.publish(&mistaken).await;
    let fired = watch.told("VerbatimDeadLettersPresent", "firing").await;
    let labels = &fired["labels"];
    assert_eq!(labels["queue"], SAVES, "{fired}");
    assert_eq!((&labels["reason"], &labels["severity"]), (&json!("schema"), &json!("warning")));
    let annotations = &fired["annotations"];
    assert_eq!(annotations["summary"], format!("Dead letters of {SAVES}: 1 (schema)"));
    assert_eq!(annotations["runbook_url"], "docs/operations.md#verbatimdeadletterspresent");

    edit_and_replay(&scenario).await;
    let resolved = watch.told("VerbatimDeadLettersPresent", "resolved").await;
    assert_eq!(resolved["labels"], *labels);
    let saved = reader.stored(&key(&mistaken)).await;
    assert_eq!(saved.len(), 1, "{saved:?}");

    // Two replicas count the dead letter, and it is one alert; and nothing else alarmed anybody.
    watch.assert_only(labels, "/office-hours");
    scenario.finish(fleet).await;
}

#[tokio::test]
async fn a_missing_queue_raises_a_critical_alert_until_setup_declares_it() {
    let scenario = Scenario::new().await;
    let fleet =
        tokio::join!(scenario.start(SAVER), scenario.start(MIGRATION), scenario.start(STATISTICS),);
    let fleet: [Worker; 3] = fleet.into();
    let watch = Watch::over(&fleet).await;
    scenario.rabbit().delete_queue("bot.state").await;
    let fired = watch.told("VerbatimQueueMissing", "firing").await;
    let labels = &fired["labels"];
    assert_eq!((&labels["queue"], &labels["severity"]), (&json!("bot.state"), &json!("critical")));
    scenario.declare().await;
    watch.told("VerbatimQueueMissing", "resolved").await;
    watch.assert_only(labels, "/pager");
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
    eventually("a health check that fails", LIMIT, async || {
        let output = check("readyz").await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let fails = output.status.code() == Some(1) && said.contains("Redis is away");
        if fails { Ok(()) } else { Err(format!("{}: {said}", output.status)) }
    })
    .await;
    assert!(check("livez").await.status.success(), "a restart would not help");
    scenario.finish([saver]).await;
}

#[tokio::test]
async fn a_missing_queue_is_distinguished_from_an_empty_one() {
    let scenario = Scenario::new().await;
    let statistics = scenario.start(STATISTICS).await;
    let (exists, queue) = ("verbatim_queue_exists", [("queue", "bot.state")]);
    Counts::reach(&statistics, exists, &queue, 1.0).await;
    scenario.rabbit().delete_queue("bot.state").await;
    eventually("a queue that is told missing", LIMIT, async || {
        match Counts::of(&statistics).await.sum(exists, &queue) {
            0.0 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    assert!(statistics.log().contains("the queue is missing"), "{}", statistics.log_tail());
    scenario.declare().await;
    Counts::reach(&statistics, exists, &queue, 1.0).await;
    scenario.finish([statistics]).await;
}

#[tokio::test]
async fn dead_letter_counters_start_at_zero() {
    let scenario = Scenario::new().await;
    let statistics = scenario.start(STATISTICS).await;
    let told = statistics.get("/metrics").await.unwrap().body;
    for counter in [
        r#"verbatim_dead_letters_stored_total{queue="conversation.save_message",reason="schema"} 0"#,
        r#"verbatim_messages_rerouted_total{cause="unrouted",queue="domain.unrouted"} 0"#,
    ] {
        assert!(told.lines().any(|line| line == counter), "no {counter} in\n{told}");
    }
    scenario.finish([statistics]).await;
}

/// What an operator does about a dead letter whose fault is known.
async fn edit_and_replay(scenario: &Scenario) {
    let id = scenario.sql("SELECT id FROM dead_letters").await;
    let edit = ["dead-letters", "edit", &id, "--set", "role=assistant"];
    for arguments in [&edit[..], &["dead-letters", "replay", &id]] {
        let output = scenario.verbatim(arguments).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {}\n{said}", output.status);
    }
}

/// A Prometheus and an Alertmanager as they ship, and whom they tell.
struct Watch {
    prometheus: Monitor,
    _alertmanager: Monitor,
    people: Webhook,
}

impl Watch {
    /// Watches over a fleet, every replica of it.
    async fn over(fleet: &[Worker]) -> Self {
        let people = Webhook::listen().await.unwrap();
        let alertmanager = Monitor::alertmanager(&routes(people.address())).await.unwrap();
        let config = scraping(fleet, alertmanager.address()).await;
        let prometheus = Monitor::prometheus(&config).await.unwrap();
        eventually("every replica to be scraped", LIMIT, async || {
            let path = "/api/v1/query?query=sum(up)";
            let answer = prometheus.get(path).await.map_err(|error| format!("{error:#}"))?;
            let up = answer["data"]["result"][0]["value"][1].as_str().unwrap_or_default();
            if up == fleet.len().to_string() { Ok(()) } else { Err(answer.to_string()) }
        })
        .await;
        Self { prometheus, _alertmanager: alertmanager, people }
    }

    /// Waits until somebody is told that an alert has a status, and returns it.
    async fn told(&self, name: &str, status: &str) -> Value {
        eventually(format!("{name} to be {status}"), OVERDUE_AFTER, async || {
            let is_it =
                |alert: &&Value| alert["status"] == status && alert["labels"]["alertname"] == name;
            let calls = self.people.calls();
            match calls.iter().flat_map(alerts).rfind(is_it) {
                Some(alert) => Ok(alert.clone()),
                None => Err(format!("{calls:?}; Prometheus says {}", self.pending().await)),
            }
        })
        .await
    }

    /// Makes sure that everybody was told of one alert alone, at one address.
    fn assert_only(&self, labels: &Value, path: &str) {
        let calls = self.people.calls();
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

/// The shipped configuration, with the addresses of this fleet instead of those that Docker knows.
async fn scraping(fleet: &[Worker], alertmanager: SocketAddr) -> Value {
    let mut config = shipped("prometheus/prometheus.yml");
    config["global"] = json!({"scrape_interval": OFTEN, "evaluation_interval": OFTEN});
    for file in config["rule_files"].as_array_mut().unwrap() {
        // Relative to where the configuration ships.
        let shipped = workspace().join("deploy/prometheus").join(file.as_str().unwrap());
        *file = json!(shipped);
    }
    config["alerting"]["alertmanagers"] =
        json!([{"static_configs": [{"targets": [alertmanager.to_string()]}]}]);
    for job in config["scrape_configs"].as_array_mut().unwrap() {
        let name = job["job_name"].as_str().unwrap().to_owned();
        let mut replicas = Vec::new();
        for worker in fleet.iter().filter(|worker| worker.name().starts_with(&name)) {
            replicas.push(worker.address().await.unwrap().to_string());
        }
        assert!(!replicas.is_empty(), "a {name} in this fleet");
        let job = job.as_object_mut().unwrap();
        job.remove("dns_sd_configs").unwrap();
        job.insert("static_configs".to_owned(), json!([{ "targets": replicas }]));
    }
    config
}

/// The shipped routes, with a receiver of this test, and without the patience.
fn routes(people: SocketAddr) -> Value {
    let mut config = shipped("alertmanager/alertmanager.yml");
    config["route"]["group_interval"] = json!(OFTEN);
    config["route"]["group_wait"] = json!(OFTEN);
    for route in config["route"]["routes"].as_array_mut().unwrap() {
        route["group_wait"] = json!(OFTEN);
    }
    for receiver in config["receivers"].as_array_mut().unwrap() {
        let url = &mut receiver["webhook_configs"][0]["url"];
        let path = url.as_str().unwrap().rsplit('/').next().unwrap();
        *url = json!(format!("http://{people}/{path}"));
    }
    config
}

fn shipped(file: &str) -> Value {
    let text = std::fs::read_to_string(workspace().join("deploy").join(file)).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}
