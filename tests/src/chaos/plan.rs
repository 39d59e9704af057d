//! Which faults are injected, and in which order: a pure function of the seed.
//!
//! Faults are taken from a shuffled list of every kind, so that each kind occurs. No two overlapping
//! faults have the same target: a dead server cannot be frozen.

use std::fmt;
use std::time::Duration;

use testkit::servers::Kind;

use crate::Random;

/// How long no fault is injected after a lone fault.
pub(super) const PAUSE: Duration = Duration::from_secs(10);

/// The size of a run.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// At least so many messages are published.
    pub messages: usize,
    /// Rounds are added until their planned time reaches this.
    pub lasts: Duration,
}

/// The faults and the load of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The seed that it follows from.
    pub seed: u64,
    /// At least so many messages are published.
    pub messages: usize,
    /// The messages are spread evenly over this time.
    pub lasts: Duration,
    pub(super) rounds: Vec<Round>,
}

/// Several overlapping faults, and then one alone.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Round {
    pub(super) overlapping: Vec<ScheduledFault>,
    pub(super) alone: ScheduledFault,
}

/// One fault, with its start and its duration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ScheduledFault {
    /// Since the start of the round.
    pub(super) begins: Duration,
    pub(super) fault: Fault,
    pub(super) lasts: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// A process of the fleet.
    Process(Replica, ProcessFault),
    /// The connections from one process to one server.
    Path(Replica, Kind, NetworkFault),
    /// A server.
    Server(Outage),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Replica {
    pub(super) role: Role,
    pub(super) number: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Saver,
    Migration,
    Statistics,
    Collector,
    Api,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcessFault {
    /// SIGKILL, and started again.
    Killed,
    /// SIGTERM, and started again when it has ended.
    Drained,
    /// SIGSTOP and, after a while, SIGCONT.
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NetworkFault {
    Cut,
    Frozen,
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outage {
    BrokerKilled,
    BrokerAppStopped,
    RedisKilled,
    RedisEmptied,
    RedisPaused,
    DatabaseStopped,
    BackendKilled,
}

/// What at most one fault at a time affects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Process(Replica),
    Path(Replica, Kind),
    Server(Kind),
}

/// The first lone faults, taken from the end: silence that AMQP heartbeats must detect, and crashes of
/// the two servers without which nothing can be saved.
const FIRST_LONE: [Fault; 3] = [
    Fault::Server(Outage::DatabaseStopped),
    Fault::Server(Outage::BrokerKilled),
    Fault::Path(Replica { role: Role::Saver, number: 0 }, Kind::RabbitMq, NetworkFault::Frozen),
];
/// The first overlapping faults, taken from the end: also a short run ends requests in their middle.
const FIRST_OVERLAPPING: [Fault; 2] = [
    Fault::Process(FIRST_API, ProcessFault::Drained),
    Fault::Process(FIRST_API, ProcessFault::Killed),
];
const FIRST_API: Replica = Replica { role: Role::Api, number: 0 };
/// The least number of faults a minute.
const FAULTS_A_MINUTE: u64 = 8;
/// How many overlapping faults a round has.
const OVERLAPPING: usize = 5;
/// The longest time between the starts of two overlapping faults, in milliseconds.
const LONGEST_GAP_MS: u64 = 2_500;
/// The longest restart of a server, as measured on two busy cores.
const RESTART: Duration = Duration::from_secs(8);

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn new(seed: u64, size: Size) -> Self {
        let mut random = Random::new(seed);
        let (mut overlapping_faults, mut lone_faults) =
            (ShuffledFaults::overlapping(&mut random), ShuffledFaults(FIRST_LONE.into()));
        let (mut rounds, mut planned) = (Vec::new(), Duration::ZERO);
        let least = size.lasts.as_secs().div_ceil(60) * FAULTS_A_MINUTE;
        while planned < size.lasts || ((rounds.len() * (OVERLAPPING + 1)) as u64) < least {
            let round = Round::next(&mut overlapping_faults, &mut lone_faults, &mut random);
            planned += round.planned();
            rounds.push(round);
        }
        Self { seed, messages: size.messages, lasts: planned, rounds }
    }

    /// How many faults it has.
    #[must_use]
    pub fn faults(&self) -> usize {
        self.rounds.iter().map(|round| round.overlapping.len() + 1).sum()
    }
}

impl Round {
    fn next(
        overlapping_faults: &mut ShuffledFaults,
        lone_faults: &mut ShuffledFaults,
        random: &mut Random,
    ) -> Self {
        let (mut overlapping, mut begins) = (Vec::<ScheduledFault>::new(), Duration::ZERO);
        while overlapping.len() < OVERLAPPING {
            let is_free =
                |fault: Fault| overlapping.iter().all(|it| it.fault.target() != fault.target());
            let fault = overlapping_faults.next(random, is_free);
            overlapping.push(ScheduledFault { begins, fault, lasts: fault.lasts(random) });
            begins += Duration::from_millis(random.below(LONGEST_GAP_MS));
        }
        let fault = lone_faults.next(random, |_| true);
        let alone = ScheduledFault { begins: Duration::ZERO, fault, lasts: fault.lasts(random) };
        Self { overlapping, alone }
    }

    fn planned(&self) -> Duration {
        let overlapping = self.overlapping.iter().map(|it| it.begins + it.lasts).max();
        overlapping.unwrap_or_default() + RESTART + self.alone.lasts + PAUSE
    }
}

impl Replica {
    pub(super) const ALL: [Self; 10] = [
        Self { role: Role::Saver, number: 0 },
        Self { role: Role::Saver, number: 1 },
        Self { role: Role::Migration, number: 0 },
        Self { role: Role::Migration, number: 1 },
        Self { role: Role::Statistics, number: 0 },
        Self { role: Role::Statistics, number: 1 },
        Self { role: Role::Collector, number: 0 },
        Self { role: Role::Collector, number: 1 },
        Self { role: Role::Api, number: 0 },
        Self { role: Role::Api, number: 1 },
    ];
}

impl Role {
    const ALL: [Self; 5] =
        [Self::Saver, Self::Migration, Self::Statistics, Self::Collector, Self::Api];

    /// Whether it has connections to a server.
    fn uses(self, server: Kind) -> bool {
        self != Self::Api || server != Kind::Redis
    }

    fn title(self) -> &'static str {
        match self {
            Self::Saver => "save worker",
            Self::Migration => "migration worker",
            Self::Statistics => "statistics worker",
            Self::Collector => "dead-letter worker",
            Self::Api => "API",
        }
    }
}

