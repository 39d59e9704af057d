//! From a dead letter to a person and back: the shipped rules and routes in a real Prometheus and a real
//! Alertmanager, over a real fleet.
//!
//! What differs from production is in [`scraping`] and [`routes`]: where things are, and how often
//! they are looked at. The rules are those that ship, and what they wait for (`for:`) is waited for.

#![expect(clippy::unwrap_used, reason = "a failure here is the failure of the test")]

use serde_json::{Value, json};
use std::net::SocketAddr;
use system_tests::{Agent, Counts, LIMIT, MIGRATION, SAVER, STATISTICS, Scenario, key, message};
use testkit::fleet::Worker;
use testkit::monitoring::Monitor;
use testkit::place::workspace;
use testkit::wait::eventually;
use testkit::webhook::{Call, Webhook};

const SAVES: &str = "conversation.save_message";
const PRESENT: &str = "VerbatimDeadLettersPresent";

/// How often everything is done that takes 15 s to 5 min in production.
const OFTEN: &str = "1s";

#[tokio::test]
async fn a_dead_letter_reaches_a_person_and_its_replay_ends_the_alert() {
    let scenario = Scenario::new().await;
    let fleet = tokio::join!(
        scenario.start(SAVER),
        scenario.start(SAVER),
        scenario.start(MIGRATION),
        scenario.start(STATISTICS),
        scenario.start(STATISTICS),
    );
    let fleet: [Worker; 5] = fleet.into();
    let (agent, eyes) = (scenario.agent(), scenario.eyes());
    let people = Webhook::listen().await.unwrap();
    let alertmanager = Monitor::alertmanager(&routes(people.address())).await.unwrap();
    let prometheus =
        Monitor::prometheus(&scraping(&fleet, alertmanager.address()).await).await.unwrap();
    eventually("every replica to be scraped", LIMIT, async || {
        let up = value(&prometheus, "sum(up)").await?;
        if up == "5" { Ok(()) } else { Err(format!("{up} are up")) }
    })
    .await;

    // A role that no contract knows.
    let mistaken = message("alerts", "s", "m1", &json!({"role": "bot"}));
    agent.publish(&mistaken).await;
    let fired = told(&people, "firing", &prometheus).await;
    let labels = &fired["labels"];
    assert_eq!(labels["queue"], SAVES, "{fired}");
    assert_eq!((&labels["reason"], &labels["severity"]), (&json!("schema"), &json!("warning")));
    let annotations = &fired["annotations"];
    assert_eq!(annotations["summary"], format!("Dead letters of {SAVES}: 1 (schema)"));
    assert_eq!(annotations["runbook_url"], "docs/operations.md#verbatimdeadletterspresent");

    mend_and_replay(&scenario, &agent, &mistaken).await;
    let resolved = told(&people, "resolved", &prometheus).await;
    assert_eq!(resolved["labels"], *labels);
    let saved = eyes.archived(&key(&mistaken)).await;
    assert_eq!(saved.len(), 1, "{saved:?}");

    // Two replicas count the letter, and it is one alert; and nothing else alarmed anybody.
    let calls = people.calls();
    for alert in calls.iter().flat_map(|call| call.body["alerts"].as_array().unwrap()) {
        assert_eq!(alert["labels"], *labels, "{calls:#?}");
    }
    assert!(calls.iter().all(|call| call.path == "/office-hours"), "{calls:#?}");
    scenario.rest(fleet).await;
}

#[tokio::test]
async fn a_missing_queue_is_told_apart_from_an_empty_one() {
    let scenario = Scenario::new().await;
    let statistics = scenario.start(STATISTICS).await;
    let (exists, queue) = ("verbatim_queue_exists", [("queue", "bot.state")]);
    Counts::reach(&statistics, exists, &queue, 1.0).await;
    scenario.side().delete_queue("bot.state").await;
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
    scenario.rest([statistics]).await;
}

#[tokio::test]
async fn the_first_letter_of_a_keeper_is_an_increase() {
    let scenario = Scenario::new().await;
    let statistics = scenario.start(STATISTICS).await;
    let told = statistics.get("/metrics").await.unwrap().body;
    for counter in [
        r#"verbatim_dead_letters_stored_total{queue="conversation.save_message",reason="schema"} 0"#,
        r#"verbatim_dead_letters_sent_back_total{cause="unrouted",queue="domain.unrouted"} 0"#,
    ] {
        assert!(told.lines().any(|line| line == counter), "no {counter} in\n{told}");
    }
    scenario.rest([statistics]).await;
}

/// What an operator does about a letter whose fault is known: mends a copy and sends it.
async fn mend_and_replay(scenario: &Scenario, agent: &Agent, mistaken: &Value) {
    let mut mended = mistaken.clone();
    mended["role"] = json!("assistant");
    agent.publish(&mended).await;
    scenario.until_sql("SELECT count(*) FROM messages", "1").await;
    scenario.sql("UPDATE dead_letters SET status = 'replayed', status_changed_at = now()").await;
}

/// Waits until somebody is told of the one alert with a status, and returns it.
async fn told(people: &Webhook, status: &str, prometheus: &Monitor) -> Value {
    eventually(format!("{PRESENT} to be {status}"), LIMIT, async || {
        let calls = people.calls();
        let alerts = calls.iter().flat_map(|call| call.body["alerts"].as_array().unwrap());
        let is_it =
            |alert: &&Value| alert["status"] == status && alert["labels"]["alertname"] == PRESENT;
        match alerts.rev().find(is_it) {
            Some(alert) => Ok(alert.clone()),
            None => {
                Err(format!("{}; Prometheus says {}", shown(&calls), alerts_of(prometheus).await))
            }
        }
    })
    .await
}

fn shown(calls: &[Call]) -> String {
    let bodies = calls.iter().map(|call| format!("{} {}", call.path, call.body));
    bodies.collect::<Vec<_>>().join("; ")
}

async fn alerts_of(prometheus: &Monitor) -> String {
    match prometheus.get("/api/v1/alerts").await {
        Ok(answer) => answer["data"]["alerts"].to_string(),
        Err(error) => format!("{error:#}\n{}", prometheus.log_tail()),
    }
}

/// The value of a query that has one sample without labels.
async fn value(prometheus: &Monitor, query: &str) -> Result<String, String> {
    let path = format!("/api/v1/query?query={query}");
    let answer = prometheus.get(&path).await.map_err(|error| format!("{error:#}"))?;
    let value = answer["data"]["result"][0]["value"][1].as_str();
    value.map(str::to_owned).ok_or_else(|| answer.to_string())
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
