//! The command line: parses the arguments, runs the command, returns the exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use domain::fleet;
use service::settings::{self, Sources, Stop};

use crate::commands::audit_list::AuditList;
use crate::commands::audit_verify::AuditVerify;
use crate::commands::conversation_list::ConversationList;
use crate::commands::conversation_show::ConversationShow;
use crate::commands::dead_letters_discard::DeadLettersDiscard;
use crate::commands::dead_letters_edit::DeadLettersEdit;
use crate::commands::dead_letters_export::DeadLettersExport;
use crate::commands::dead_letters_list::DeadLettersList;
use crate::commands::dead_letters_replay::DeadLettersReplay;
use crate::commands::dead_letters_restore::DeadLettersRestore;
use crate::commands::dead_letters_show::DeadLettersShow;
use crate::commands::keys_create::KeysCreate;
use crate::commands::keys_list::KeysList;
use crate::commands::keys_revoke::KeysRevoke;
use crate::commands::keys_rotate::KeysRotate;
use crate::commands::lint::Lint;
use crate::commands::publish::Publish;
use crate::commands::queues::Queues;
use crate::commands::setup::Setup;
use crate::commands::sync::Sync;
use crate::commands::trace::Trace;
use crate::commands::verify::Verify;
use crate::exit::{Exit, Failure};
use crate::output::{self, Colour, Form, Output, Paint};

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
    Sync(Box<Sync>),
    Lint(Lint),
    /// Lists and shows conversations
    #[command(subcommand)]
    Conversation(ConversationVerb),
    Queues(Queues),
    /// Lists, shows, edits, replays, discards, restores and exports dead letters
    #[command(subcommand)]
    DeadLetters(DeadLettersVerb),
    Verify(Box<Verify>),
    /// Creates, lists, rotates and revokes API keys
    #[command(subcommand)]
    Keys(KeysVerb),
    /// Lists and verifies the audit log
    #[command(subcommand)]
    Audit(AuditVerb),
    #[command(visible_alias = "where")]
    Trace(Box<Trace>),
}

#[derive(Debug, Subcommand)]
enum ConversationVerb {
    List(ConversationList),
    Show(ConversationShow),
}

#[derive(Debug, Subcommand)]
enum KeysVerb {
    Create(KeysCreate),
    List(KeysList),
    Rotate(KeysRotate),
    Revoke(KeysRevoke),
}

#[derive(Debug, Subcommand)]
enum AuditVerb {
    List(Box<AuditList>),
    Verify(AuditVerify),
}

#[derive(Debug, Subcommand)]
enum DeadLettersVerb {
    List(Box<DeadLettersList>),
    Show(Box<DeadLettersShow>),
    Edit(Box<DeadLettersEdit>),
    Replay(Box<DeadLettersReplay>),
    Discard(Box<DeadLettersDiscard>),
    Restore(Box<DeadLettersRestore>),
    Export(Box<DeadLettersExport>),
}

/// Runs the command that the arguments name, and returns its exit code.
pub(crate) fn run(mut sources: Sources) -> ExitCode {
    if sources.arguments.len() <= 1 {
        sources.arguments.push("--help".into());
    }
    let parsed = settings::load(Cli::command(), fleet::VERBATIM, &sources).and_then(|matches| {
        Cli::from_arg_matches(&matches)
            .map_err(|error| settings::SettingsError::new(error.to_string()).into())
    });
    let cli = match parsed {
        Ok(cli) => cli,
        Err(Stop::Answer(text)) => {
            let text = match Colour::Auto.paint(&sources.environment) {
                Paint::Plain => text.to_string(),
                Paint::Colours => text.ansi().to_string(),
            };
            return exit_code(output::print(text.as_bytes()).map(|()| Exit::Success));
        }
        Err(stop @ Stop::Invalid(_)) => return service::answer(fleet::VERBATIM, &stop),
    };
    service::install_crypto();
    let output = Output {
        form: if cli.json { Form::Json } else { Form::Text },
        paint: cli.color.paint(&sources.environment),
        now: service::clock::system().now(),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let failure = Failure::plain(format!("cannot start the async runtime: {error}"));
            return output::print_error(&failure);
        }
    };
    let code = exit_code(runtime.block_on(cli.command.run(&output)));
    // Connections that are still closing are dropped.
    runtime.shutdown_background();
    code
}

