//! The command line: what it takes, and from there to an exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use service::Process;
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
use crate::output::{self, Colour, Form, NoColor, Screen};

const AFTER: &str = "\
Every command needs only the servers that it uses; `verbatim COMMAND --help` names them and has
examples.

Exit codes: 0 all is well; 1 something was found or could not be done; 2 the command line or a
setting is wrong; 3 a server is away or does not let us in.";

/// Sets up, publishes to and looks into a Verbatim fleet
#[derive(Debug, Parser)]
#[command(name = "verbatim", version, after_help = AFTER, max_term_width = 100)]
#[command(subcommand_required = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Verb,

    /// Answer with one JSON document instead of text
    #[arg(long, global = true, help_heading = "Output")]
    json: bool,

    /// Colours in texts
    #[arg(long, global = true, value_enum, default_value = "auto", value_name = "WHEN")]
    #[arg(help_heading = "Output")]
    color: Colour,

    /// YAML file with settings, as the workers read it; environment and flags win over it
    #[arg(long, global = true, env = "VERBATIM_CONFIG", value_name = "PATH")]
    #[arg(help_heading = "Servers")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Setup(Setup),
    Publish(Publish),
    Lint(Lint),
    /// Looks at conversations
    #[command(subcommand)]
    Conversation(ConversationVerb),
    Queues(Queues),
    /// Looks at dead letters, edits, replays and discards them
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

/// From the command line to the exit code.
pub(crate) fn run(mut sources: Sources) -> ExitCode {
    if sources.arguments.len() <= 1 {
        sources.arguments.push("--help".into());
    }
    let no_color = no_color(&sources);
    let parsed = settings::load(Cli::command(), Process::Verbatim, &sources).and_then(|matches| {
        Cli::from_arg_matches(&matches)
            .map_err(|error| settings::SettingsError::Usage(error.to_string()).into())
    });
    let cli = match parsed {
        Ok(cli) => cli,
        Err(Stop::Answer(text)) => return ended(answer(&text, no_color).map(|()| Exit::Fine)),
        Err(stop @ Stop::Invalid(_)) => return service::answer(Process::Verbatim, &stop),
    };
    service::install_crypto();
    let form = if cli.json { Form::Json } else { Form::Text };
    let now = service::clock::system().now();
    let screen = Screen::new(form, cli.color, no_color, now);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ended(Err(Failure::plain(format!("cannot start: {error}")))),
    };
    let end = ended(runtime.block_on(cli.command.run(&screen)));
    // What is unfinished now (a goodbye to a server) may stay so.
    runtime.shutdown_background();
    end
}

/// Says on standard error why a command could not do its work.
pub(crate) fn print_error(failure: &Failure) {
    eprint!("{}", error_text(failure));
}

/// It may quote a sender or a server: no control character of theirs reaches the terminal.
fn error_text(failure: &Failure) -> String {
    let mut out = String::new();
    for (n, line) in failure.to_string().lines().enumerate() {
        let indent = if n == 0 { "" } else { "  " };
        out.push_str(&format!("verbatim: {indent}{}\n", output::one_line(line)));
    }
    out
}

impl Verb {
    async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        match self {
            Self::Setup(setup) => setup.run(screen).await,
            Self::Publish(publish) => publish.run(screen).await,
            Self::Lint(lint) => lint.run(screen),
            Self::Conversation(ConversationVerb::List(list)) => list.run(screen).await,
            Self::Conversation(ConversationVerb::Show(show)) => show.run(screen).await,
            Self::Queues(queues) => queues.run(screen).await,
            Self::DeadLetters(verb) => verb.run(screen).await,
            Self::Verify(verify) => verify.run(screen).await,
            Self::Trace(trace) => trace.run(screen).await,
        }
    }
}

fn ended(result: Result<Exit, Failure>) -> ExitCode {
    match result {
        Ok(exit) => exit.code(),
        Err(failure) => {
            print_error(&failure);
            failure.code()
        }
    }
}

/// Help and version.
fn answer(text: &clap::builder::StyledStr, no_color: NoColor) -> Result<(), Failure> {
    let screen = Screen::new(Form::Text, Colour::Auto, no_color, domain::time::Timestamp::EARLIEST);
    let text = match screen.style.paint {
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
    fn a_complaint_that_quotes_a_sender_leaves_the_terminal_alone() {
        let failure = Failure::problem("refused: `\u{1b}[2Jbot`", "see \u{9b}below");
        let expected = "verbatim: refused: `␛[2Jbot`\nverbatim:   see \u{fffd}below\n";
        assert_eq!(error_text(&failure), expected);
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_says_what_each_command_does_needs_and_answers() {
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
