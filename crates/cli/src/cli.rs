//! The command line: parses the arguments, runs the command, returns the exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use domain::fleet;
use service::settings::{self, Sources, Stop};

use crate::commands::conversation_list::ConversationList;
use crate::commands::conversation_show::ConversationShow;
use crate::commands::dead_letters::DeadLettersVerb;
use crate::commands::lint::Lint;
use crate::commands::publish::Publish;
use crate::commands::queues::Queues;
use crate::commands::setup::Setup;
use crate::commands::trace::Trace;
use crate::commands::verify::Verify;
use crate::exit::{Exit, Failure};
use crate::output::{self, Colour, Form, NoColor, Output};
use crate::stderr::print_error;

const AFTER: &str = "\
Each command needs only the servers that it uses; `verbatim COMMAND --help` names them and gives
examples.

Exit codes: 0 success; 1 a problem was found, or something could not be done; 2 the command line
or a setting is wrong; 3 a server is unreachable, or authentication failed.";

/// Sets up, publishes to and inspects a Verbatim fleet
#[derive(Debug, Parser)]
#[command(name = "verbatim", version, after_help = AFTER, max_term_width = 100)]
#[command(subcommand_required = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Verb,

    /// Print one JSON document instead of text
    #[arg(long, global = true, help_heading = "Output")]
    json: bool,

    /// When to colour text
    #[arg(long, global = true, value_enum, default_value = "auto", value_name = "WHEN")]
    #[arg(help_heading = "Output")]
    color: Colour,

    /// YAML file with settings, the same as for the workers; environment variables and flags override it
    #[arg(long, global = true, env = "VERBATIM_CONFIG", value_name = "PATH")]
    #[arg(help_heading = "Servers")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Setup(Setup),
    Publish(Publish),
    Lint(Lint),
    /// Lists and shows conversations
    #[command(subcommand)]
    Conversation(ConversationVerb),
    Queues(Queues),
    /// Lists, shows, edits, replays, discards, restores and exports dead letters
    #[command(subcommand)]
    DeadLetters(DeadLettersVerb),
    Verify(Box<Verify>),
    #[command(visible_alias = "where")]
    Trace(Box<Trace>),
}

#[derive(Debug, Subcommand)]
enum ConversationVerb {
    List(ConversationList),
    Show(ConversationShow),
}

/// Runs the command that the arguments name, and returns its exit code.
pub(crate) fn run(mut sources: Sources) -> ExitCode {
    if sources.arguments.len() <= 1 {
        sources.arguments.push("--help".into());
    }
    let no_color = no_color(&sources);
    let parsed = settings::load(Cli::command(), fleet::VERBATIM, &sources).and_then(|matches| {
        Cli::from_arg_matches(&matches)
            .map_err(|error| settings::SettingsError::Usage(error.to_string()).into())
    });
    let cli = match parsed {
        Ok(cli) => cli,
        Err(Stop::Answer(text)) => {
            return exit_code(print_help(&text, no_color).map(|()| Exit::Success));
        }
        Err(stop @ Stop::Invalid(_)) => return service::answer(fleet::VERBATIM, &stop),
    };
    service::install_crypto();
    let form = if cli.json { Form::Json } else { Form::Text };
    let now = service::clock::system().now();
    let output = Output::new(form, cli.color, no_color, now);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return exit_code(Err(Failure::plain(format!(
                "cannot start the async runtime: {error}"
            ))));
        }
    };
    let code = exit_code(runtime.block_on(cli.command.run(&output)));
    // Connections that are still closing are dropped.
    runtime.shutdown_background();
    code
}

impl Verb {
    async fn run(self, output: &Output) -> Result<Exit, Failure> {
        match self {
            Self::Setup(setup) => setup.run(output).await,
            Self::Publish(publish) => publish.run(output).await,
            Self::Lint(lint) => lint.run(output),
            Self::Conversation(ConversationVerb::List(list)) => list.run(output).await,
            Self::Conversation(ConversationVerb::Show(show)) => show.run(output).await,
            Self::Queues(queues) => queues.run(output).await,
            Self::DeadLetters(verb) => verb.run(output).await,
            Self::Verify(verify) => verify.run(output).await,
            Self::Trace(trace) => trace.run(output).await,
        }
    }
}

fn exit_code(result: Result<Exit, Failure>) -> ExitCode {
    match result {
        Ok(exit) => exit.code(),
        Err(failure) => {
            print_error(&failure);
            failure.code()
        }
    }
}

/// Prints help or version.
fn print_help(text: &clap::builder::StyledStr, no_color: NoColor) -> Result<(), Failure> {
    let text = match output::paint(Colour::Auto, no_color) {
        output::Paint::Plain => text.to_string(),
        output::Paint::Colours => text.ansi().to_string(),
    };
    output::print(text.as_bytes())
}

fn no_color(sources: &Sources) -> NoColor {
    let variable = |name: &str| sources.environment.get(std::ffi::OsStr::new(name));
    let unwanted = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = variable("TERM").is_some_and(|term| term == "dumb");
    if unwanted || dumb { NoColor::Set } else { NoColor::Unset }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn help(path: &[&str]) -> String {
        let mut command = Cli::command().term_width(100);
        command.build();
        for name in path {
            let next = command.find_subcommand(name).unwrap().clone();
            command = next;
        }
        command.term_width(100).render_long_help().to_string()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_describes_each_command_its_options_and_its_exit_codes() {
        for path in [
            &[][..],
            &["setup"],
            &["publish"],
            &["lint"],
            &["conversation", "list"],
            &["conversation", "show"],
            &["queues"],
            &["dead-letters", "list"],
            &["dead-letters", "show"],
            &["dead-letters", "edit"],
            &["dead-letters", "replay"],
            &["dead-letters", "discard"],
            &["dead-letters", "restore"],
            &["dead-letters", "export"],
            &["verify"],
            &["trace"],
        ] {
            let name = format!("help_{}", path.join("_").replace('-', "_"));
            insta::assert_snapshot!(name, help(path));
        }
    }
}
