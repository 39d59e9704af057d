//! The chaos run: workers under load while servers, processes and connections fail at random; then an
//! audit of every message.
//!
//! Publishers publish with confirms or over HTTP, repeat what was not confirmed, and record what was. Two replicas
//! of each process run, each behind its own proxies. Each round injects several overlapping faults, then
//! one fault alone, and measures how soon every replica works again after the lone fault. Nothing fails
//! in the 10 s after it. At the end every message id is looked up in PostgreSQL, and every transcript
//! is read through Redis and from PostgreSQL.
//!
//! Clients of the conversation-api read meanwhile; the audit log is verified at the end.
//!
//! Invariant: the faults and their order follow from the seed alone. A message that was lost,
//! duplicated, dead-lettered or stored in another conversation fails the run.

mod api;
mod environment;
mod inject;
mod load;
mod plan;
mod recovery;
mod replicas;
mod report;
mod sessions;

use std::rc::Rc;

use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep_until};

use self::environment::Environment;
use self::load::Load;
use self::plan::{PAUSE, Round, ScheduledFault};
pub use self::plan::{Plan, Size};
use self::recovery::Recovery;
use self::replicas::Replicas;
use self::report::InjectedFault;
pub use self::report::Report;
use crate::Scenario;

/// Called with each progress line of a run.
pub type OnProgress = Rc<dyn Fn(&str)>;

/// Carries out a plan on private servers and audits the result.
///
/// # Panics
/// When the servers or the workers cannot be started.
pub async fn run(plan: &Plan, on_progress: &OnProgress) -> Report {
    // All tasks wait for servers or for time: one thread is enough.
    LocalSet::new().run_until(carry_out(plan, on_progress)).await
}

async fn carry_out(plan: &Plan, on_progress: &OnProgress) -> Report {
    let scenario = Scenario::on_own_servers().await;
    let replicas = Replicas::start(&scenario).await;
    let environment = Rc::new(Environment { replicas, scenario });
    let addresses = environment.replicas.api_addresses();
    let load = Load::start(&environment.scenario, &addresses, plan).await;
    let began = Instant::now();
    let progress =
        |text: String| on_progress(&format!("{:7.1} s  {text}", began.elapsed().as_secs_f64()));

    let (mut injected, mut recoveries) = (Vec::new(), Vec::new());
    for (n, round) in plan.rounds.iter().enumerate() {
        let (number, rounds, faults) = (n + 1, plan.rounds.len(), round.overlapping.len());
        progress(format!(
            "round {number} of {rounds}: {faults} overlapping faults, then one alone"
        ));
        injected.extend(inject_overlapping(&environment, round, began, on_progress).await);
        environment.all_ready().await;
        injected.push(inject_and_record(&environment, &round.alone, began, on_progress).await);
        let repaired = Instant::now();
        let recovery = Recovery::measure(&environment, round.alone.fault).await;
        progress(format!("          {recovery}"));
        recoveries.push(recovery);
        sleep_until(repaired + PAUSE).await;
    }

    progress(
        "no more faults; publishing the remaining messages and waiting until all work is done"
            .to_owned(),
    );
    let record = load.finish().await;
    environment.wait_until_done(&record).await;
    let scenario = &environment.scenario;
    let discrepancies = record.published.audit(scenario, &scenario.reader()).await;
    // Unacknowledged deliveries are ready again once their consumers have ended.
    let unexpected_exits = environment.replicas.drain().await;
    let unfinished = environment.unfinished(&record).await;
    let audit = environment.audit_log(&record).await;
    Report {
        seed: plan.seed,
        took: began.elapsed(),
        injected,
        recoveries,
        confirmed: record.published.len(),
        events: record.published.events(),
        closed: record.closed,
        misread_during_faults: record.misread,
        unfinished,
        discrepancies,
        unexpected_exits,
        audit,
        api: record.api,
    }
}

/// Injects the overlapping faults of a round, each at its time, and waits until all are repaired.
async fn inject_overlapping(
    environment: &Rc<Environment>,
    round: &Round,
    began: Instant,
    on_progress: &OnProgress,
) -> Vec<InjectedFault> {
    let (mut faults, start) = (JoinSet::new(), Instant::now());
    for fault in round.overlapping.clone() {
        let (environment, on_progress) = (Rc::clone(environment), Rc::clone(on_progress));
        faults.spawn_local(async move {
            sleep_until(start + fault.begins).await;
            inject_and_record(&environment, &fault, began, &on_progress).await
        });
    }
    faults.join_all().await
}

async fn inject_and_record(
    environment: &Environment,
    scheduled: &ScheduledFault,
    began: Instant,
    on_progress: &OnProgress,
) -> InjectedFault {
    let at = began.elapsed();
    on_progress(&format!("{:7.1} s  {scheduled}", at.as_secs_f64()));
    environment.inject(scheduled).await;
    let lasted = began.elapsed().saturating_sub(at);
    InjectedFault { fault: scheduled.fault, at, lasted }
}
