//! Settings: defaults in the binary, then one YAML file, then the environment, then flags.
//!
//! clap's arguments define names, types, ranges and help. Values of the file and the environment replace
//! the defaults of the arguments before the command line is parsed. Each is checked first, so that an
//! error can name its source. An empty environment variable counts as not set. Only this module reads the
//! environment.
//!
//! To add a setting, add a field with a doc comment and `#[arg(long)]` to the settings of the worker. Its
//! environment variable is `VERBATIM_` and the field's name, unless `env` names another. A setting that
//! several processes share belongs in `groups.rs` or `fleet.rs`: only those are allowed at the top level
//! of the file.

mod error;
mod file;
mod fleet;
mod groups;
mod layers;
mod secret;
mod url;
mod url_parameters;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Args as _, Command};

pub use error::SettingsError;
pub use fleet::{
    BackgroundSettings, ClosingSettings, ClosingTimes, ConsumerSettings, StoreSettings,
};
pub use groups::{
    AmqpSettings, AmqpUserSettings, ApiAccessSettings, ApiRoleSettings, ConnectionSettings,
    DatabaseSettings, DurabilitySettings, ListenSettings, LogFormat, LogSettings, ProcessSettings,
    ReadReplicaSettings, RedisSettings,
};
pub use secret::{InvalidSecret, Secret};
pub use url::{InvalidUrl, ServerUrl};
pub use url_parameters::InvalidParameter;
pub use values::{bytes, duration, positive_duration};

use domain::fleet::Process;
use layers::Known;
pub(crate) use layers::mistyped_variables;

/// The command line and environment of a process.
#[derive(Clone, Default)]
pub struct Sources {
    /// The command line; the first entry is the program's name.
    pub arguments: Vec<OsString>,
    /// The environment.
    pub environment: BTreeMap<OsString, OsString>,
}

impl Sources {
    /// Those of the running process.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub fn of_this_process() -> Self {
        Self {
            arguments: std::env::args_os().collect(),
            environment: std::env::vars_os().collect(),
        }
    }
}

/// Why a process ends instead of running with its settings.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// `--help` or `--version`: print the text to standard output; exit code 0.
    #[error("{0}")]
    Answer(clap::builder::StyledStr),
    /// The settings are invalid: exit code 2.
    #[error(transparent)]
    Invalid(#[from] SettingsError),
}

/// Parses the command line, with the values of environment and file as defaults.
///
/// Commands with subcommands work too: a setting has the same name in every subcommand.
pub fn load(command: Command, process: Process, sources: &Sources) -> Result<ArgMatches, Stop> {
    let command = layers::hide_values(command);
    let known = Known::of(&command);
    let path = configuration_file(&command, sources)?;
    let mut given = match path {
        Some(path) => {
            let common = Known::of(&common_settings());
            layers::of_file(&path, file::read(&path)?, &known, &common, process)?
        }
        None => BTreeMap::new(),
    };
    given.extend(layers::of_environment(&known, &sources.environment)?);
    let layered = layers::apply(command, &given);
    layered.try_get_matches_from(&sources.arguments).map_err(|error| explain(&error, &known).into())
}

/// Every setting with its value, for the first log line of a process: `name=value`, separated by spaces. URLs
/// are shown without their passwords.
pub(crate) fn describe(command: &Command, matches: &ArgMatches) -> String {
    let value = |id: &str| {
        if let Ok(Some(urls)) = matches.try_get_many::<ServerUrl>(id) {
            return Some(urls.map(ToString::to_string).collect::<Vec<_>>().join(","));
        }
        if let Ok(Some(secrets)) = matches.try_get_many::<Secret>(id) {
            return Some(secrets.map(ToString::to_string).collect::<Vec<_>>().join(","));
        }
        let raw = matches.try_get_raw(id).ok()??;
        Some(raw.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(","))
    };
    let named = command.get_arguments().filter_map(|arg| {
        let id = arg.get_id().as_str();
        value(id).map(|value| format!("{id}={value}"))
    });
    named.collect::<Vec<_>>().join(" ")
}

