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
                    '{{\"action_type\":\"conversation.save_message\",\"tenant_id\":\"acme\",\"session_id\":\"s\",
                       \"role\":\"user\",\"content\":\"c\"}}', '{{}}', '{{}}', 1, 0, now(), now()
             FROM generate_series(1, {DEAD_LETTERS}) RETURNING 'id ' || id"
        ))
        .await;
    let ids: Vec<_> = ids.lines().filter_map(|line| line.strip_prefix("id ")).collect();
    let key = api.key("acme", &["read", "write", "operate", "erase"]).await;
    let config = scenario.dir().join("schemathesis.toml");
    let hooks = workspace().join("tests/schemathesis/valid.py");
    let hooks = format!("hooks = {:?}\n", hooks.to_str().unwrap());
    let examples = if deep() { 100 } else { 15 };
    let run = |options: Vec<&'static str>| {
        let mut command = Command::new(program());
        command.arg("--config-file").arg(&config).arg("run");
        command.arg(format!("http://{}/openapi.json", api.address));
        command.args(["--header", &format!("Authorization: Bearer {key}")]);
        // One thread: CPython 3.11 parses no source in several at once ("AST constructor recursion depth mismatch").
        command.args(["--max-examples", &examples.to_string(), "--seed", "1", "--workers", "1"]);
        command.args(["--suppress-health-check", "all", "--no-color", "--continue-on-failure"]);
        // A replay that waits answers within VERBATIM_DURABLE_WAIT (10 s).
        command.args(["--output-truncate", "false", "--request-timeout", "30"]).args(options);
        command.env("DEAD_LETTERS", ids.join(","));
        command.current_dir(scenario.dir()).stdin(Stdio::null());
        tokio::task::spawn_blocking(move || command.output())
    };
    let (mut report, mut counts) = (String::new(), Vec::new());
    for (hooks, options) in [
        // Valid requests. Some are refused: a dead letter was replayed before, or two parameters contradict each other.
        (
            hooks.as_str(),
            [
                "--mode",
                "positive",
                "--phases",
                "fuzzing",
                "--exclude-checks",
                "positive_data_acceptance,ignored_auth",
            ],
        ),
        // All others.
        (
            "",
            [
                "--mode",
                "all",
                "--phases",
                "coverage,fuzzing",
                "--exclude-checks",
                "positive_data_acceptance",
            ],
        ),
    ] {
        std::fs::write(&config, hooks).unwrap();
        let ran = run(options.to_vec()).await.unwrap().unwrap();
        let output = String::from_utf8_lossy(&ran.stdout).into_owned();
        let error = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{options:?}: {output}\n{error}");
        let metrics = api.worker.get("/metrics").await.unwrap().body;
        let lines: Vec<_> = metrics.lines().filter(|line| line.starts_with(REQUESTS)).collect();
        counts.push(answers(&lines));
        writeln!(report, "{options:?}: {}\n{output}", lines.join("\n")).unwrap();
    }
    let (succeeded, all) = counts[0];
    println!("valid requests: {succeeded} of {all} answered with 2xx");
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
