//! The alert about each anomaly of callers: the shipped rules, on the metrics of a real process.
//!
//! The metrics are read after each step. `promtool` gets them as Prometheus would scrape them, with the shipped interval,
//! and evaluates the shipped rules in simulated time.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use system_tests::ApiServer;
use testkit::monitoring::Program;
use testkit::place::workspace;

use crate::{archived, started_with, with_status};

/// How long an alert may take, after what it is about.
const PROMISED: Duration = Duration::from_secs(120);

/// How often the rest of a step is scraped. Longer than [`PROMISED`].
const SCRAPES: u32 = 10;
/// The same for normal use. Longer than the windows of the rules.
const NORMAL_SCRAPES: u32 = 48;

/// A tenth of the default, so that fewer pages are read.
const READS_MINIMUM: (&str, &str) = ("VERBATIM_ANOMALY_READS_MINIMUM", "1000");
/// Messages of the conversation that is read, and of a page.
const MESSAGES: u32 = 1_000;
/// Ten times the minimum: no anomaly of a key of which no hour is known (docs/operations.md#verbatimanomaly).
const NORMAL_PAGES: u32 = 10;

const LIST: &str = "/api/conversations/list/acme";

#[tokio::test]
async fn each_anomaly_raises_its_alert_within_two_minutes_and_normal_use_raises_none() {
    let (scenario, api) = started_with(&[READS_MINIMUM]).await;
    archived(&scenario, "acme", 1, MESSAGES).await;
    let key = api.key("acme", &["read", "write"]).await;
    let mut prometheus = Simulated::new();
    prometheus.scrape(&api, 4).await;
    prometheus.expect_at_all_times(&[]);

    normal_use(&api, &key).await;
    prometheus.scrape(&api, NORMAL_SCRAPES).await;
    prometheus.expect_at_all_times(&[]);

    // After ten without a key.
    with_status(&api.get("vbt_mistyped", LIST).await, 401);
    prometheus.scrape(&api, SCRAPES).await;
    prometheus.expect_as_promised(&["refused_keys"]);

    // After two such requests.
    with_status(&api.get(&key, "/api/conversations/list/umbrella").await, 404);
    prometheus.scrape(&api, SCRAPES).await;
    prometheus.expect_as_promised(&["foreign_tenants", "refused_keys"]);

    read(&api, &key, 1).await;
    prometheus.scrape(&api, SCRAPES).await;
    // The refused keys are more than five minutes ago.
    prometheus.expect_as_promised(&["foreign_tenants", "reads"]);
    prometheus.test(&scenario.dir().join("anomalies.yml"));
}

/// What programs do, their mistakes included: as much as is no anomaly.
async fn normal_use(api: &ApiServer, key: &str) {
    for n in 0..10 {
        with_status(&api.get(key, LIST).await, 200);
        with_status(&api.get(key, "/api/conversations/stats/acme").await, 200);
        let message = json!({
            "action_type": "conversation.save_message", "session_id": "web-1", "message_id": n.to_string(),
            "role": "user", "content": "hello",
        });
        with_status(&api.post(key, "/api/actions", &[], &message).await, 202);
        with_status(&api.get(key, "/api/conversations/never-was/full").await, 404);
        with_status(&api.get(key, &format!("{LIST}?limit=0")).await, 422);
        with_status(&api.request("GET", LIST, &[]).await, 401);
    }
    for tenant in ["globex", "initech"] {
        with_status(&api.get(key, &format!("/api/conversations/list/{tenant}")).await, 404);
    }
    read(api, key, NORMAL_PAGES).await;
}

/// Reads all messages of the conversation so many times.
async fn read(api: &ApiServer, key: &str, times: u32) {
    let path = format!("/api/conversations/c0/full?limit={MESSAGES}");
    for _ in 0..times {
        assert_eq!(api.get(key, &path).await.status, 200);
    }
}

