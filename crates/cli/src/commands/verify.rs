//! `verbatim verify`: do queues, Redis and PostgreSQL agree with each other, and with themselves?
//!
//! Findings are told as they come, since looking at everything may take long; what they add up to, and
//! what to do, comes last.

mod report;

use std::time::Duration;

use broker::Endpoints;
use clap::Args;
use conversation::{
    BrokenOff, Fresh, Repairs, Section, Told, Verified, Verifier, VerifyingSettings, visit,
};
use domain::failure::Store;
use domain::ids::{ConversationId, TenantId};
use hot_store::{Address, HotStore};
use indicatif::ProgressBar;
use report::Report;
use service::settings::{AmqpSettings, ClosingTimes, DatabaseSettings, RedisSettings, duration};

use crate::actor::Actor;
use crate::exit::{Exit, Failure};
use crate::look::{Form, Look, Screen, count, print, spinner};
use crate::servers::{Broker, Database, joined};
use crate::when::When;

const EXAMPLES: &str = "\
Examples:
  verbatim verify
  verbatim verify --tenant acme --since 24h
  verbatim verify --repair
  verbatim verify --json | jq -r '.findings[] | \"\\(.kind) \\(.conversation_id) \\(.id)\"'

It may run beside a working fleet: what the fleet is just doing is no finding. A repair marks what
is wrong as stale, and the fleet then does its part again: readers load, sweeps close, statistics
are recomputed. Each repair is a line in audit_log.

Exit codes: 0 all is well, or was repaired; 1 something was found, and with --repair could not be
repaired; 3 nothing is left, but a server was away, so not everything was looked at.";

/// Compares queues, Redis and PostgreSQL, and recomputes what is computed
///
/// Hot copies against committed rows; conversations that should be closed by now; totals and statistics
/// against the messages they are of; rows that belong to nothing; queues that differ, and letters or work
/// that nobody takes. It counts every message, so on a large archive it takes its time; --tenant and
/// --since make it shorter.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "verbatim verify [OPTIONS]")]
pub(crate) struct Verify {
    /// Only this tenant
    #[arg(long, value_parser = |text: &str| TenantId::new(text))]
    tenant: Option<TenantId>,

    /// Only conversations of this id
    #[arg(long, value_parser = |text: &str| ConversationId::new(text))]
    conversation: Option<ConversationId>,

    /// Only what was active since: a moment (RFC 3339) or how long ago (24h, 7days)
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    since: Option<When>,

    /// Repair what can be repaired. Without it nothing is written anywhere
    #[arg(long)]
    repair: bool,

    #[command(flatten)]
    actor: Actor,

    /// What the fleet does by itself (closing, statistics) is a finding when it is overdue by so long
    #[arg(long, default_value = "1m", value_name = "DURATION", value_parser = duration)]
    patience: Duration,

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
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        let scope = archive::Scope {
            tenant: self.tenant.clone(),
            conversation: self.conversation.clone(),
            since: self.since.map(|since| since.before(screen.look.now)),
        };
        let mut output = Output::new(screen);
        let (database, away) = match Database::open(&self.database).await {
            Ok(database) => (database, None),
            // Queues can be looked at all the same.
            Err(Failure::Away(away)) => (Database::unreached(&self.database)?, Some(away)),
            Err(failure) => return Err(failure),
        };
        let verifier = self.verifier(&database)?;
        let sections: Vec<Section> = match &away {
            None => Section::ALL.to_vec(),
            Some(_) => Section::ALL.into_iter().filter(|it| !needs_database(*it)).collect(),
        };
        if let Some(away) = away {
            let cause = format!("{}: {}", away.address, away.cause);
            for section in Section::ALL.into_iter().filter(|it| needs_database(*it)) {
                output.not_looked_at(section, &cause);
            }
        }
        verifier.run(&scope, &sections, &mut |told| output.tell(told)).await;
        output.end()
    }

    fn verifier(&self, database: &Database) -> Result<Verifier, Failure> {
        let broker = Broker::of(&self.amqp)?;
        let endpoints: Endpoints = broker.endpoints;
        let address = Address::parse(&joined(&self.redis.redis_url))
            .map_err(|error| Failure::Usage(format!("REDIS_URL: {error}")))?;
        let archive = database.archive.clone();
        let hot = HotStore::open(hot_store::Settings::new(address), visit(archive.clone()));
        let settings = VerifyingSettings {
            grace: self.closing.close_grace,
            idle: self.closing.close_idle,
            patience: self.patience,
            repairs: if self.repair { Repairs::By(self.actor.by().actor) } else { Repairs::None },
        };
        Ok(Verifier::new(archive, hot, endpoints, Fresh::random(), settings))
    }
}

fn needs_database(section: Section) -> bool {
    section.stores().contains(&Store::PostgreSql)
}

/// Where findings go while they come.
struct Output<'a> {
    screen: &'a Screen,
    progress: ProgressBar,
    report: Report,
    /// What kept the output from being written; nothing more is.
    stopped: Option<Failure>,
}

impl<'a> Output<'a> {
    fn new(screen: &'a Screen) -> Self {
        Self {
            screen,
            progress: spinner("{spinner} {msg}"),
            report: Report::default(),
            stopped: None,
        }
    }

    fn tell(&mut self, told: Told<'_>) {
        match told {
            Told::Begins(section) => {
                self.progress.set_message(report::title(section).to_owned());
                self.line(|look| report::begins(section, look));
            }
            Told::Checked(checked) => {
                let section = self.report.section.map_or("", report::title);
                self.progress.set_message(format!("{section}: {}", count(i128::from(checked))));
                self.progress.tick();
            }
            Told::Found(finding) => {
                if self.report.add(finding) {
                    self.line(|look| report::found(finding, look));
                }
            }
            Told::Ends(verified) => {
                self.report.sections.push(verified.clone());
                self.line(|look| report::ends(verified, look));
            }
        }
        if let Told::Begins(section) = told {
            self.report.section = Some(section);
        }
    }

    fn not_looked_at(&mut self, section: Section, cause: &str) {
        self.tell(Told::Begins(section));
        let broken_off =
            Some(BrokenOff::Away { store: Store::PostgreSql, cause: cause.to_owned() });
        self.tell(Told::Ends(&Verified { section, checked: 0, found: 0, left: 0, broken_off }));
    }

    fn line(&mut self, text: impl FnOnce(&Look) -> String) {
        if self.screen.form == Form::Json || self.stopped.is_some() {
            return;
        }
        let text = text(&self.screen.look);
        let written = self.progress.suspend(|| print(text.as_bytes()));
        self.stopped = written.err();
    }

    fn end(mut self) -> Result<Exit, Failure> {
        self.progress.finish_and_clear();
        if let Some(stopped) = self.stopped.take() {
            return Err(stopped);
        }
        self.report.close();
        self.screen.show(&self.report, |look| report::summary(&self.report, look))?;
        Ok(self.report.exit())
    }
}
