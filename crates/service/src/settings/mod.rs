//! Settings: defaults in the binary, then one YAML file, then the environment, then flags.
//!
//! clap's arguments are the one truth about names, types, ranges and help. The file and the
//! environment only replace an argument's default before the command line is parsed, after each
//! value has been checked on its own, so that an error can name the place it came from. An empty
//! environment variable counts as not set. Nothing outside of this module reads the environment.
//!
//! To add a setting: a field with a doc comment and `#[arg(long)]` in the settings of the worker;
//! its variable is `VERBATIM_` and the field's name unless `env` says otherwise. A setting that
//! several processes share belongs in `groups.rs` or `fleet.rs`: only those may stand at the file's top level.

mod error;
mod file;
mod fleet;
mod groups;
mod layers;
mod url;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Args as _, Command};

pub use error::{Origin, SettingsError};
pub use fleet::{
    BackgroundSettings, ClosingSettings, ClosingTimes, ConsumerSettings, StoreSettings,
};
pub use groups::{
    AmqpSettings, ConnectionSettings, DatabaseSettings, ListenSettings, LogFormat, LogSettings,
    ProcessSettings, ReadReplicaSettings, RedisSettings,
};
pub use url::{InvalidUrl, ServerUrl};
pub use values::{bytes, duration, positive_duration};

use crate::Process;
use layers::{Given, Known};

/// What a process was started with.
#[derive(Clone, Default)]
pub struct Sources {
    /// The command line, the program's own name first.
    pub arguments: Vec<OsString>,
    /// The environment.
    pub environment: BTreeMap<OsString, OsString>,
}

impl Sources {
    /// What this process was started with.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub fn of_this_process() -> Self {
        Self {
            arguments: std::env::args_os().collect(),
            environment: std::env::vars_os().collect(),
        }
    }
}

/// Why there are no settings to go on with.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// `--help` or `--version`: the text belongs on standard output, and all is well.
    #[error("{0}")]
    Answer(clap::builder::StyledStr),
    /// The settings are wrong: exit code 2.
    #[error(transparent)]
    Invalid(#[from] SettingsError),
}

/// Parses the command line over environment and file.
///
/// Works for commands with subcommands too: a setting keeps its name wherever it stands in the tree.
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

/// The command with a variable for every setting that names none: `VERBATIM_` and its name.
pub(crate) fn with_variables(command: Command) -> Command {
    command.mut_args(|arg| match arg.get_env() {
        Some(_) => arg,
        None => {
            let variable = format!("{}{}", layers::PREFIX, arg.get_id().as_str().to_uppercase());
            arg.env(variable)
        }
    })
}

/// Variables that nobody reads and that look like a setting of the command, with that setting's.
pub(crate) fn mistyped_variables(command: &Command, sources: &Sources) -> Vec<(String, String)> {
    layers::mistyped(&Known::of(command), &sources.environment)
}

/// The settings that may stand at the file's top level.
fn common_settings() -> Command {
    let common = ProcessSettings::augment_args(Command::new("common"));
    let common = ConsumerSettings::augment_args(StoreSettings::augment_args(common));
    let common = BackgroundSettings::augment_args(ClosingSettings::augment_args(common));
    ReadReplicaSettings::augment_args(common)
}

/// The file that flags or environment name. Help and version are answered here, before anything can
/// be wrong with the settings, and with the defaults of the binary.
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

/// What clap found wrong with the command line, in our words where they say more.
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
            SettingsError::Missing(lines.collect())
        }
        (
            ErrorKind::ValueValidation | ErrorKind::InvalidValue,
            Some(ContextValue::String(argument)),
        ) => {
            let (flag, setting) = of_flag(argument);
            let value = match context(ContextKind::InvalidValue) {
                Some(ContextValue::String(value)) if !setting.is_some_and(|s| s.secret) => {
                    Some(value.clone())
                }
                _ => None,
            };
            let reason = layers::reason(error);
            SettingsError::Value { origin: Origin::Flag(flag), value, reason }
        }
        _ => SettingsError::Usage(one_line(error)),
    }
}

/// clap's own words, without its decoration.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let told = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let told = told.filter(|line| !line.is_empty());
    let bare =
        |line: &str| line.trim_start_matches("error: ").trim_start_matches("tip: ").to_owned();
    told.map(bare).collect::<Vec<_>>().join("; ")
}

/// One layer: what it says about each setting.
type Layer = BTreeMap<String, Given>;

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
        let matches = load(Cli::command(), Process::Verbatim, &sources)?;
        Cli::from_arg_matches(&matches)
            .map_err(|error| SettingsError::Usage(one_line(&error)).into())
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
    fn a_subcommand_needs_only_its_own_servers() {
        let cli = load_cli(&["verbatim", "lint", "actions.jsonl"], &[]);
        let cli = cli.unwrap_or_else(|stop| panic!("{stop}"));
        assert!(matches!(cli.command, Verb::Lint { file } if file.ends_with("actions.jsonl")));
        let stop = load_cli(&["verbatim", "setup"], &[]).expect_err("no servers").to_string();
        assert!(stop.contains("AMQP_URL is not set") && stop.contains("DATABASE_URL"), "{stop}");
    }

    #[test]
    fn a_variable_that_is_almost_a_setting_is_noticed() {
        let command = with_variables(ProcessSettings::augment_args(Command::new("p")));
        let environment = [
            ("VERBATIM_DRAIN_DEADLIN", "1s"),
            ("VERBATIM_LISTEN", "127.0.0.1:1"),
            ("VERBATIM_BATCH_SIZE", "of another process"),
            ("VERBATIM_API_SERVICE_HOST", "Kubernetes says where a service is"),
        ];
        let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
        let sources = Sources { environment: environment.collect(), ..Sources::default() };
        let expected = ("VERBATIM_DRAIN_DEADLIN".to_owned(), "VERBATIM_DRAIN_DEADLINE".to_owned());
        assert_eq!(mistyped_variables(&command, &sources), [expected]);
    }
}
