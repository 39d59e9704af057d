//! `cargo xtask new worker NAME`: writes one more worker, and enters it where the fleet is listed.
//!
//! The worker consumes a queue of its own with every event of the fleet. What it touches: two files of its own, the
//! table of the fleet, the compose file, Prometheus' jobs, and the alert about missing replicas. Everything else
//! that lists workers derives from the table, or is a document: CONTRIBUTING.md says which of them tests check.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use domain::fleet::{WORKERS, WorkQueue};
use testkit::place::workspace;

use crate::say;

/// What to write.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum New {
    /// Write a worker that consumes every event of the fleet, as a beginning
    Worker(Worker),
}

/// Options of `cargo xtask new worker`.
#[derive(Debug, clap::Args)]
pub(crate) struct Worker {
    /// Its name in lower case, such as `webhook`: the binary is `webhook-worker`
    name: String,

    /// The workspace to change [default: this one]
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,
}

/// A change of a file.
struct Change {
    file: String,
    text: String,
}

/// Writes it.
pub(crate) fn run(new: &New) -> Result<()> {
    let New::Worker(Worker { name, workspace: dir }) = new;
    let root = dir.clone().unwrap_or_else(workspace);
    let names = Names::of(name)?;
    // All changes are made before the first is written: a missing place changes nothing.
    let changes = changes(&root, &names)?;
    for Change { file, text } in &changes {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().context("a file in a folder")?)?;
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        say::line(file);
    }
    let Names { worker, folder, .. } = &names;
    say::heading(&format!("\n{worker} is written; next:"));
    say::line(&format!("  cargo build --bin {worker}          (adds it to Cargo.lock)"));
    say::line(&format!("  {folder}/src/main.rs: what it does with an event, and its settings"));
    say::line(
        "  cargo test -p xtask --no-fail-fast: names the documents that must mention it and do not yet",
    );
    say::line("  verbatim setup: creates its queue, without which it does not start");
    Ok(())
}

/// The name in each of its forms.
struct Names {
    /// `webhook-worker`.
    worker: String,
    /// `WEBHOOK_WORKER`.
    constant: String,
    /// `Webhook`.
    variant: String,
    /// `conversation.webhook`.
    queue: String,
    /// `crates/workers/webhook`.
    folder: String,
}

impl Names {
    fn of(name: &str) -> Result<Self> {
        let is_word = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_lowercase())
                && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        ensure!(
            name.split('-').all(is_word) && !name.ends_with("-worker"),
            "NAME is {name:?}; it must be words of a to z and 0 to 9 with hyphens between them, without \
             `-worker` at its end, such as `webhook`"
        );
        let capitalised = |word: &str| word[..1].to_uppercase() + &word[1..];
        let names = Self {
            worker: format!("{name}-worker"),
            constant: format!("{}_WORKER", name.to_uppercase().replace('-', "_")),
            variant: name.split('-').map(capitalised).collect(),
            queue: format!("conversation.{}", name.replace('-', "_")),
            folder: format!("crates/workers/{name}"),
        };
        let worker = &names.worker;
        ensure!(WORKERS.iter().all(|it| it.name() != worker), "there is a {worker} already");
        let queue = &names.queue;
        let is_new = |it: &WorkQueue| it.name() != queue && format!("{it:?}") != names.variant;
        ensure!(WorkQueue::ALL.iter().all(is_new), "there is a queue {queue} already");
        Ok(names)
    }
}

fn changes(root: &Path, names: &Names) -> Result<Vec<Change>> {
    let Names { worker, constant, variant, queue, folder } = names;
    let fill = |template: &str| {
        template
            .replace("{worker}", worker)
            .replace("{CONSTANT}", constant)
            .replace("{Variant}", variant)
    };
    ensure!(!root.join(folder).exists(), "{folder} exists already");
    let own = |file: &str, template: &str| Change {
        file: format!("{folder}/{file}"),
        text: fill(template),
    };
    let row = format!(
        "    /// Events for the {worker}.\n    {variant} = \"{queue}\", Events, [], \"events for the {worker}\";\n"
    );
    let process = format!(
        "    /// Consumes every event of the fleet.\n    {constant} = \"{worker}\", [Consumed::Work(WorkQueue::{variant})],\n        \
         \"Consumes every event of the fleet\";\n"
    );
    let fleet = File::read(root, "crates/domain/src/fleet.rs")?
        .insert_before("}\n\nworkers! {\n", &row)?
        .insert_before("}\n\n/// Reads conversations and publishes", &process)?;
    let service = format!(
        "  {worker}:\n    <<: *worker\n    command: [{worker}]\n    deploy:\n      replicas: 2\n      \
         resources:\n        limits:\n          memory: 256M\n\n"
    );
    let compose = File::read(root, "docker-compose.yml")?
        .insert_before("  # The command line: docker compose run", &service)?;
    let job = format!(
        "\n  - job_name: {worker}\n    dns_sd_configs:\n      - names: [{worker}]\n        type: A\n        \
         port: 9464\n        refresh_interval: 15s\n"
    );
    let jobs = File::read(root, "deploy/prometheus/prometheus.yml")?.append(&job);
    let absent = format!("          or absent(up{{job=\"{worker}\"}})\n");
    let rules = File::read(root, "deploy/prometheus/rules/fleet.yml")?
        .insert_before("        for: 2m\n        labels:\n", &absent)?;
    Ok(vec![
        own("Cargo.toml", include_str!("new/Cargo.toml.template")),
        own("src/main.rs", include_str!("new/main.rs.template")),
        fleet.into(),
        compose.into(),
        jobs.into(),
        rules.into(),
    ])
}

/// A file that is being changed.
struct File {
    name: &'static str,
    text: String,
}

impl File {
    fn read(root: &Path, name: &'static str) -> Result<Self> {
        let text = std::fs::read_to_string(root.join(name)).with_context(|| name.to_owned())?;
        Ok(Self { name, text })
    }

    /// Inserts a text before the first place that begins with these words.
    fn insert_before(mut self, place: &str, text: &str) -> Result<Self> {
        let Some(at) = self.text.find(place) else {
            bail!("{} has no {place:?}, where the worker would be entered", self.name);
        };
        self.text.insert_str(at, text);
        Ok(self)
    }

    fn append(mut self, text: &str) -> Self {
        self.text.push_str(text);
        self
    }
}

impl From<File> for Change {
    fn from(File { name, text }: File) -> Self {
        Self { file: name.to_owned(), text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_words_with_hyphens_that_no_worker_has() {
        let names = Names::of("crm-sync2").unwrap();
        assert_eq!(
            (names.worker.as_str(), names.variant.as_str()),
            ("crm-sync2-worker", "CrmSync2")
        );
        assert_eq!(
            (names.queue.as_str(), names.constant.as_str()),
            ("conversation.crm_sync2", "CRM_SYNC2_WORKER")
        );
        for name in [
            "",
            "Webhook",
            "webhook-worker",
            "a--b",
            "2fast",
            "a_b",
            "../a",
            "statistics",
            "session",
        ] {
            assert!(Names::of(name).is_err(), "{name}");
        }
    }
}
