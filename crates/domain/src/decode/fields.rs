//! The fields of a JSON object, flat or nested under `data`, from which serde reads structs.
//!
//! Values stay raw text until a struct asks for them by name. So unknown fields are never parsed
//! and stay byte for byte as they were sent, and every error names its field.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};

use super::fault::FieldError;
use super::value::Value;
use crate::json::{Member, canonical, is_empty_array, members};

/// One field and the place where it stands.
#[derive(Debug, Clone)]
pub(super) struct Field<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) value: &'a str,
    /// The beginning of its path: empty, or `data.`.
    place: &'a str,
    /// Whether a struct has asked for it.
    known: bool,
}

/// The fields of an action that its messages have, too.
pub(super) struct Inherited<'a> {
    /// In the order in which they were sent.
    pub(super) fields: Vec<Field<'a>>,
    sorted_names: Vec<Cow<'a, str>>,
}

impl<'a> Inherited<'a> {
    pub(super) fn new(fields: Vec<Field<'a>>) -> Self {
        let mut sorted_names: Vec<_> = fields.iter().map(|field| field.name.clone()).collect();
        sorted_names.sort_unstable();
        Self { fields, sorted_names }
    }

    fn has(&self, name: &str) -> bool {
        self.sorted_names.binary_search_by(|own| (**own).cmp(name)).is_ok()
    }

    /// The bytes of their names and values.
    pub(super) fn bytes(&self) -> usize {
        self.bytes_of(|_, _| true)
    }

    /// The bytes of the names and values of those that `is_wanted`, by their name and value.
    pub(super) fn bytes_of(&self, is_wanted: impl Fn(&str, &str) -> bool) -> usize {
        let wanted = self.fields.iter().filter(|field| is_wanted(&field.name, field.value));
        wanted.map(|field| field.name.len() + field.value.len()).sum()
    }
}

/// Whether two values are equal as JSON.
pub(super) fn same_value(a: &str, b: &str) -> bool {
    a == b || canonical(a) == canonical(b)
}

/// The fields of an action or of another object, in the order in which they were sent. No object repeats a name:
/// [`body`](super::body) refuses that.
#[derive(Debug)]
pub(super) struct Fields<'a>(Vec<Field<'a>>);

impl<'a> Field<'a> {
    /// A field that was not sent.
    pub(super) fn implied(name: &'static str, value: &'a str) -> Self {
        Self { name: name.into(), value, place: "", known: false }
    }

    pub(super) fn path(&self) -> String {
        format!("{}{}", self.place, self.name)
    }

    fn is_null(&self) -> bool {
        self.value == "null"
    }
}

impl<'a> Fields<'a> {
    /// The fields of an object; `place` is the beginning of their paths.
    pub(super) fn new(members: Vec<Member<'a>>, place: &'a str) -> Self {
        Self(at(place, members).collect())
    }

    /// The fields of a body: those at its top and those under its `data`.
    pub(super) fn merged(body: Vec<Member<'a>>) -> Result<Self, FieldError> {
        Self::merged_at(body, "", "data.")
    }

    /// The fields of an object: those at its top, whose paths begin with `top`, and those under its `data`.
    fn merged_at(
        object: Vec<Member<'a>>,
        top: &'a str,
        nested: &'a str,
    ) -> Result<Self, FieldError> {
        let mut fields: Vec<_> = at(top, object).collect();
        let Some(index) = fields.iter().position(|field| field.name == "data") else {
            return Ok(Self(fields));
        };
        let data = fields.remove(index).value;
        let under_data = match data {
            "null" => Vec::new(),
            empty if is_empty_array(empty) => Vec::new(),
            _ => {
                let path = nested.trim_end_matches('.');
                members(data).map_err(|_| FieldError::wrong_type(path, "an object", data))?
            }
        };
        fields.extend(at(nested, under_data));
        Self(fields).settled()
    }

