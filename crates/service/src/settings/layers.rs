//! Checks the values of the file and the environment and makes them the defaults of clap's arguments.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command};

use super::error::SettingsError;
use super::file::{Entry, Map, Node};
use super::secret::Secret;
use super::url::ServerUrl;
use domain::amqp_users::AmqpUsers;
use domain::fleet::{self, Process};

/// The values of one source, by setting.
type Layer = BTreeMap<String, Vec<String>>;

/// A setting, as its clap argument defines it.
pub(super) struct Known {
    /// The field's name, which is also the key in the file.
    id: String,
    /// The flag without its dashes.
    pub(super) long: String,
    /// The environment variable.
    variable: Option<String>,
    /// Whether it is a secret: errors and help do not show its value, and its value may come from a file.
    pub(super) secret: bool,
    /// The name of its value; for a URL, an example.
    example: Option<String>,
    /// Whether it maps users to tenants: in the file it may be a mapping.
    is_of_users: bool,
    parser: ValueParser,
    delimiter: Option<char>,
    repeatable: bool,
}

/// The suffixes of a key and of a variable whose value is the path of a file with the secret.
const FILE_KEY: &str = "_file";
const FILE_VARIABLE: &str = "_FILE";

/// The types of values that are secrets.
const SECRETS: [fn() -> TypeId; 2] = [TypeId::of::<ServerUrl>, TypeId::of::<Secret>];

/// The prefix of the environment variables of settings.
pub(super) const PREFIX: &str = "VERBATIM_";

impl Known {
    /// The settings of a command and its subcommands, by id.
    pub(super) fn of(command: &Command) -> BTreeMap<String, Self> {
        let mut known = BTreeMap::new();
        collect(command, &mut known);
        known
    }

    /// The error line for a required setting that is not set.
    pub(super) fn missing(&self) -> String {
        let name = self.variable.as_ref().unwrap_or(&self.id);
        let example = self.example.as_ref().filter(|example| example.contains("://"));
        let example = example.map(|text| format!(", for example to {text}")).unwrap_or_default();
        let file = if self.secret {
            format!("{name}_FILE to the path of a file that holds it, or ")
        } else {
            String::new()
        };
        let Self { id, long, .. } = self;
        format!("{name} is not set. Set it{example} (or {file}{id} in the YAML file, or --{long})")
    }

    /// Checks the values with the parser that clap will use.
    fn check(&self, origin: &str, values: Vec<String>) -> Result<Vec<String>, SettingsError> {
        let values: Vec<String> = match self.delimiter {
            Some(delimiter) => {
                values.iter().flat_map(|v| v.split(delimiter)).map(str::to_owned).collect()
            }
            None => values,
        };
        if values.len() > 1 && self.delimiter.is_none() && !self.repeatable {
            return Err(SettingsError::of(origin, "it takes one value, not a list"));
        }
        for value in &values {
            let arg = Arg::new("value").long("value").action(ArgAction::Set).num_args(1);
            let command = Command::new("check")
                .no_binary_name(true)
                .arg(arg.value_parser(self.parser.clone()).allow_hyphen_values(true));
            if let Err(error) = command.try_get_matches_from([format!("--value={value}")]) {
                return Err(refused(origin, Some(value).filter(|_| !self.secret), &error));
            }
        }
        Ok(values)
    }

    fn check_file(&self, origin: &str, path: &str) -> Result<Vec<String>, SettingsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| SettingsError::of(origin, format!("cannot read {path}: {error}")))?;
        self.check(origin, vec![text.trim().to_owned()])
    }
}

/// The settings of the environment.
pub(super) fn of_environment(
    known: &BTreeMap<String, Known>,
    environment: &BTreeMap<OsString, OsString>,
) -> Result<Layer, SettingsError> {
    let mut layer = Layer::new();
    for setting in known.values() {
        let Some(variable) = &setting.variable else {
            continue;
        };
        let given = |name: &str| {
            let value = environment.get(OsStr::new(name)).filter(|value| !value.is_empty());
            let Some(value) = value else { return Ok(None) };
            let origin = format!("environment variable {name}");
            match value.to_str() {
                Some(text) => Ok(Some((origin, text.to_owned()))),
                None => Err(SettingsError::of(&origin, "it is not valid UTF-8")),
            }
        };
        let file =
            if setting.secret { given(&format!("{variable}{FILE_VARIABLE}"))? } else { None };
        let given = match (given(variable)?, file) {
            (Some((plain, _)), Some((file, _))) => return Err(SettingsError::both(&plain, &file)),
            (Some((origin, text)), None) => setting.check(&origin, vec![text])?,
            (None, Some((origin, path))) => setting.check_file(&origin, &path)?,
            (None, None) => continue,
        };
        layer.insert(setting.id.clone(), given);
    }
    Ok(layer)
}