fn exit_code(result: Result<Exit, Failure>) -> ExitCode {
    result.map_or_else(|failure| output::print_error(&failure), Exit::code)
}

impl Verb {
    async fn run(self, output: &Output) -> Result<Exit, Failure> {
        match self {
            Self::Setup(setup) => setup.run(output).await,
            Self::Publish(publish) => publish.run(output).await,
            Self::Sync(sync) => sync.run(output).await,
            Self::Lint(lint) => lint.run(output),
            Self::Conversation(ConversationVerb::List(list)) => list.run(output).await,
            Self::Conversation(ConversationVerb::Show(show)) => show.run(output).await,
            Self::Queues(queues) => queues.run(output).await,
            Self::DeadLetters(DeadLettersVerb::List(list)) => list.run(output).await,
            Self::DeadLetters(DeadLettersVerb::Show(show)) => show.run(output).await,
            Self::DeadLetters(DeadLettersVerb::Edit(edit)) => edit.run(output).await,
            Self::DeadLetters(DeadLettersVerb::Replay(replay)) => replay.run(output).await,
            Self::DeadLetters(DeadLettersVerb::Discard(discard)) => discard.run(output).await,
            Self::DeadLetters(DeadLettersVerb::Restore(restore)) => restore.run(output).await,
            Self::DeadLetters(DeadLettersVerb::Export(export)) => export.run(output).await,
            Self::Verify(verify) => verify.run(output).await,
            Self::Keys(KeysVerb::Create(create)) => create.run(output).await,
            Self::Keys(KeysVerb::List(list)) => list.run(output).await,
            Self::Keys(KeysVerb::Rotate(rotate)) => rotate.run(output).await,
            Self::Keys(KeysVerb::Revoke(revoke)) => revoke.run(output).await,
            Self::Audit(AuditVerb::List(list)) => list.run(output).await,
            Self::Audit(AuditVerb::Verify(verify)) => verify.run(output).await,
            Self::Trace(trace) => trace.run(output).await,
        }
    }
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
    fn an_id_may_begin_with_a_hyphen_in_every_command_that_takes_one() {
        let filters = "--tenant -t --conversation --c --message -1";
        for (command, servers) in [
            ("conversation list --tenant -t --agent --a --session -1", ""),
            ("conversation show --tenant -t -c", ""),
            ("conversation show -c --tenant -t", ""),
            ("conversation show --tenant -t --session --s", ""),
            ("verify --tenant -t --conversation --c", "--redis-url redis://h --amqp-url amqp://h"),
            ("trace --tenant -t -1", ""),
            ("sync - --tenant -t --session -s --conversation -c --after -m", "--amqp-url amqp://h"),
            ("trace --id-of-a-message", ""),
            (&format!("dead-letters list {filters}"), ""),
            (&format!("dead-letters edit {filters}"), ""),
            (&format!("dead-letters replay {filters}"), "--amqp-url amqp://h"),
            (&format!("dead-letters discard {filters} --why because"), ""),
            (&format!("dead-letters restore {filters}"), ""),
            (&format!("dead-letters export {filters}"), ""),
            ("keys create --tenant -t --name n --scope read", ""),
            ("keys list --tenant -t", ""),
            ("audit list --tenant -t --by -a --subject -s", ""),
        ] {
            let database =
                if command.starts_with("sync") { "" } else { "--database-url postgresql://u@h/d" };
            let line = format!("verbatim {command} {database} {servers}");
            let parsed = Cli::command().try_get_matches_from(line.split_whitespace());
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn help_describes_each_command_its_options_and_its_exit_codes() {
        for path in [
            &[][..],
            &["setup"],
            &["publish"],
            &["sync"],
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
            &["keys", "create"],
            &["keys", "list"],
            &["keys", "rotate"],
            &["keys", "revoke"],
            &["audit", "list"],
            &["audit", "verify"],
            &["trace"],
        ] {
            let name = format!("help_{}", path.join("_").replace('-', "_"));
            insta::assert_snapshot!(name, help(path));
        }
    }
}
