//! `deploy/` and `docker-compose.yml` are consistent with each other and with the binaries. Tested without a
//! container engine.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use domain::fleet::{self, Process};
use serde_json::Value;
use testkit::fleet::Fleet;
use testkit::place::workspace;

#[test]
fn the_image_contains_the_binaries_that_the_services_run() {
    for (name, service) in product_services() {
        let first = service["command"][0].as_str().unwrap_or("verbatim");
        assert!(Process::named(first).is_some(), "{name} runs {first}");
        let image = service["image"].as_str().unwrap();
        assert_eq!(image, concat!("verbatim:", env!("CARGO_PKG_VERSION")), "{name}");
    }
    // Concurrent builds of the same tag would conflict.
    let builds: Vec<_> =
        product_services().into_iter().filter(|(_, it)| it["build"].is_object()).collect();
    let [(_, builder)] = &builds[..] else { panic!("{builds:?}") };
    let file = builder["build"]["dockerfile"].as_str().unwrap();
    assert!(workspace().join(file).is_file(), "{file}");
    let dockerfile = text("deploy/Dockerfile");
    // The packages that it builds, and the binaries that it copies out of the cache.
    let packages: Vec<&str> = after_each(&dockerfile, "--package ").collect();
    assert_eq!(packages, ["'*-worker'", "conversation-api", "verbatim"]);
    let copied =
        "&& cp target/dist/*-worker target/dist/conversation-api target/dist/verbatim /out/";
    assert!(dockerfile.contains(copied));
    for process in fleet::processes() {
        let name = process.name();
        let is_built = name.ends_with("-worker") || packages.contains(&name);
        assert!(is_built, "deploy/Dockerfile builds {name}");
    }
}

#[test]
fn the_build_context_of_the_image_is_a_complete_workspace() {
    let dockerfile = text("deploy/Dockerfile");
    let (build, image) = dockerfile.split_once("\nFROM debian").unwrap();
    let context = tempfile::tempdir().unwrap();
    let ignored = text(".dockerignore");
    for line in build.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        let words: Vec<_> = line.split(' ').collect();
        for source in &words[..words.len() - 1] {
            assert!(ignored.contains(&format!("\n!{source}\n")), ".dockerignore hides {source}");
            let link = context.path().join(source);
            std::os::unix::fs::symlink(workspace().join(source), link).unwrap();
        }
    }
    let mut metadata = testkit::cargo::command(&["metadata", "--locked", "--offline", "--no-deps"]);
    let output = metadata.args(["--format-version", "1"]).current_dir(context.path()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for script in after_each(image, "COPY --chmod=755 ") {
        assert!(workspace().join(script).is_file(), "{script}");
        assert!(ignored.contains(&format!("\n!{script}\n")), ".dockerignore hides {script}");
    }
}