impl Fault {
    /// Whether connections stop responding without being closed.
    pub(super) fn is_silent(self) -> bool {
        matches!(self, Self::Path(_, _, NetworkFault::Frozen) | Self::Server(Outage::RedisPaused))
    }

    fn target(self) -> Target {
        match self {
            Self::Process(replica, _) => Target::Process(replica),
            Self::Path(replica, server, _) => Target::Path(replica, server),
            Self::Server(outage) => Target::Server(outage.server()),
        }
    }

    fn lasts(self, random: &mut Random) -> Duration {
        let (least, most) = match self {
            Self::Process(_, ProcessFault::Stopped) => return Duration::from_secs(20),
            // An orchestrator restarts it at once or soon.
            Self::Process(_, ProcessFault::Killed | ProcessFault::Drained) => (0, 2_000),
            Self::Path(_, _, NetworkFault::Reset) | Self::Server(Outage::BackendKilled) => {
                return Duration::ZERO;
            }
            Self::Path(_, _, NetworkFault::Cut) => (200, 5_000),
            // Longer than the timeouts of the stores' clients, and sometimes than AMQP heartbeats.
            Self::Path(_, _, NetworkFault::Frozen) => (2_000, 18_000),
            Self::Server(_) => (0, 4_000),
        };
        Duration::from_millis(least + random.below(most - least))
    }

    /// The same kind of fault, at another replica.
    fn at(self, number: usize) -> Self {
        match self {
            Self::Process(replica, process_fault) => {
                Self::Process(Replica { number, ..replica }, process_fault)
            }
            Self::Path(replica, server, network_fault) => {
                Self::Path(Replica { number, ..replica }, server, network_fault)
            }
            Self::Server(outage) => Self::Server(outage),
        }
    }
}

impl Outage {
    const ALL: [Self; 7] = [
        Self::BrokerKilled,
        Self::BrokerAppStopped,
        Self::RedisKilled,
        Self::RedisEmptied,
        Self::RedisPaused,
        Self::DatabaseStopped,
        Self::BackendKilled,
    ];

