//! The names in the action and in its reply.

use serde::{Deserialize, Serialize};

use crate::named::named;

named! {
    /// When the `system` and `developer` messages at the head of a list are stored.
    #[derive(Default, Serialize, Deserialize, schemars::JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum SystemMessages {
        /// When they differ from those that were stored last. The default.
        #[default]
        Changed = "changed",
        /// When the conversation has none yet.
        First = "first",
        /// Never.
        Ignore = "ignore",
    }
}

named! {
    /// What to do with a list that does not go on from the newest message of the conversation.
    #[derive(Default, Serialize, Deserialize, schemars::JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum OnConflict {
        /// Store what is new as a branch. The default.
        #[default]
        Branch = "branch",
        /// Store nothing, and reply with the error `conflict`.
        Refuse = "refuse",
    }
}

named! {
    /// How a list was found to continue what is stored.
    #[derive(Serialize, Deserialize, schemars::JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Aligned {
        /// By ids: it goes on from the newest message, or nothing is new.
        Exact = "exact",
        /// By what its messages say: they end as the conversation does, and what stands before differs.
        Inferred = "inferred",
        /// It goes on from an earlier message.
        Branch = "branch",
    }
}
