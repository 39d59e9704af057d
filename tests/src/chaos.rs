//! The proof by chaos: a fleet under load while everything breaks, and then the books.
//!
//! Publishers publish with confirms, repeat what was not confirmed, and write down what was. Two
//! replicas of each worker stand behind proxies of their own. Round after round several things break
//! at once; then one thing breaks alone, and ten seconds of quiet show how soon every replica works
//! again. At the end every id is looked for, and every transcript is read with Redis and without.
//!
//! Invariant: what breaks, and in which order, follows from the seed alone. Nothing is forgiven: a
//! message that was lost, doubled, dead-lettered or put elsewhere makes the run fail.

mod load;
mod plan;
mod recovery;
mod replicas;
mod report;
mod strike;

use std::rc::Rc;
use std::time::Duration;

use broker::topology::WorkQueue;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep_until};

use self::load::{Books, Load};
pub use self::plan::{Plan, Size};
use self::plan::{Round, Strike};
use self::recovery::Recovery;
use self::replicas::Replicas;
pub use self::report::Report;
use self::report::Struck;
use crate::Scenario;

/// Nothing breaks for so long after a fault that was alone.
const QUIET: Duration = Duration::from_secs(10);

/// Where it all takes place.
struct Ground {
    replicas: Replicas,
    /// Last: the replicas' logs go away with it.
    scenario: Scenario,
}

/// What `run` tells while it goes on.
pub type Tell = Rc<dyn Fn(&str)>;

/// Carries out a plan, on servers of its own, and audits what came of it.
///
/// # Panics
/// When the servers or the fleet cannot be had at all.
pub async fn run(plan: &Plan, tell: &Tell) -> Report {
    // Everything here waits, for servers or for time: one thread has enough of it.
    LocalSet::new().run_until(carry_out(plan, tell)).await
}

async fn carry_out(plan: &Plan, tell: &Tell) -> Report {
    let scenario = Scenario::on_own_servers().await;
    let replicas = Replicas::start(&scenario).await;
    let ground = Rc::new(Ground { replicas, scenario });
    let load = Load::start(&ground.scenario, plan);
    let began = Instant::now();
    let say = |text: String| tell(&format!("{:7.1} s  {text}", began.elapsed().as_secs_f64()));

    let (mut struck, mut recoveries) = (Vec::new(), Vec::new());
    for (n, round) in plan.rounds.iter().enumerate() {
        say(format!("round {} of {}: a storm of {}", n + 1, plan.rounds.len(), round.storm.len()));
        struck.extend(storm(&ground, round, began, tell).await);
        ground.all_work().await;
        struck.push(blow(&ground, &round.alone, began, tell).await);
        let returned = Instant::now();
        let recovery = Recovery::measure(&ground, round.alone.fault).await;
        say(format!("          {recovery}"));
        recoveries.push(recovery);
        sleep_until(returned + QUIET).await;
    }

    say("quiet; what is left is published, saved and archived".to_owned());
    let books = load.finish().await;
    ground.settle(&books).await;
    let findings = books.ledger.audit(&ground.scenario, &ground.scenario.reader()).await;
    // What was not acknowledged is ready again once nobody is there to hold it.
    let fallen = ground.replicas.drain().await;
    let unsettled = ground.unsettled(&books).await;
    Report {
        seed: plan.seed,
        took: began.elapsed(),
        struck,
        recoveries,
        confirmed: books.ledger.len(),
        closed: books.closed,
        misread: books.misread,
        unsettled,
        findings,
        fallen,
    }
}

/// All strikes of a round's storm, each at its time, until the last of them has passed.
async fn storm(ground: &Rc<Ground>, round: &Round, began: Instant, tell: &Tell) -> Vec<Struck> {
    let (mut strikes, start) = (JoinSet::new(), Instant::now());
    for strike in round.storm.clone() {
        let (ground, tell) = (Rc::clone(ground), Rc::clone(tell));
        strikes.spawn_local(async move {
            sleep_until(start + strike.begins).await;
            blow(&ground, &strike, began, &tell).await
        });
    }
    strikes.join_all().await
}

async fn blow(ground: &Ground, strike: &Strike, began: Instant, tell: &Tell) -> Struck {
    let at = began.elapsed();
    tell(&format!("{:7.1} s  {strike}", at.as_secs_f64()));
    ground.strike(strike).await;
    Struck { fault: strike.fault, at, lasted: began.elapsed().saturating_sub(at) }
}

impl Ground {
    /// Waits until queues are empty and what was closed is archived, or for as long as that may take;
    /// what is missing then is for the audit to say.
    async fn settle(&self, books: &Books) {
        let settled = testkit::wait::until("the end of all work", load::SETTLE, async || {
            let left = self.unsettled(books).await;
            if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
        });
        settled.await.ok();
    }

    /// What is not as it must be once everything has been done.
    async fn unsettled(&self, books: &Books) -> Vec<String> {
        let mut left = Vec::new();
        let queued = self.scenario.queued().await;
        // Hints for the statistics may stay: what is stale stands in PostgreSQL.
        let hints = WorkQueue::Statistics.name();
        for (queue, ready) in queued.into_iter().filter(|(queue, _)| *queue != hints) {
            left.push(format!("{ready} ready in {queue}"));
        }
        let counts = "SELECT (SELECT count(*) FROM messages)
            || ' ' || (SELECT count(*) FROM conversations WHERE status = 'archived')
            || ' ' || (SELECT count(*) FROM conversations c
                       LEFT JOIN conversation_stats s
                         ON (s.tenant_id, s.conversation_id) = (c.tenant_id, c.id)
                       WHERE c.status = 'archived'
                         AND s.message_count IS DISTINCT FROM c.message_count)";
        let counts = self.scenario.sql(counts).await;
        let wanted = format!("{} {} 0", books.ledger.len(), books.closed);
        if counts != wanted {
            let what = "messages, archived conversations, wrong statistics";
            left.push(format!("{what}: {counts} instead of {wanted}"));
        }
        left
    }
}