    pub(super) fn server(self) -> Kind {
        match self {
            Self::BrokerKilled | Self::BrokerAppStopped => Kind::RabbitMq,
            Self::RedisKilled | Self::RedisEmptied | Self::RedisPaused => Kind::Redis,
            Self::DatabaseStopped | Self::BackendKilled => Kind::PostgreSql,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, round) in self.rounds.iter().enumerate() {
            writeln!(f, "round {} of {}", n + 1, self.rounds.len())?;
            for scheduled in &round.overlapping {
                writeln!(f, "  {:4.1} s  {scheduled}", scheduled.begins.as_secs_f64())?;
            }
            writeln!(f, "  alone   {}", round.alone)?;
        }
        Ok(())
    }
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role.title(), self.number + 1)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(replica, process_fault) => write!(
                f,
                "{replica}: {}",
                match process_fault {
                    ProcessFault::Killed => "kill -9",
                    ProcessFault::Drained => "SIGTERM",
                    ProcessFault::Stopped => "SIGSTOP",
                }
            ),
            Self::Path(replica, server, network_fault) => {
                let what = match network_fault {
                    NetworkFault::Cut => "cut",
                    NetworkFault::Frozen => "frozen",
                    NetworkFault::Reset => "reset",
                };
                write!(f, "{replica} to {}: {what}", server.title())
            }
            Self::Server(outage) => f.write_str(match outage {
                Outage::BrokerKilled => "RabbitMQ: kill -9",
                Outage::BrokerAppStopped => "RabbitMQ: stop_app, start_app",
                Outage::RedisKilled => "Redis: kill -9",
                Outage::RedisEmptied => "Redis: restarted empty",
                Outage::RedisPaused => "Redis: paused",
                Outage::DatabaseStopped => "PostgreSQL: immediate shutdown",
                Outage::BackendKilled => "PostgreSQL: kill -9 of a backend",
            }),
        }
    }
}

impl fmt::Display for ScheduledFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lasts.is_zero() {
            return self.fault.fmt(f);
        }
        write!(f, "{}, for {:.1} s", self.fault, self.lasts.as_secs_f64())
    }
}

/// Every kind of fault once, in random order; then again.
struct ShuffledFaults(Vec<Fault>);

impl ShuffledFaults {
    /// The overlapping faults of a run.
    fn overlapping(random: &mut Random) -> Self {
        let mut faults = shuffled(random);
        faults.retain(|fault| !FIRST_OVERLAPPING.contains(fault));
        faults.extend(FIRST_OVERLAPPING);
        Self(faults)
    }

    /// Removes and returns the last fault that `suits` accepts; those after it stay for later.
    fn next(&mut self, random: &mut Random, suits: impl Fn(Fault) -> bool) -> Fault {
        let number = random.index(2);
        loop {
            if let Some(at) = self.0.iter().rposition(|fault| suits(fault.at(number))) {
                return self.0.remove(at).at(number);
            }
            self.0.splice(..0, shuffled(random));
        }
    }
}

fn shuffled(random: &mut Random) -> Vec<Fault> {
    let mut faults = kinds(random);
    for last in (1..faults.len()).rev() {
        faults.swap(last, random.index(last + 1));
    }
    faults
}

/// Each process fault of each process, each network fault to each server (from a random process that uses it), each
/// outage.
fn kinds(random: &mut Random) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Outage::ALL.map(Fault::Server).into();
    for role in Role::ALL {
        let replica = Replica { role, number: 0 };
        for process_fault in [ProcessFault::Killed, ProcessFault::Drained, ProcessFault::Stopped] {
            faults.push(Fault::Process(replica, process_fault));
        }
    }
    for server in Kind::ALL {
        let roles: Vec<Role> = Role::ALL.into_iter().filter(|role| role.uses(server)).collect();
        for network_fault in [NetworkFault::Cut, NetworkFault::Frozen, NetworkFault::Reset] {
            let replica = Replica { role: *random.one_of(&roles), number: 0 };
            faults.push(Fault::Path(replica, server, network_fault));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64) -> Plan {
        Plan::new(seed, Size { messages: 200_000, lasts: Duration::from_secs(300) })
    }

    #[test]
    fn a_seed_gives_one_plan_and_another_seed_another() {
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
    }

    #[test]
    fn five_minutes_have_forty_faults_and_every_kind_of_them() {
        for seed in 0..50 {
            let plan = plan(seed);
            assert!(plan.faults() >= 40, "seed {seed}: {} faults", plan.faults());
            let overlapping_faults = plan.rounds.iter().flat_map(|round| &round.overlapping);
            let drawn: Vec<Fault> = overlapping_faults.map(|it| normalised(it.fault)).collect();
            for kind in kinds(&mut Random::new(seed)).into_iter().map(normalised) {
                assert!(drawn.contains(&kind), "seed {seed}: no {kind}");
            }
        }
    }

    /// The same fault at the first replica; a network fault at the first replica of the first worker.
    fn normalised(fault: Fault) -> Fault {
        match fault.at(0) {
            Fault::Path(_, server, network_fault) => {
                Fault::Path(Replica::ALL[0], server, network_fault)
            }
            fault => fault,
        }
    }

    #[test]
    fn no_two_overlapping_faults_have_one_target() {
        for round in (0..50).flat_map(|seed| plan(seed).rounds) {
            for (n, scheduled) in round.overlapping.iter().enumerate() {
                let others = &round.overlapping[n + 1..];
                let target = scheduled.fault.target();
                assert!(others.iter().all(|it| it.fault.target() != target));
            }
        }
    }
}