#[tokio::test]
async fn every_variable_of_a_service_is_a_setting_of_its_process() {
    let fleet = Fleet::new().await;
    let help = |arguments: &[&str]| {
        let output = fleet.command(arguments[0]).args(&arguments[1..]).arg("--help").output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    for (name, service) in product_services() {
        let help_text = match service["command"][0].as_str() {
            Some(service) if is_service(service) => help(&[service]),
            _ => {
                let commands =
                    [["setup"].as_slice(), &["conversation", "show"], &["dead-letters", "edit"]];
                commands.map(|command| help(&[&["verbatim"], command].concat())).concat()
            }
        };
        for variable in service["environment"].as_object().unwrap().keys() {
            let known = match variable.strip_suffix("_FILE") {
                Some(_) => help_text.contains(&format!("{variable} may name")),
                None => setting(&help_text, variable).is_some(),
            };
            assert!(known, "{name}: {variable} is not a setting in\n{help_text}");
        }
        if is_service(&name) {
            let deadline = default_of(&help_text, "VERBATIM_DRAIN_DEADLINE");
            let grace = service["stop_grace_period"].as_str().unwrap();
            assert!(seconds(grace) >= seconds(&deadline) + 5, "{name}: {grace} for {deadline}");
            assert!(default_of(&help_text, "VERBATIM_LISTEN").ends_with(":9464"), "{name}");
        }
    }
}

#[test]
fn the_fleet_waits_for_setup_and_setup_for_the_servers() {
    let compose = compose();
    let services = &compose["services"];
    for worker in services_of_the_fleet() {
        let condition = &services[worker]["depends_on"]["setup"]["condition"];
        assert_eq!(condition, "service_completed_successfully", "{worker}");
        assert_eq!(services[worker]["restart"], "unless-stopped", "{worker}");
    }
    for worker in workers() {
        assert!(services[worker]["deploy"]["replicas"].as_u64() >= Some(2), "{worker}");
    }
    for server in ["rabbitmq", "postgres"] {
        let condition = &services["setup"]["depends_on"][server]["condition"];
        assert_eq!(condition, "service_healthy", "{server}");
    }
    for server in ["rabbitmq", "postgres", "redis", "prometheus", "alertmanager"] {
        assert!(services[server]["healthcheck"]["test"].is_array(), "{server}");
    }
}

#[test]
fn every_port_is_bound_to_loopback_and_every_container_is_restricted() {
    let compose = compose();
    for (name, service) in compose["services"].as_object().unwrap() {
        for port in service["ports"].as_array().into_iter().flatten() {
            let port = port.as_str().unwrap();
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
        }
        for right in ["privileged", "cap_add", "network_mode", "pid", "devices"] {
            assert!(service[right].is_null(), "{name}: {right}");
        }
        let (_, tag) = service["image"].as_str().unwrap().rsplit_once(':').unwrap();
        assert!(tag.contains(|c: char| c.is_ascii_digit()), "{name}: {tag} is not a version");
    }
    for (name, service) in product_services() {
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"][0], "ALL", "{name}");
    }
    assert!(text("deploy/Dockerfile").contains("\nUSER 10001:10001\n"));
}

#[test]
fn every_mounted_file_exists_and_every_secret_is_created() {
    let made = tempfile::tempdir().unwrap();
    let dir = made.path().join("secrets");
    secrets(&dir);
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    let declared = compose["secrets"].as_object().unwrap();
    for (name, secret) in declared {
        let file = Path::new(secret["file"].as_str().unwrap());
        assert_eq!(file.parent(), Some(Path::new("./deploy/secrets")), "{name}");
        assert!(dir.join(file.file_name().unwrap()).is_file(), "secrets.sh does not create {name}");
    }
    for (name, service) in services {
        for secret in service["secrets"].as_array().into_iter().flatten() {
            let secret = secret.as_str().or(secret["source"].as_str()).unwrap();
            assert!(declared.contains_key(secret), "{name}: {secret}");
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let (source, _) = volume.as_str().unwrap().split_once(':').unwrap();
            let known = match source.strip_prefix("./") {
                Some(path) => workspace().join(path).exists(),
                None => compose["volumes"].as_object().unwrap().contains_key(source),
            };
            assert!(known, "{name} mounts {source}, which does not exist");
        }
    }
    let variables = services.values().filter_map(|it| it["environment"].as_object());
    for (variable, value) in variables.flatten() {
        if variable.ends_with("_FILE") {
            let secret = value.as_str().unwrap().strip_prefix("/run/secrets/").unwrap();
            assert!(declared.contains_key(secret), "{variable}: {secret}");
        }
    }
}

#[test]
fn secrets_are_random_consistent_and_created_once() {
    let made = tempfile::tempdir().unwrap();
    let (one, two) = (made.path().join("one"), made.path().join("two"));
    let read = |dir: &Path, file: &str| fs::read_to_string(dir.join(file)).unwrap();
    secrets(&one);
    let before = read(&one, "amqp_url");
    secrets(&one);
    secrets(&two);
    assert_eq!(read(&one, "amqp_url"), before, "a second run changes nothing");
    assert_ne!(read(&two, "amqp_url"), before);
    assert_eq!(fs::metadata(&one).unwrap().permissions().mode() & 0o777, 0o700);
    for (url, file, prefix) in [
        ("amqp_url", "rabbitmq.conf", "default_pass = "),
        ("redis_url", "redis.conf", "requirepass "),
        ("database_url", "postgres_password", ""),
    ] {
        let (url, text) = (read(&one, url), read(&one, file));
        let password = url.split([':', '@']).find(|part| part.len() == 48).unwrap();
        let found =
            text.lines().find_map(|line| line.strip_prefix(prefix).filter(|it| it.len() == 48));
        assert_eq!(found, Some(password), "{file}");
    }
}

#[test]
fn the_memory_limit_of_every_worker_is_a_quarter_above_what_was_measured() {
    let (compose, performance) = (compose(), text("docs/performance.md"));
    for worker in workers() {
        let limit = &compose["services"][worker]["deploy"]["resources"]["limits"]["memory"];
        let rows = performance.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        // The row that `cargo xtask bench memory` printed: six measured numbers, their maximum, the limit.
        let row = rows.into_iter().find(|row| row.len() == 9 && row[0] == worker);
        let row = row.unwrap_or_else(|| panic!("docs/performance.md has no row of {worker}"));
        let numbers: Vec<u64> = row[1..].iter().map(|number| number.parse().unwrap()).collect();
        let [measured @ .., largest, container] = &numbers[..] else { panic!("{row:?}") };
        assert_eq!(measured.iter().max(), Some(largest), "{worker}");
        assert_eq!(*limit, format!("{container}M"), "{worker}: measure it again");
        assert!(4 * container >= 5 * largest, "{worker}: {container} MiB for {largest} MiB");
    }
}

#[test]
fn prometheus_discovers_every_worker_by_the_name_of_its_service() {
    let config = yaml("deploy/prometheus/prometheus.yml");
    let jobs = config["scrape_configs"].as_array().unwrap();
    let names: BTreeSet<&str> = jobs.iter().filter_map(|job| job["job_name"].as_str()).collect();
    assert_eq!(names, services_of_the_fleet().collect());
    let services = compose();
    for job in jobs {
        let discovery = &job["dns_sd_configs"][0];
        assert_eq!(discovery["names"], serde_json::json!([job["job_name"]]));
        assert_eq!((&discovery["type"], &discovery["port"]), (&"A".into(), &9464.into()));
        let service = &services["services"][job["job_name"].as_str().unwrap()];
        assert_eq!(
            service["command"][0], job["job_name"],
            "job, service and process have the same name"
        );
    }
    let known = config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"][0].as_str();
    assert_eq!(known, Some("alertmanager:9093"));
    assert!(services["services"]["alertmanager"].is_object());
}

#[test]
fn every_rule_about_processes_names_every_worker() {
    let rules = text("deploy/prometheus/rules/fleet.yml");
    let selected: Vec<&str> = rules.split("job=~\"").skip(1).collect();
    assert!(selected.len() >= 3, "{selected:?}");
    for selector in selected {
        assert!(selector.starts_with(".+-worker|conversation-api\""), "{selector:.120}");
    }
    for worker in services_of_the_fleet() {
        let is_selected = worker.ends_with("-worker") || worker == "conversation-api";
        assert!(is_selected, "no rule selects {worker}");
        let absent = format!("absent(up{{job=\"{worker}\"}})");
        assert!(rules.contains(&absent), "VerbatimNoReplica: {absent}");
    }
}

#[test]
fn commands_for_the_whole_fleet_name_every_worker() {
    let runbooks = text("docs/operations.md");
    for step in ["docker compose stop ", "docker compose start "] {
        let named: Vec<&str> = after_line(&runbooks, step).split_whitespace().collect();
        assert_eq!(named, services_of_the_fleet().collect::<Vec<_>>(), "{step}");
    }
    let update = runbooks.split_once("docker compose run --rm setup\n").unwrap().1;
    let update = update.split_once("```").unwrap().0;
    for worker in workers() {
        assert!(update.contains(worker), "the update restarts {worker}:\n{update}");
    }
}

/// The rest of the first line that begins with this and names a worker.
fn after_line<'a>(text: &'a str, beginning: &str) -> &'a str {
    let lines = text.lines().filter_map(|line| line.strip_prefix(beginning));
    lines.into_iter().find(|rest| rest.contains("-worker ")).unwrap()
}

