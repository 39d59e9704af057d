//! JSON text: the ground floor, on which decoding, messages and wire types stand. It uses nothing
//! else of this crate.
//!
//! JSON is stored byte for byte as it was sent, so it is read as text and no tree is built.
//! serde_json checks every value but strings without escapes. What it does not offer is here, above
//! the tokens of a text: which valid JSON cannot be stored, the path to a place, a canonical form.
//! So is a faster way to read the members of an object, and to write one.

mod canonical;
mod faults;
mod indented;
mod members;
mod numbers;
mod path;
mod text;
mod tokens;
mod writer;

pub use self::faults::replace_unstorable;
pub use self::indented::indented;
pub use self::members::{Member, members, string};
pub use self::text::Json;
pub use self::writer::Object;
pub(crate) use self::{
    canonical::{canonical, canonical_without},
    faults::{Fault, FaultKind, first_fault, is_storable, not_a_number},
    members::{array_elements, is_empty_array, size_of_array, type_name, wanted_members},
    numbers::{decimal_digits, integer},
    path::path_to,
};

#[cfg(test)]
mod tests;