/// A Prometheus with the shipped intervals, which has scraped a process.
struct Simulated {
    interval: Duration,
    /// The values of each series; a scrape without it is `_`.
    series: BTreeMap<String, Vec<String>>,
    scrapes: u32,
    /// How many scrapes there were before the last step.
    before: u32,
    /// The expected alerts, with their times.
    expected: Vec<Value>,
}

impl Simulated {
    fn new() -> Self {
        let config = std::fs::read_to_string(workspace().join("deploy/prometheus/prometheus.yml"));
        let config: Value = serde_saphyr::from_str(&config.unwrap()).unwrap();
        let interval = |name: &str| {
            humantime::parse_duration(config["global"][name].as_str().unwrap()).unwrap()
        };
        let scrape = interval("scrape_interval");
        assert_eq!(scrape, interval("evaluation_interval"));
        Self { interval: scrape, series: BTreeMap::new(), scrapes: 0, before: 0, expected: vec![] }
    }

    /// Scrapes so many times, and finds the same each time.
    async fn scrape(&mut self, api: &ApiServer, times: u32) {
        let text = api.worker.get("/metrics").await.unwrap().body;
        let samples = text.lines().filter(|line| line.starts_with("verbatim_"));
        for (series, value) in samples.filter_map(|line| line.rsplit_once(' ')) {
            let target = r#"job="conversation-api",instance="api-1:9464""#;
            let series = match series.strip_suffix('}') {
                Some(labels) => format!("{labels},{target}}}"),
                None => format!("{series}{{{target}}}"),
            };
            let values = self.series.entry(series).or_default();
            values.resize(self.scrapes as usize, "_".to_owned());
            values.extend(std::iter::repeat_n(value.to_owned(), times as usize));
        }
        self.before = self.scrapes;
        self.scrapes += times;
    }

    /// All alerts at the times of the last step are about these kinds of anomalies.
    fn expect_at_all_times(&mut self, kinds: &[&str]) {
        for scrape in self.before..self.scrapes {
            self.expect(self.interval * scrape, kinds);
        }
    }

    /// All alerts are about these kinds of anomalies, at the promised time after the last step. It began directly after a
    /// scrape.
    fn expect_as_promised(&mut self, kinds: &[&str]) {
        let began = self.interval * (self.before - 1);
        self.expect(began + PROMISED, kinds);
    }

    fn expect(&mut self, time: Duration, kinds: &[&str]) {
        let samples = kinds.iter().map(|kind| {
            let labels = format!(
                "ALERTS{{alertname=\"VerbatimAnomaly\", alertstate=\"firing\", job=\"conversation-api\", \
                 kind=\"{kind}\", severity=\"warning\"}}"
            );
            json!({"labels": labels, "value": 1})
        });
        self.expected.push(json!({
            "expr": "ALERTS{alertstate=\"firing\"}",
            "eval_time": format!("{}s", time.as_secs()),
            "exp_samples": samples.collect::<Vec<_>>(),
        }));
    }

    /// Evaluates the shipped rules with `promtool`.
    fn test(&self, file: &Path) {
        let interval = format!("{}s", self.interval.as_secs());
        let series = self
            .series
            .iter()
            .map(|(series, values)| json!({"series": series, "values": values.join(" ")}));
        let tests = json!({
            "rule_files": [workspace().join("deploy/prometheus/rules/api.yml")],
            "evaluation_interval": interval,
            "tests": [{
                "interval": interval,
                "input_series": series.collect::<Vec<_>>(),
                "promql_expr_test": self.expected,
            }],
        });
        // JSON is valid YAML.
        std::fs::write(file, tests.to_string()).unwrap();
        let promtool = Program::Promtool.path().unwrap();
        let output = Command::new(promtool).args(["test", "rules"]).arg(file).output().unwrap();
        let text =
            [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
        assert!(output.status.success(), "{}", text.concat());
    }
}
