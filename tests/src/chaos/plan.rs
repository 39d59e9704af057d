//! What breaks, and in which order: a pure function of the seed.
//!
//! Faults are dealt from a shuffled deck that holds every kind, so that none is left out by chance.
//! Within a storm no two faults have the same target: a dead server cannot be frozen.

use std::fmt;
use std::time::Duration;

use testkit::servers::Kind;

use super::QUIET;

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// At least so many messages are published.
    pub messages: usize,
    /// Rounds are added until they take so long by the plan.
    pub lasts: Duration,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Where it came from.
    pub seed: u64,
    /// At least so many messages are published,
    pub messages: usize,
    /// evenly over this time,
    pub lasts: Duration,
    pub(super) rounds: Vec<Round>,
}

/// Several faults at once, and then one alone.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Round {
    pub(super) storm: Vec<Strike>,
    pub(super) alone: Strike,
}

/// One fault, from when to when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Strike {
    /// Since the beginning of the storm.
    pub(super) begins: Duration,
    pub(super) fault: Fault,
    pub(super) lasts: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// A process of the fleet.
    Worker(Replica, Death),
    /// The way from one process to one server.
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
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

/// What only one fault at a time can be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Worker(Replica),
    Path(Replica, Kind),
    Server(Kind),
}

/// What is felt alone before anything else: the silence that a broker's heartbeats must notice, and the
/// ends of the two servers without which nothing can be saved. Dealt from the end.
const FELT_FIRST: [Fault; 3] = [
    Fault::Server(Outage::DatabaseStopped),
    Fault::Server(Outage::BrokerKilled),
    Fault::Path(Replica { role: Role::Saver, number: 0 }, Kind::RabbitMq, NetworkFault::Frozen),
];
/// How many faults a minute has at least.
const FAULTS_A_MINUTE: u64 = 8;
/// How many faults a storm has.
const STORM: usize = 5;
/// Between the beginnings of two faults of a storm, at most, in milliseconds.
const APART_MS: u64 = 2_500;
/// The longest that a server needs to come back, by experience on two busy cores.
const RETURN: Duration = Duration::from_secs(8);

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn new(seed: u64, size: Size) -> Self {
        let mut dice = Dice(seed);
        let (mut storms, mut singles) = (Deck::default(), Deck(FELT_FIRST.into()));
        let (mut rounds, mut planned) = (Vec::new(), Duration::ZERO);
        let least = size.lasts.as_secs().div_ceil(60) * FAULTS_A_MINUTE;
        while planned < size.lasts || ((rounds.len() * (STORM + 1)) as u64) < least {
            let round = Round::dealt(&mut storms, &mut singles, &mut dice);
            planned += round.planned();
            rounds.push(round);
        }
        Self { seed, messages: size.messages, lasts: planned, rounds }
    }

    /// How many faults it has.
    #[must_use]
    pub fn faults(&self) -> usize {
        self.rounds.iter().map(|round| round.storm.len() + 1).sum()
    }
}

impl Round {
    fn dealt(storms: &mut Deck, singles: &mut Deck, dice: &mut Dice) -> Self {
        let (mut storm, mut begins) = (Vec::<Strike>::new(), Duration::ZERO);
        while storm.len() < STORM {
            let is_free =
                |fault: Fault| storm.iter().all(|strike| strike.fault.target() != fault.target());
            let fault = storms.deal(dice, is_free);
            storm.push(Strike { begins, fault, lasts: fault.lasts(dice) });
            begins += Duration::from_millis(dice.below(APART_MS));
        }
        let fault = singles.deal(dice, |_| true);
        let alone = Strike { begins: Duration::ZERO, fault, lasts: fault.lasts(dice) };
        Self { storm, alone }
    }

    fn planned(&self) -> Duration {
        let storm = self.storm.iter().map(|strike| strike.begins + strike.lasts).max();
        storm.unwrap_or_default() + RETURN + self.alone.lasts + QUIET
    }
}

impl Replica {
    pub(super) const ALL: [Self; 6] = [
        Self { role: Role::Saver, number: 0 },
        Self { role: Role::Saver, number: 1 },
        Self { role: Role::Migration, number: 0 },
        Self { role: Role::Migration, number: 1 },
        Self { role: Role::Statistics, number: 0 },
        Self { role: Role::Statistics, number: 1 },
    ];
}

impl Role {
    const ALL: [Self; 3] = [Self::Saver, Self::Migration, Self::Statistics];

    fn title(self) -> &'static str {
        match self {
            Self::Saver => "save worker",
            Self::Migration => "migration worker",
            Self::Statistics => "statistics worker",
        }
    }
}