    /// The fields of an element of an array. The places are the beginnings of the paths of its fields and of those under
    /// its `data`.
    pub(super) fn of_element(
        element: &'a str,
        [top, nested]: [&'a str; 2],
    ) -> Result<Self, FieldError> {
        let path = top.trim_end_matches('.');
        let own =
            members(element).map_err(|_| FieldError::wrong_type(path, "an object", element))?;
        Self::merged_at(own, top, nested)
    }

    /// The fields that the messages of an action have from it.
    pub(super) fn inherited(action: &Inherited<'a>) -> Self {
        Self(action.fields.clone())
    }

    /// With the fields of the action that it does not have itself.
    pub(super) fn inheriting(mut self, action: &Inherited<'a>) -> Self {
        /// So many names are compared faster one by one.
        const FEW: usize = 16;
        self.0.retain(|field| !(field.is_null() && action.has(&field.name)));
        let mut sorted = Vec::new();
        if self.0.len() > FEW {
            sorted.extend(self.0.iter().map(|field| field.name.clone()));
            sorted.sort_unstable();
        }
        let own = self.0.len();
        self.0.reserve(action.fields.len());
        for field in &action.fields {
            let is_own = match sorted.is_empty() {
                true => self.0[..own].iter().any(|it| it.name == field.name),
                false => sorted.binary_search(&field.name).is_ok(),
            };
            if !is_own {
                self.0.push(field.clone());
            }
        }
        self
    }

    /// Those that `is_wanted` by their name, as not yet known.
    pub(super) fn named(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<Field<'a>> {
        let wanted = self.0.iter().filter(|field| is_wanted(&field.name));
        wanted.map(|field| Field { known: false, ..field.clone() }).collect()
    }

    /// Reads a struct from the fields that it declares.
    pub(super) fn read<T: Deserialize<'a>>(&mut self) -> Result<T, FieldError> {
        T::deserialize(StructReader(&mut self.0))
    }

    pub(super) fn unknown(&self) -> impl Iterator<Item = &Field<'a>> {
        self.0.iter().filter(|field| !field.known)
    }

    /// Moves fields whose value is not null back to the unknown ones.
    pub(super) fn forget(&mut self, names: &[&str]) {
        for field in &mut self.0 {
            field.known &= field.is_null() || !names.contains(&&*field.name);
        }
    }

    /// The value of a field, whether or not a struct declares it. `None` if it is absent or null.
    pub(super) fn value(&self, name: &str) -> Option<&'a str> {
        let field = self.0.iter().find(|field| field.name == name)?;
        (!field.is_null()).then_some(field.value)
    }

    /// The path of a field in the body; for an absent field, its name.
    pub(super) fn path(&self, name: &str) -> String {
        let field = self.0.iter().find(|field| field.name == name);
        field.map_or_else(|| name.to_owned(), Field::path)
    }

    pub(super) fn error(&self, name: &str, fault: &str) -> FieldError {
        FieldError::new(&self.path(name), fault)
    }

    /// Keeps one field of each name. A value takes precedence over null. A name that has two different values,
    /// at the top and under `data`, is refused.
    fn settled(mut self) -> Result<Self, FieldError> {
        let mut by_name: Vec<usize> = (0..self.0.len()).collect();
        by_name.sort_by(|a, b| self.0[*a].name.cmp(&self.0[*b].name));
        let mut kept = vec![true; self.0.len()];
        for pair in by_name.windows(2) {
            let (a, b) = (&self.0[pair[0]], &self.0[pair[1]]);
            if a.name != b.name {
                continue;
            }
            if a.is_null() {
                kept[pair[0]] = false;
            } else if b.is_null() || same_value(a.value, b.value) {
                kept[pair[1]] = false;
            } else {
                let fault = format!("differs from `{}`; send only one of them", b.path());
                return Err(FieldError::new(&a.path(), &fault));
            }
        }
        let mut kept = kept.into_iter();
        self.0.retain(|_| kept.next() != Some(false));
        Ok(self)
    }
}

fn at<'a>(place: &'a str, members: Vec<Member<'a>>) -> impl Iterator<Item = Field<'a>> {
    members.into_iter().map(move |(name, value)| Field { name, value, place, known: false })
}

/// Offers all fields to a struct, which reads those that it declares.
struct StructReader<'f, 'de>(&'f mut [Field<'de>]);

impl<'de> Deserializer<'de> for StructReader<'_, 'de> {
    type Error = FieldError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_map(Offered { rest: self.0.iter_mut(), current: None })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Offered<'f, 'a> {
    rest: std::slice::IterMut<'f, Field<'a>>,
    current: Option<&'f mut Field<'a>>,
}

impl<'a> MapAccess<'a> for Offered<'_, 'a> {
    type Error = FieldError;

    fn next_key_seed<K: DeserializeSeed<'a>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, FieldError> {
        self.current = self.rest.next();
        let Some(field) = &self.current else { return Ok(None) };
        seed.deserialize((&*field.name).into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, FieldError> {
        let field = self.current.take().ok_or_else(|| FieldError::new("", "has no key"))?;
        let mut wanted = true;
        let value = seed.deserialize(Value { text: field.value, wanted: &mut wanted });
        field.known |= wanted;
        value.map_err(|error| {
            let path = field.path();
            FieldError::with_meaning(&field.name, &path, field.value)
                .unwrap_or_else(|| FieldError::value(&path, field.value, &error))
        })
    }
}