#[test]
fn the_readme_has_a_row_for_every_service() {
    let readme = text("README.md");
    for worker in services_of_the_fleet() {
        let row = format!("\n| `{worker}` |");
        assert!(readme.contains(&row), "{row}");
    }
}

#[test]
fn the_entrypoint_runs_the_named_binary_or_else_the_command_line_tool() {
    let stubs = tempfile::tempdir().unwrap();
    for binary in fleet::processes().into_iter().map(Process::name) {
        // Written by another process: a child of this process could still have the file open for writing
        // when it is executed (ETXTBSY).
        let write =
            format!("printf '#!/bin/sh\necho {binary} \"$@\"\n' >{binary} && chmod 755 {binary}");
        let mut shell = Command::new("sh");
        let written = shell.args(["-c", &write]).current_dir(stubs.path()).status().unwrap();
        assert!(written.success());
    }
    let run = |arguments: &[&str]| {
        let mut command = script("deploy/entrypoint.sh", arguments);
        String::from_utf8(command.env("PATH", stubs.path()).output().unwrap().stdout).unwrap()
    };
    for worker in services_of_the_fleet() {
        assert_eq!(run(&[worker, "--threads", "4"]), format!("{worker} --threads 4\n"));
    }
    assert_eq!(run(&["verbatim", "setup"]), "verbatim setup\n");
    assert_eq!(run(&["queues", "--json"]), "verbatim queues --json\n");
    assert_eq!(run(&[]), "verbatim\n");
}

