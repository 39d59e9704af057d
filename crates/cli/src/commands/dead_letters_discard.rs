//! `verbatim dead-dead_letters discard`: dead letters that may stay dead, and why.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use conversation::dead_letters::{DeadLetterValidator, DeadLetters};
use domain::decode::DEFAULT_MAX_BODY_BYTES;
use metrics::Metrics;
use serde::Serialize;
use service::settings::DatabaseSettings;
use uuid::Uuid;

use super::dead_letters_selection::Chosen;
use crate::actor::ActorArgs;
use crate::exit::{Exit, Failure};
use crate::output::{Screen, TextStyle, Tone, plural};
use crate::servers::DatabaseServer;

const EXAMPLES: &str = "\
Examples:
  verbatim dead-letters discard ID --why 'a test of the agents team'
  verbatim dead-letters discard --tenant demo --reason schema --why 'demo data'

Nothing is deleted: `verbatim dead-letters restore` opens them again. Dead letters that are not open, or
that a replay has just now, stay as they are. Exit code 1: not every dead letter that was named is
discarded.";

/// Discards open dead letters, with a reason
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(override_usage = "verbatim dead-letters discard [OPTIONS] --why <TEXT> [ID]...")]
pub(crate) struct DeadLettersDiscard {
    /// Why they may stay dead
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    why: String,

    #[command(flatten)]
    chosen: Chosen,

    #[command(flatten)]
    actor: ActorArgs,

    #[command(flatten)]
    database: DatabaseSettings,
}

/// What was done to how many dead letters.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    /// The id under which the audit log knows all of it.
    pub(super) run: Uuid,
    pub(super) dead_letters: u64,
    /// Dead letters that were named one by one and to which it was not done.
    pub(super) others: u64,
}

impl DeadLettersDiscard {
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        let selection = self.chosen.selection(screen.style.now)?;
        let server = DatabaseServer::open(&self.database).await?;
        let actor = self.actor.actor();
        let discarded = dead_letters(&server).discard(selection, &self.why, &actor).await;
        let dead_letters = discarded.map_err(|error| server.failure(&error))?;
        let others = self.chosen.named().saturating_sub(dead_letters);
        let done = Done { run: actor.run, dead_letters, others };
        screen.show(&done, |style| done.text("discarded", "open", style))?;
        Ok(done.exit())
    }
}

/// The dead letters of a database, for what needs no look at their bodies.
pub(super) fn dead_letters(server: &DatabaseServer) -> DeadLetters {
    let validator = DeadLetterValidator { max_body_bytes: DEFAULT_MAX_BODY_BYTES };
    DeadLetters::new(server.database.clone(), Metrics::new(), validator)
}

impl Done {
    pub(super) fn text(&self, done: &str, what: &str, style: &TextStyle) -> String {
        let tone = if self.dead_letters > 0 { Tone::Good } else { Tone::Warn };
        let mut out =
            style.paint.text(tone, &format!("{} {done}", plural(self.dead_letters, "dead letter")));
        if self.others > 0 {
            let others = plural(self.others, "dead letter");
            let told = format!("; {others} named are not {what}, or a replay has them just now");
            out.push_str(&style.paint.text(Tone::Warn, &told));
        }
        out.push('\n');
        out
    }

    pub(super) fn exit(&self) -> Exit {
        if self.others > 0 { Exit::Problems } else { Exit::Fine }
    }
}