/// Variables that are not settings but resemble one of this process: probably mistyped, paired with
/// that setting's variable. They are not errors, because other programs may set `VERBATIM_…` too.
pub(crate) fn mistyped_variables(
    command: &Command,
    environment: &BTreeMap<OsString, OsString>,
) -> Vec<(String, String)> {
    // Far above "similar", to avoid false warnings.
    const MISTYPED: f64 = 0.95;
    let known = Known::of(command);
    let variables = || known.values().filter_map(|setting| setting.variable.as_deref());
    let names = environment.keys().filter_map(|name| name.to_str());
    let names = names.filter_map(|name| Some((name, name.strip_prefix(PREFIX)?)));
    names
        .filter(|(name, _)| variables().all(|known| known != *name))
        .filter_map(|(name, rest)| {
            let looks_like = |known: &&str| {
                known.strip_prefix(PREFIX).is_some_and(|k| strsim::jaro_winkler(k, rest) > MISTYPED)
            };
            variables().find(looks_like).map(|known| (name.to_owned(), known.to_owned()))
        })
        .collect()
}

/// The settings of the file for this process: the top level, overridden by the process's section.
pub(super) fn of_file(
    path: &Path,
    file: Map,
    known: &BTreeMap<String, Known>,
    common: &BTreeMap<String, Known>,
    process: Process,
) -> Result<Layer, SettingsError> {
    let mut top = Map::new();
    let mut own = Map::new();
    for (key, node) in file {
        match Process::named(&key) {
            None => {
                top.insert(key, node);
            }
            Some(section) => match node.value {
                Node::Map(map) if section == process => own = map,
                Node::Map(_) | Node::Nothing => {}
                Node::Scalar(_) | Node::List(_) => {
                    let origin = origin(path, node.line, &key);
                    let reason = "it is a section: put the settings below it, indented";
                    return Err(SettingsError::of(&origin, reason));
                }
            },
        }
    }
    let processes: Vec<&str> = fleet::processes().into_iter().map(Process::name).collect();
    let names = common.keys().map(String::as_str).chain(processes);
    let mut layer = of_map(path, top, known, |key| {
        if common.contains_key(base(key, common)) {
            None
        } else if known.contains_key(base(key, known)) {
            Some(format!(" at the top level: put it into the section {}", process.name()))
        } else {
            Some(nearest(key, names.clone()))
        }
    })?;
    layer.extend(of_map(path, own, known, |key| {
        let unknown = !known.contains_key(base(key, known));
        unknown.then(|| nearest(key, known.keys().map(String::as_str)))
    })?);
    Ok(layer)
}