#[test]
fn the_health_check_reports_the_status_of_the_process() {
    let check = |page: &str, status: &str, body: &str| -> (Output, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = format!("0.0.0.0:{}", listener.local_addr().unwrap().port());
        let mut command = script("deploy/healthcheck.sh", &[page]);
        let child = command.env("VERBATIM_LISTEN", listen);
        let child = child.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let head = BufReader::new(&stream).lines().map(Result::unwrap);
        let head: Vec<_> = head.take_while(|line| !line.is_empty()).collect();
        let response = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n\r\n{body}");
        // In one write: the client may close the connection after it has read the status.
        stream.write_all(response.as_bytes()).unwrap();
        drop(stream);
        (child.wait_with_output().unwrap(), head[0].clone())
    };
    let (healthy, request) = check("livez", "200 OK", "{\"live\":true}");
    assert!(healthy.status.success());
    assert_eq!(request, "GET /livez HTTP/1.0");
    let (unhealthy, request) = check("readyz", "503 Service Unavailable", "{\"ready\":false}");
    assert_eq!((unhealthy.status.code(), request.as_str()), (Some(1), "GET /readyz HTTP/1.0"));
    assert!(String::from_utf8(unhealthy.stdout).unwrap().contains("{\"ready\":false}"));

    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = script("deploy/healthcheck.sh", &[]);
    let unreachable = command.env("VERBATIM_LISTEN", unused.to_string()).output().unwrap();
    assert_eq!(unreachable.status.code(), Some(1));
}

fn workers() -> impl Iterator<Item = &'static str> {
    fleet::WORKERS.into_iter().map(Process::name)
}

fn services_of_the_fleet() -> impl Iterator<Item = &'static str> {
    fleet::services().into_iter().map(Process::name)
}

fn is_service(name: &str) -> bool {
    services_of_the_fleet().any(|service| service == name)
}

fn compose() -> Value {
    yaml("docker-compose.yml")
}

/// The services that run the product's image, by name.
fn product_services() -> Vec<(String, Value)> {
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    let image = |service: &Value| service["image"].as_str().unwrap_or_default().to_owned();
    let found = services.iter().filter(|(_, service)| image(service).starts_with("verbatim:"));
    let found: Vec<_> = found.map(|(name, service)| (name.clone(), service.clone())).collect();
    assert!(found.len() >= 4, "{found:?}");
    found
}

fn yaml(file: &str) -> Value {
    serde_saphyr::from_str(&text(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn text(file: &str) -> String {
    fs::read_to_string(workspace().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn script(file: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(workspace().join(file));
    command.args(arguments);
    command
}

fn secrets(dir: &Path) {
    let output = script("deploy/secrets.sh", &[dir.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The words that follow each occurrence of a prefix.
fn after_each<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(prefix)
        .filter_map(move |(at, _)| text[at + prefix.len()..].split_whitespace().next())
}

/// The default of a setting in the text of `--help`.
fn default_of(help: &str, variable: &str) -> String {
    let (_, after) = setting(help, variable).unwrap().split_once("[default: ").unwrap();
    after.split_once(']').unwrap().0.to_owned()
}

/// The text of `--help` after the name of a variable.
fn setting<'a>(help: &'a str, variable: &str) -> Option<&'a str> {
    let after = help.split(&format!("[env: {variable}")).nth(1)?;
    after.starts_with([']', '=']).then_some(after)
}

fn seconds(text: &str) -> u64 {
    humantime::parse_duration(text).unwrap().as_secs()
}
