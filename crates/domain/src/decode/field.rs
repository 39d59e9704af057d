//! One field of a body.

use std::borrow::Cow;

/// One field and the place where it stands.
#[derive(Debug, PartialEq)]
pub(super) struct Field<'a> {
    pub(super) name: Cow<'a, str>,
    /// The text of its value.
    pub(super) value: &'a str,
    /// The beginning of its path: empty, or `data.`.
    pub(super) place: &'a str,
    /// Whether a struct has asked for it.
    pub(super) known: bool,
}

impl<'a> Field<'a> {
    pub(super) fn new(name: Cow<'a, str>, value: &'a str, place: &'a str) -> Self {
        Self { name, value, place, known: false }
    }

    /// Its path in the body.
    pub(super) fn path(&self) -> String {
        format!("{}{}", self.place, self.name)
    }
}