/// Makes the values of a layer the defaults of their arguments.
pub(super) fn apply(command: Command, layer: &Layer) -> Command {
    let command = command.mut_args(|arg| match layer.get(arg.get_id().as_str()) {
        // clap must not read the environment itself: the layer contains its values already.
        None => arg.env(None::<&'static str>),
        Some(values) => {
            arg.env(None::<&'static str>).required(false).default_values(values.iter().cloned())
        }
    });
    command.mut_subcommands(|command| apply(command, layer))
}

/// The command without required arguments.
pub(super) fn without_requirements(command: Command) -> Command {
    command
        .mut_args(|arg| arg.required(false).env(None::<&'static str>))
        .mut_subcommands(without_requirements)
}

/// The command whose help shows the names of environment variables, but not their values.
pub(super) fn hide_values(command: Command) -> Command {
    command.mut_args(|arg| arg.hide_env_values(true)).mut_subcommands(hide_values)
}

/// The error for a value that clap rejected; `value` is `None` if it is a secret.
pub(super) fn refused(origin: &str, value: Option<&String>, error: &clap::Error) -> SettingsError {
    let strings = |kind| match error.get(kind) {
        Some(ContextValue::Strings(values)) => values.join(", "),
        Some(ContextValue::String(value)) => value.clone(),
        _ => String::new(),
    };
    let source = std::error::Error::source(error);
    let possible = strings(ContextKind::ValidValue);
    let reason = match source {
        Some(source) => source.to_string(),
        None if !possible.is_empty() => format!("it must be one of {possible}"),
        None => "it must have a value".to_owned(),
    };
    let value = value.map(|value| format!("{value:?}: ")).unwrap_or_default();
    SettingsError::of(origin, format!("{value}{reason}"))
}

fn of_map(
    path: &Path,
    map: Map,
    known: &BTreeMap<String, Known>,
    unknown: impl Fn(&str) -> Option<String>,
) -> Result<Layer, SettingsError> {
    let mut layer = Layer::new();
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for (key, node) in map {
        let origin = origin(path, node.line, &key);
        if key == "config" {
            let reason = "unknown setting in a file: use the flag --config or VERBATIM_CONFIG";
            return Err(SettingsError::of(&origin, reason));
        }
        if let Some(hint) = unknown(&key) {
            return Err(SettingsError::of(&origin, format!("unknown setting{hint}")));
        }
        let id = base(&key, known);
        // A shared setting that this process does not use.
        let Some(setting) = known.get(id) else {
            continue;
        };
        let given = match node.value {
            Node::Nothing => continue,
            Node::Scalar(file) if id != key => setting.check_file(&origin, &file)?,
            Node::Scalar(value) => setting.check(&origin, vec![value])?,
            Node::List(_) if setting.is_of_users => {
                let reason = "it maps users to tenants, as in `crm-bot: [acme, globex]`";
                return Err(SettingsError::of(&origin, reason));
            }
            Node::List(values) if id == key => setting.check(&origin, values)?,
            Node::Map(users) if setting.is_of_users => {
                setting.check(&origin, vec![text_of_users(path, &key, &users)?])?
            }
            Node::List(_) | Node::Map(_) => {
                return Err(SettingsError::of(&origin, "it takes a value, not a section or list"));
            }
        };
        if let Some(other) = places.insert(id.to_owned(), origin.clone()) {
            return Err(SettingsError::both(&other, &origin));
        }
        layer.insert(id.to_owned(), given);
    }
    Ok(layer)
}

/// The text form of a mapping of users to lists of tenants.
fn text_of_users(path: &Path, key: &str, users: &Map) -> Result<String, SettingsError> {
    let tenants = |(user, Entry { line, value }): (&String, &Entry)| match value {
        Node::Scalar(tenant) => Ok(vec![tenant.clone()]),
        Node::List(tenants) => Ok(tenants.clone()),
        Node::Nothing => Ok(Vec::new()),
        Node::Map(_) => {
            let reason = "a user has a list of tenants, as in `crm-bot: [acme, globex]`";
            Err(SettingsError::of(&origin(path, *line, &format!("{key}.{user}")), reason))
        }
    };
    let tenants = users.iter().map(tenants).collect::<Result<Vec<_>, _>>()?;
    let entries = users.keys().map(String::as_str).zip(tenants.iter().map(Vec::as_slice));
    Ok(AmqpUsers::text_of(entries))
}

fn collect(command: &Command, known: &mut BTreeMap<String, Known>) {
    for arg in command.get_arguments() {
        let Some(long) = arg.get_long() else { continue };
        let id = arg.get_id().as_str().to_owned();
        let parser = arg.get_value_parser().clone();
        let setting = Known {
            long: long.to_owned(),
            variable: arg.get_env().and_then(OsStr::to_str).map(str::to_owned),
            secret: SECRETS.iter().any(|of| parser.type_id() == of()),
            is_of_users: parser.type_id() == TypeId::of::<AmqpUsers>(),
            example: arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string),
            parser,
            delimiter: arg.get_value_delimiter(),
            repeatable: matches!(arg.get_action(), ArgAction::Append),
            id: id.clone(),
        };
        known.insert(id, setting);
    }
    for command in command.get_subcommands() {
        collect(command, known);
    }
}

/// The setting of a key: `amqp_url` for `amqp_url_file`.
fn base<'a>(key: &'a str, known: &BTreeMap<String, Known>) -> &'a str {
    let secret = |id: &&str| known.get(*id).is_some_and(|setting| setting.secret);
    key.strip_suffix(FILE_KEY).filter(secret).unwrap_or(key)
}

fn origin(path: &Path, line: u64, key: &str) -> String {
    format!("{}:{line}: {key}", path.display())
}

/// A hint with the most similar known name, or an empty text if none is similar.
fn nearest<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> String {
    // clap uses the same threshold for its suggestions.
    const SIMILAR: f64 = 0.7;
    names
        .map(|name| (strsim::jaro_winkler(key, name), name))
        .filter(|(similarity, _)| *similarity > SIMILAR)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, name)| format!("; did you mean {name}?"))
        .unwrap_or_default()
}
