//! The payloads of the actions on bot state: JSON objects that a bot stores by profile and key. The rules of a profile (its fields, statuses, lifetimes) are not
//! checked here.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::ids::{KeyPart, MAX_ID_BYTES, ProfileName, id_text};
use crate::json::{Json, members};
use crate::wire::{Integer, JsonObject, PageSize, non_empty};

/// The key of a state: a string where the profile's key has one part, else an object with the parts
/// by name, such as `{"company": "17", "phone": "+79001234567"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum StateKey {
    /// The only part.
    One(KeyPart),
    /// The parts by name.
    Parts(BTreeMap<String, KeyPart>),
}

impl<'de> Deserialize<'de> for StateKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Json::deserialize(deserializer)?;
        let part = |json: &str| KeyPart::new(id_text(json)?).ok();
        let parts = |json: &str| -> Option<BTreeMap<String, KeyPart>> {
            let members = members(json).ok()?.into_iter();
            members.map(|(name, value)| Some((name.into_owned(), part(value)?))).collect()
        };
        let key = match json.as_str() {
            object if object.starts_with('{') => parts(object).map(Self::Parts),
            one => part(one).map(Self::One),
        };
        key.ok_or_else(|| {
            D::Error::custom(format_args!(
                "must be a string, an integer or an object of them, each 1 to {MAX_ID_BYTES} bytes without control \
                 characters"
            ))
        })
    }
}

/// The version of a state; 0 means that there is none.
pub type Version = Integer<0, { i64::MAX }>;

/// Read a state.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct Load {
    /// The kind of state.
    pub profile: ProfileName,
    /// The key of the state.
    pub key: StateKey,
}

/// Write a state: the whole state or, if its profile merges, fields of it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct Save {
    /// The kind of state.
    pub profile: ProfileName,
    /// The key of the state.
    pub key: StateKey,
    /// The new state, an object; if the profile merges, the fields to write.
    pub value: JsonObject,
    /// Fields or namespaces to remove, for profiles whose `save` merges.
    pub clear: Option<Vec<String>>,
    /// Write only if the stored version is this one; 0 means that there must be no state yet.
    pub expected_version: Option<Version>,
    /// The lifetime in seconds; by default the profile's.
    pub ttl_seconds: Option<Integer<1, { u32::MAX as i64 }>>,
}

/// Change parts of a state atomically. At least one of `patch`, `append` and `increment` is
/// required.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct Patch {
    /// The kind of state.
    pub profile: ProfileName,
    /// The key of the state.
    pub key: StateKey,
    /// A JSON Merge Patch (RFC 7396): `null` removes a field.
    pub patch: Option<JsonObject>,
    /// Values to append to arrays, by path such as `context.modifications`.
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    pub append: Option<BTreeMap<String, Json>>,
    /// Amounts to add to numbers, by path such as `metrics.message_count`.
    pub increment: Option<BTreeMap<String, f64>>,
    /// Change only if the stored version is this one.
    pub expected_version: Option<Version>,
}

/// Move a state to another status, if its profile allows it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct Transition {
    /// The kind of state.
    pub profile: ProfileName,
    /// The key of the state.
    pub key: StateKey,
    /// The status to move to.
    #[serde(deserialize_with = "non_empty")]
    #[schemars(length(min = 1))]
    pub status: String,
    /// Whether this is a reset, which is allowed from every status.
    pub reset: Option<bool>,
    /// Move only if the stored version is this one.
    pub expected_version: Option<Version>,
}

/// Remove a state, or one namespace of it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct Clear {
    /// The kind of state.
    pub profile: ProfileName,
    /// The key of the state.
    pub key: StateKey,
    /// The namespace to remove; if absent, the whole state is removed.
    pub namespace: Option<String>,
    /// Remove only if the stored version is this one.
    pub expected_version: Option<Version>,
}

/// List the states of a profile that have not expired.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct ListActive {
    /// The kind of state.
    pub profile: ProfileName,
    /// Only states whose fields have these values, such as `{"stage": "Q2", "stalled": true}`.
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    pub filter: Option<BTreeMap<String, Json>>,
    /// The field to sort by, such as `activity`; by default the profile's.
    pub sort: Option<String>,
    /// The sort order.
    pub order: Option<SortOrder>,
    /// The largest number of entries; 100 by default.
    pub limit: Option<PageSize>,
    /// The `next_cursor` of the previous page.
    pub cursor: Option<String>,
}

/// Count the states of a profile.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct Stats {
    /// The kind of state.
    pub profile: ProfileName,
}

/// The sort order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SortOrder {
    /// Smallest or oldest first.
    Asc,
    /// Largest or newest first.
    Desc,
}
