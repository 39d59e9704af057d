//! `verbatim verify`: do queues, Redis and PostgreSQL agree with each other, and with themselves?
//!
//! Findings are told as they come, since looking at everything may take long; what they add up to, and
//! what to do, comes last.

mod report;

use std::time::Duration;

use broker::Endpoints;
use clap::Args;
use conversation::{
    Incomplete, RandomSource, Repairs, Section, Verified, Verifier, VerifyProgress,
    VerifyingSettings, check_server,
};
use domain::failure::Dependency;
use domain::ids::{ConversationId, TenantId};
use hot_store::{Address, HotStore};
use indicatif::ProgressBar;
use report::Report;
use service::settings::{AmqpSettings, ClosingTimes, DatabaseSettings, RedisSettings, duration};

use crate::actor::ActorArgs;
use crate::exit::{Exit, Failure};
use crate::output::{Form, Screen, TextStyle, count, print, spinner};
use crate::servers::{Broker, DatabaseServer, joined};
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
/// against the messages they are of; rows that belong to nothing; queues that differ, and dead letters or work
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
    actor: ActorArgs,

    /// What the fleet does by itself (closing, statistics) is a finding when it is overdue by so long
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
    pub(crate) async fn run(self, screen: &Screen) -> Result<Exit, Failure> {
        let scope = database::Scope {
            tenant: self.tenant.clone(),
            conversation: self.conversation.clone(),
            since: self.since.map(|since| since.before(screen.style.now)),
        };
        let mut output = Output::new(screen);
        let (database, away) = match DatabaseServer::open(&self.database).await {
            Ok(database) => (database, None),
            // Queues can be looked at all the same.
            Err(Failure::Away(away)) => (DatabaseServer::unreached(&self.database)?, Some(away)),
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

    fn verifier(&self, server: &DatabaseServer) -> Result<Verifier, Failure> {
        let broker = Broker::of(&self.amqp)?;
        let endpoints: Endpoints = broker.endpoints;
        let address = Address::parse(&joined(&self.redis.redis_url))
            .map_err(|error| Failure::Usage(format!("REDIS_URL: {error}")))?;
        let database = server.database.clone();
        let hot = HotStore::open(hot_store::Settings::new(address), check_server(database.clone()));
        let settings = VerifyingSettings {
            grace: self.closing.close_grace,
            idle: self.closing.close_idle,
            overdue_after: self.overdue_after,
            repairs: if self.repair { Repairs::By(self.actor.actor().name) } else { Repairs::None },
        };
        Ok(Verifier::new(database, hot, endpoints, RandomSource::random(), settings))
    }
}

fn needs_database(section: Section) -> bool {
    section.stores().contains(&Dependency::PostgreSql)
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

    fn tell(&mut self, told: VerifyProgress<'_>) {
        match told {
            VerifyProgress::Begins(section) => {
                self.progress.set_message(report::title(section).to_owned());
                self.line(|style| report::begins(section, style));
            }
            VerifyProgress::Checked(checked) => {
                let section = self.report.section.map_or("", report::title);
                self.progress.set_message(format!("{section}: {}", count(i128::from(checked))));
                self.progress.tick();
            }
            VerifyProgress::Found(finding) => {
                if self.report.add(finding) {
                    self.line(|style| report::found(finding, style));
                }
            }
            VerifyProgress::Ends(verified) => {
                self.report.sections.push(verified.clone());
                self.line(|style| report::ends(verified, style));
            }
        }
        if let VerifyProgress::Begins(section) = told {
            self.report.section = Some(section);
        }
    }

    fn not_looked_at(&mut self, section: Section, cause: &str) {
        self.tell(VerifyProgress::Begins(section));
        let incomplete = Some(Incomplete::Unavailable {
            dependency: Dependency::PostgreSql,
            cause: cause.to_owned(),
        });
        self.tell(VerifyProgress::Ends(&Verified {
            section,
            checked: 0,
            found: 0,
            unrepaired: 0,
            incomplete,
        }));
    }

    fn line(&mut self, text: impl FnOnce(&TextStyle) -> String) {
        if self.screen.form == Form::Json || self.stopped.is_some() {
            return;
        }
        let text = text(&self.screen.style);
        let written = self.progress.suspend(|| print(text.as_bytes()));
        self.stopped = written.err();
    }

    fn end(mut self) -> Result<Exit, Failure> {
        self.progress.finish_and_clear();
        if let Some(stopped) = self.stopped.take() {
            return Err(stopped);
        }
        self.report.close();
        self.screen.show(&self.report, |style| report::summary(&self.report, style))?;
        Ok(self.report.exit())
    }
}
