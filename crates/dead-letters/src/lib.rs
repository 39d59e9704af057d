//! Dead letters: the collector that moves them from the queues into the table `dead_letters`, rerouting, and
//! what operators do with them: show, edit a copy, replay, discard, restore, export.
//!
//! What operators do works on the table; the queues only transport. The received body is never changed:
//! an edited copy is stored beside it, and a replay that fails again is a new dead letter. Every change of a
//! row writes the audit log in the same statement.

mod collector;
mod correction;
mod edit;
#[cfg(test)]
mod fixtures;
mod operations;
mod rate;
mod record;
mod refuse;
mod replay;
mod reroute;
mod storage;
mod suggestion;
mod validator;

pub use self::collector::DeadLetterCollector;
pub use self::correction::Correction;
pub use self::edit::{EditFault, set};
pub use self::operations::{Change, DeadLetterWithHistory, DeadLetters, EditError};
pub use self::refuse::RefuseActions;
pub use self::replay::{
    Ended, Failed, Planned, Progress, ReplayReport, ReplaySettings, Replayer, StopOnFailure,
};
pub use self::reroute::RerouteUnrouted;
pub use self::suggestion::{Step, Suggestion};
pub use self::validator::DeadLetterValidator;
