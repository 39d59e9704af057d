//! `verbatim verify`: checks that queues, Redis and PostgreSQL are consistent with each other, and each
//! in itself.
//!
//! Findings are printed as they are found, because a full check may take long. The summary, with advice
//! for each kind of finding, comes last.

mod report;

use std::time::Duration;

use clap::Args;
use conversation::RandomSource;
use domain::failure::Dependency;
use domain::ids::{ConversationId, TenantId};
use indicatif::ProgressBar;
use inspect::{
    Incomplete, Repairs, Section, Verified, Verifier, VerifyProgress, VerifyingSettings,
};
use report::Report;
use service::settings::{AmqpSettings, ClosingTimes, DatabaseSettings, RedisSettings, duration};
use stores::{Broker, COMMAND_TIMEOUT, DatabaseServer, Fault, RedisServer};

use crate::actor::ActorArgs;
use crate::exit::{Exit, Failure};
use crate::output::{Form, Output, Text, count, print, spinner};
use crate::values::When;

/// Compares queues, Redis and PostgreSQL, and recomputes totals and statistics
///
/// Checks hot copies against committed rows; conversations whose close is overdue; totals, statistics and the
/// words of searches against their messages; orphaned rows; missing or different queues; and dead letters or work without
/// consumers. It reads every message, which takes long in a large database; --tenant and --since limit it.
#[derive(Debug, Args)]
#[command(override_usage = "verbatim verify [OPTIONS]")]
#[command(after_help = "\
Examples:
  verbatim verify
  verbatim verify --tenant acme --since 24h
  verbatim verify --repair
  verbatim verify --json | jq -r '.findings[] | \"\\(.kind) \\(.conversation_id) \\(.id)\"'

It may run while the workers run: work in progress is not a finding. --repair marks what is
wrong as stale, and the rest happens as in normal operation: readers load hot copies again, the
sweep closes conversations, statistics are recomputed, words are written. Each repair is recorded
in audit_log.

Exit codes: 0 no findings, or all are repaired; 1 unrepaired findings; 3 no unrepaired findings,
but incomplete because a server was unreachable.")]
pub(crate) struct Verify {
    /// Only this tenant
    #[arg(long, value_parser = |text: &str| TenantId::new(text), allow_hyphen_values = true)]
    tenant: Option<TenantId>,

    /// Only conversations with this id
    #[arg(long, value_parser = |text: &str| ConversationId::new(text), allow_hyphen_values = true)]
    conversation: Option<ConversationId>,

    /// Only what was active at or after this time: RFC 3339, or how long ago (24h, 7days)
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    since: Option<When>,

    /// Repair the repairable findings. Without it nothing is written
    #[arg(long)]
    repair: bool,

    #[command(flatten)]
    actor: ActorArgs,

    /// How late closing and statistics may be before that is a finding
    #[arg(long, default_value = "1m", value_name = "DURATION", value_parser = duration)]
    overdue_after: Duration,

    #[command(flatten)]
    amqp: AmqpSettings,
    #[command(flatten)]
    redis: RedisSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    closing: ClosingTimes,
}

impl Verify {
    pub(crate) async fn run(self, output: &Output) -> Result<Exit, Failure> {
        let scope = database::Scope {
            tenant: self.tenant.clone(),
            conversation: self.conversation.clone(),
            since: self.since.map(|since| since.before(output.now)),
        };
        let mut printer = FindingPrinter::new(output);
        let (database, unavailable) = match DatabaseServer::open(&self.database).await {
            Ok(database) => (database, None),
            // Queues can be checked without PostgreSQL.
            Err(Fault::Unavailable(cause)) => {
                (DatabaseServer::of_command(&self.database, COMMAND_TIMEOUT)?, Some(cause))
            }
            Err(fault) => return Err(fault.into()),
        };
        let verifier = self.verifier(&database)?;
        let mut sections = Section::ALL.to_vec();
        if let Some(unavailable) = unavailable {
            let cause = format!("{}: {}", unavailable.address, unavailable.cause);
            let needs_database = |it: &mut Section| it.stores().contains(&Dependency::PostgreSql);
            for section in sections.extract_if(.., needs_database) {
                printer.skip(section, &cause);
            }
        }
        verifier.run(&scope, &sections, &mut |progress| printer.on_progress(progress)).await;
        printer.end()
    }

    fn verifier(&self, server: &DatabaseServer) -> Result<Verifier, Failure> {
        let broker = Broker::of(&self.amqp)?;
        let database = server.database.clone();
        let redis = RedisServer::reading(&self.redis.redis_url, &database)?;
        let settings = VerifyingSettings {
            grace: self.closing.close_grace,
            idle: self.closing.close_idle,
            overdue_after: self.overdue_after,
            repairs: if self.repair { Repairs::By(self.actor.actor().name) } else { Repairs::None },
        };
        Ok(Verifier::new(database, redis.hot, broker.endpoints, RandomSource::random(), settings))
    }
}

/// Prints progress and findings as they are reported, and collects them for the summary.
struct FindingPrinter<'a> {
    output: &'a Output,
    spinner: ProgressBar,
    /// The title of the section that is being checked.
    section: &'static str,
    report: Report,
    /// The first write error; nothing more is printed after it.
    write_error: Option<Failure>,
}

impl<'a> FindingPrinter<'a> {
    fn new(output: &'a Output) -> Self {
        Self {
            output,
            spinner: spinner("{spinner} {msg}"),
            section: "",
            report: Report::default(),
            write_error: None,
        }
    }

    fn on_progress(&mut self, progress: VerifyProgress<'_>) {
        match progress {
            VerifyProgress::Begins(section) => {
                self.section = report::title(section);
                self.spinner.set_message(self.section);
                self.print(|out| report::begins(section, out));
            }
            VerifyProgress::Checked(checked) => {
                self.spinner.set_message(format!("{}: {}", self.section, count(checked)));
                self.spinner.tick();
            }
            VerifyProgress::Found(finding) => {
                if self.report.add(finding) {
                    self.print(|out| report::found(finding, out));
                }
            }
            VerifyProgress::Ends(verified) => {
                self.report.sections.push(verified.clone());
                self.print(|out| report::ends(verified, out));
            }
        }
    }

    fn skip(&mut self, section: Section, cause: &str) {
        self.on_progress(VerifyProgress::Begins(section));
        let incomplete = Some(Incomplete::Unavailable {
            dependency: Dependency::PostgreSql,
            cause: cause.to_owned(),
        });
        self.on_progress(VerifyProgress::Ends(&Verified {
            section,
            checked: 0,
            found: 0,
            unrepaired: 0,
            incomplete,
        }));
    }

    fn print(&mut self, write: impl FnOnce(&mut Text)) {
        if self.output.form == Form::Json || self.write_error.is_some() {
            return;
        }
        let text = self.output.text(write);
        let written = self.spinner.suspend(|| print(text.as_bytes()));
        self.write_error = written.err();
    }

    fn end(mut self) -> Result<Exit, Failure> {
        self.spinner.finish_and_clear();
        if let Some(error) = self.write_error.take() {
            return Err(error);
        }
        self.report.close();
        self.output.show(&self.report, |out| report::summary(&self.report, out))?;
        Ok(self.report.exit())
    }
}