/// The command with an environment variable for every setting: `VERBATIM_` and its name where it has none.
pub(crate) fn with_variables(command: Command) -> Command {
    command.mut_args(|arg| match arg.get_env() {
        Some(_) => arg,
        None => {
            let variable = format!("{}{}", layers::PREFIX, arg.get_id().as_str().to_uppercase());
            arg.env(variable)
        }
    })
}

/// The settings that are allowed at the top level of the file.
fn common_settings() -> Command {
    let common = ProcessSettings::augment_args(Command::new("common"));
    let common = ConsumerSettings::augment_args(StoreSettings::augment_args(common));
    let common = BackgroundSettings::augment_args(ClosingSettings::augment_args(common));
    ApiAccessSettings::augment_args(ReadReplicaSettings::augment_args(common))
}

/// The path of the file, from the flag or the environment. Help and version are handled here: before
/// the settings are checked, and with the defaults of the binary.
fn configuration_file(command: &Command, sources: &Sources) -> Result<Option<PathBuf>, Stop> {
    match command.clone().try_get_matches_from(&sources.arguments) {
        Err(error) if !error.use_stderr() => return Err(Stop::Answer(error.render())),
        Ok(_) | Err(_) => {}
    }
    let lenient = layers::without_requirements(command.clone()).ignore_errors(true);
    let flag = lenient
        .try_get_matches_from(&sources.arguments)
        .ok()
        .and_then(|matches| matches.try_get_one::<PathBuf>("config").ok().flatten().cloned());
    let variable = || sources.environment.get(&OsString::from("VERBATIM_CONFIG"));
    let variable = || variable().filter(|path| !path.is_empty()).map(PathBuf::from);
    Ok(flag.or_else(variable))
}

/// Converts an error of clap; adds the setting's name and source where they are known.
fn explain(error: &clap::Error, known: &BTreeMap<String, Known>) -> SettingsError {
    let context = |kind| error.get(kind);
    let of_flag = |text: &str| {
        let flag = text.split([' ', '=', '[']).next().unwrap_or(text).to_owned();
        let found = known.values().find(|setting| flag.strip_prefix("--") == Some(&setting.long));
        (flag, found)
    };
    match (error.kind(), context(ContextKind::InvalidArg)) {
        (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(missing))) => {
            let lines = missing.iter().map(|text| match of_flag(text) {
                (_, Some(setting)) => setting.missing(),
                (_, None) => format!("{text} is missing"),
            });
            SettingsError::new(lines.collect::<Vec<_>>().join("\n"))
        }
        (
            ErrorKind::ValueValidation | ErrorKind::InvalidValue,
            Some(ContextValue::String(argument)),
        ) => {
            let (flag, setting) = of_flag(argument);
            let value = match context(ContextKind::InvalidValue) {
                Some(ContextValue::String(value)) if !setting.is_some_and(|s| s.secret) => {
                    Some(value)
                }
                _ => None,
            };
            layers::refused(&format!("flag {flag}"), value, error)
        }
        _ => SettingsError::new(one_line(error)),
    }
}

