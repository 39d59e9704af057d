//! Requests that schemathesis makes from the OpenAPI document: valid ones, and invalid ones of every kind.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use system_tests::{COLLECTOR, SAVER};
use testkit::environment::deep;
use testkit::place::workspace;
use testkit::schemathesis::program;

use crate::{archived, started_with};

/// Dead letters that are there to be replayed and discarded.
const DEAD_LETTERS: u32 = 200;

/// The metric that counts answers.
const REQUESTS: &str = "verbatim_http_requests_total{";

#[tokio::test]
async fn answers_to_generated_requests_are_as_the_openapi_document_says() {
    let settings = [("VERBATIM_KEY_RATE", "1000000"), ("VERBATIM_KEY_BURST", "1000000")];
    let (scenario, api) = started_with(&settings).await;
    let _workers = [SAVER, COLLECTOR].map(|worker| scenario.launch(worker, &[]));
    archived(&scenario, "acme", 4, 5).await;
    let ids = scenario
        .sql(&format!(
            "INSERT INTO dead_letters (id, queue, reason, error, tenant_id, routing_key, exchange, body, properties, headers,
                                       attempts, replay_count, first_failed_at, last_failed_at)
             SELECT gen_random_uuid(), 'q', 'schema', 'e', 'acme', 'r', '',
                    '{{\"action_type\":\"conversation.session_opened\",\"tenant_id\":\"acme\",\"session_id\":\"s\"}}', '{{}}',
                    '{{}}', 1, 0, now(), now()
             FROM generate_series(1, {DEAD_LETTERS}) RETURNING 'id ' || id"
        ))
        .await;
    let ids: Vec<_> = ids.lines().filter_map(|line| line.strip_prefix("id ")).collect();
    let key = api.key("acme", &["read", "write", "operate", "erase"]).await;
    let config = scenario.dir().join("schemathesis.toml");
    let hooks = workspace().join("tests/schemathesis/valid.py");
    let hooks = format!("hooks = {:?}\n", hooks.to_str().unwrap());
    let examples = if deep() { 100 } else { 15 };
    let run = |mode: &'static str| {
        let mut command = Command::new(program());
        command.arg("--config-file").arg(&config).arg("run");
        command.arg(format!("http://{}/openapi.json", api.address));
        command.args(["--header", &format!("Authorization: Bearer {key}"), "--mode", mode]);
        command.args(["--max-examples", &examples.to_string(), "--seed", "1", "--workers", "1"]);
        // Valid data may be refused: two parameters contradict each other, or a dead letter was replayed before.
        command.args(["--exclude-checks", "positive_data_acceptance"]);
        command.args(["--phases", "examples,coverage,fuzzing", "--continue-on-failure"]);
        command.args([
            "--suppress-health-check",
            "all",
            "--no-color",
            "--output-truncate",
            "false",
        ]);
        command.args([
            "--report",
            "har",
            "--report-har-path",
            &format!("/work/scratch/{mode}.har"),
        ]);
        command.env("DEAD_LETTERS", ids.join(","));
        command.current_dir(scenario.dir()).stdin(Stdio::null());
        tokio::task::spawn_blocking(move || command.output())
    };
    let mut report = String::new();
    let mut counts = Vec::new();
    for (mode, hooks) in [("positive", hooks.as_str()), ("negative", "")] {
        std::fs::write(&config, hooks).unwrap();
        let ran = run(mode).await.unwrap().unwrap();
        let output = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(ran.status.success(), "{mode}: {output}\n{}", String::from_utf8_lossy(&ran.stderr));
        let metrics = api.worker.get("/metrics").await.unwrap().body;
        let lines: Vec<_> = metrics.lines().filter(|line| line.starts_with(REQUESTS)).collect();
        counts.push(answers(&lines));
        writeln!(report, "{mode}: {}\n{output}", lines.join("\n")).unwrap();
    }
    let (succeeded, all) = counts[0];
    assert!(succeeded * 10 >= all * 6, "2xx: {succeeded} of {all} valid requests\n{report}");
    assert!(counts[1].1 > all, "{report}");
    assert!(!report.contains(&key), "{report}");
}

/// Answers with 2xx, and all, from the metrics of the API.
fn answers(metrics: &[&str]) -> (u64, u64) {
    metrics.iter().fold((0, 0), |(succeeded, all), line| {
        let count: u64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
        (succeeded + if line.contains("status=\"succeeded\"") { count } else { 0 }, all + count)
    })
}