impl Fault {
    /// Whether connections fall silent by it without being closed.
    pub(super) fn is_silent(self) -> bool {
        matches!(self, Self::Path(_, _, NetworkFault::Frozen) | Self::Server(Outage::RedisPaused))
    }

    fn target(self) -> Target {
        match self {
            Self::Worker(replica, _) => Target::Worker(replica),
            Self::Path(replica, server, _) => Target::Path(replica, server),
            Self::Server(outage) => Target::Server(outage.server()),
        }
    }

    fn lasts(self, dice: &mut Dice) -> Duration {
        let (least, most) = match self {
            Self::Worker(_, Death::Stopped) => return Duration::from_secs(20),
            // An orchestrator starts it again at once, or soon.
            Self::Worker(_, Death::Killed | Death::Drained) => (0, 2_000),
            Self::Path(_, _, NetworkFault::Reset) | Self::Server(Outage::BackendKilled) => {
                return Duration::ZERO;
            }
            Self::Path(_, _, NetworkFault::Cut) => (200, 5_000),
            // Beyond the time-outs of the stores' clients, and sometimes beyond heartbeats.
            Self::Path(_, _, NetworkFault::Frozen) => (2_000, 18_000),
            Self::Server(_) => (0, 4_000),
        };
        Duration::from_millis(least + dice.below(most - least))
    }

    /// The same kind, at another replica.
    fn at(self, number: usize) -> Self {
        match self {
            Self::Worker(replica, death) => Self::Worker(Replica { number, ..replica }, death),
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
            for strike in &round.storm {
                writeln!(f, "  {:4.1} s  {strike}", strike.begins.as_secs_f64())?;
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
            Self::Worker(replica, death) => write!(
                f,
                "{replica}: {}",
                match death {
                    Death::Killed => "kill -9",
                    Death::Drained => "SIGTERM",
                    Death::Stopped => "SIGSTOP",
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
                Outage::BackendKilled => "PostgreSQL: a backend killed",
            }),
        }
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lasts.is_zero() {
            return self.fault.fmt(f);
        }
        write!(f, "{}, for {:.1} s", self.fault, self.lasts.as_secs_f64())
    }
}

/// Every kind of fault once, in random order; then again.
#[derive(Default)]
struct Deck(Vec<Fault>);

impl Deck {
    /// The topmost fault that suits; those above it stay for later.
    fn deal(&mut self, dice: &mut Dice, suits: impl Fn(Fault) -> bool) -> Fault {
        let number = dice.index(2);
        loop {
            if let Some(at) = self.0.iter().rposition(|fault| suits(fault.at(number))) {
                return self.0.remove(at).at(number);
            }
            let mut fresh = kinds(dice);
            for last in (1..fresh.len()).rev() {
                fresh.swap(last, dice.index(last + 1));
            }
            self.0.splice(..0, fresh);
        }
    }
}

/// Each death of each worker, each weather to each server (whoever goes there), each outage.
fn kinds(dice: &mut Dice) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Outage::ALL.map(Fault::Server).into();
    for role in Role::ALL {
        let replica = Replica { role, number: 0 };
        for death in [Death::Killed, Death::Drained, Death::Stopped] {
            faults.push(Fault::Worker(replica, death));
        }
    }
    for server in Kind::ALL {
        for network_fault in [NetworkFault::Cut, NetworkFault::Frozen, NetworkFault::Reset] {
            let replica = Replica { role: Role::ALL[dice.index(Role::ALL.len())], number: 0 };
            faults.push(Fault::Path(replica, server, network_fault));
        }
    }
    faults
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014): the same
/// numbers on every machine and in every version.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `bound`, which is small against 2^64.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or_default()
    }
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
            let storms = plan.rounds.iter().flat_map(|round| &round.storm);
            let dealt: Vec<Fault> = storms.map(|strike| whoever(strike.fault)).collect();
            for kind in kinds(&mut Dice(seed)).into_iter().map(whoever) {
                assert!(dealt.contains(&kind), "seed {seed}: no {kind}");
            }
        }
    }

    /// The same, at the first replica; of a way, at whichever process.
    fn whoever(fault: Fault) -> Fault {
        match fault.at(0) {
            Fault::Path(_, server, network_fault) => {
                Fault::Path(Replica::ALL[0], server, network_fault)
            }
            fault => fault,
        }
    }

    #[test]
    fn no_two_faults_of_a_storm_have_one_target() {
        for round in (0..50).flat_map(|seed| plan(seed).rounds) {
            for (n, strike) in round.storm.iter().enumerate() {
                let others = &round.storm[n + 1..];
                assert!(others.iter().all(|it| it.fault.target() != strike.fault.target()));
            }
        }
    }
}