/// The text of an error of clap in one line, without usage and prefixes.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let lines = lines.filter(|line| !line.is_empty());
    let bare =
        |line: &str| line.trim_start_matches("error: ").trim_start_matches("tip: ").to_owned();
    lines.map(bare).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "verbatim")]
    struct Cli {
        #[arg(long, global = true, env = "VERBATIM_CONFIG")]
        config: Option<PathBuf>,
        #[command(subcommand)]
        command: Verb,
    }

    #[derive(Debug, Subcommand)]
    enum Verb {
        Lint {
            file: PathBuf,
        },
        Setup {
            #[command(flatten)]
            amqp: AmqpSettings,
            #[command(flatten)]
            database: DatabaseSettings,
        },
    }

    fn load_cli(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Cli, Stop> {
        let pairs = environment.iter().map(|(name, value)| (name.into(), value.into()));
        let sources = Sources {
            arguments: arguments.iter().map(OsString::from).collect(),
            environment: pairs.collect(),
        };
        let matches = load(Cli::command(), domain::fleet::VERBATIM, &sources)?;
        Cli::from_arg_matches(&matches).map_err(|error| SettingsError::new(one_line(&error)).into())
    }

    #[test]
    fn settings_of_a_subcommand_come_from_file_and_environment_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("fleet.yaml");
        let yaml = "amqp_url: amqp://file\nlisten: 127.0.0.1:1\nverbatim:\n  database_url: postgres://file/d\n";
        std::fs::write(&path, yaml).expect("writable");
        let path = path.to_str().expect("UTF-8");
        let environment = [("DATABASE_URL", "postgres://environment/d")];
        for arguments in
            [["verbatim", "--config", path, "setup"], ["verbatim", "setup", "--config", path]]
        {
            let cli = load_cli(&arguments, &environment).unwrap_or_else(|stop| panic!("{stop}"));
            let Verb::Setup { amqp, database } = cli.command else { panic!("{cli:?}") };
            assert_eq!(amqp.amqp_url[0].expose(), "amqp://file");
            assert_eq!(database.database_url.expose(), "postgres://environment/d");
        }
    }

    #[test]
    fn the_settings_of_the_first_log_line_have_no_passwords() {
        let arguments = ["p", "--close-grace", "45s"];
        let urls = [
            ("AMQP_URL", "amqp://u:hunter2@a,amqp://u:hunter2@b/v"),
            ("REDIS_URL", "redis://:hunter2@r"),
            ("DATABASE_URL", "postgres://d/v?user=u&password=hunter2"),
        ];
        let pairs = urls.iter().map(|(name, value)| (name.into(), value.into()));
        let sources = Sources {
            arguments: arguments.iter().map(OsString::from).collect(),
            environment: pairs.collect(),
        };
        let command = ClosingSettings::augment_args(StoreSettings::augment_args(Command::new("p")));
        let matches = load(command.clone(), domain::fleet::PERSISTENCE_MIGRATION_WORKER, &sources)
            .unwrap_or_else(|stop| panic!("{stop}"));
        let described = describe(&command, &matches);
        assert!(!described.contains("hunter2"), "{described}");
        for setting in [
            "amqp_url=amqp://***@a,amqp://***@b/v",
            "database_url=postgres://d/v",
            "close_grace=45s",
            "close_idle=",
        ] {
            assert!(described.contains(setting), "{setting} in {described}");
        }
    }

    #[test]
    fn a_subcommand_needs_only_its_own_servers() {
        let cli = load_cli(&["verbatim", "lint", "actions.jsonl"], &[]);
        let cli = cli.unwrap_or_else(|stop| panic!("{stop}"));
        assert!(matches!(cli.command, Verb::Lint { file } if file.ends_with("actions.jsonl")));
        let stop = load_cli(&["verbatim", "setup"], &[]).expect_err("no servers").to_string();
        assert!(stop.contains("AMQP_URL is not set") && stop.contains("DATABASE_URL"), "{stop}");
    }

    #[test]
    fn a_mistyped_variable_is_paired_with_its_setting() {
        let command = with_variables(ProcessSettings::augment_args(Command::new("p")));
        let environment = [
            ("VERBATIM_DRAIN_DEADLIN", "1s"),
            ("VERBATIM_LISTEN", "127.0.0.1:1"),
            ("VERBATIM_BATCH_SIZE", "of another process"),
            ("VERBATIM_API_SERVICE_HOST", "set by Kubernetes"),
        ];
        let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
        let environment = environment.collect();
        let expected = ("VERBATIM_DRAIN_DEADLIN".to_owned(), "VERBATIM_DRAIN_DEADLINE".to_owned());
        assert_eq!(mistyped_variables(&command, &environment), [expected]);
    }
}
