//! The fields of a JSON object, flat or nested under `data`, as serde reads structs from.
//!
//! Values stay raw text until a struct asks for them by name, so nothing is parsed that nobody
//! wants, what nobody wants is kept to the letter, and every error knows its field.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::fault::FieldError;

/// One field, where it was found.
#[derive(Debug)]
pub(super) struct Field<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) value: &'a RawValue,
    /// What its path begins with: nothing, or `data.`.
    place: &'a str,
    /// Whether a struct has asked for it.
    known: bool,
}

/// The fields of one object, in the order in which they were sent.
#[derive(Debug)]
pub(super) struct Fields<'a>(Vec<Field<'a>>);

/// The members of an object in order, repetitions included.
pub(super) fn members(text: &str) -> Result<Vec<(Cow<'_, str>, &RawValue)>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(Cow<'de, str>, &'de RawValue)>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("one JSON object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            // Most actions have fewer than 16 fields.
            let mut members = Vec::with_capacity(16);
            while let Some(Key(name)) = map.next_key()? {
                members.push((name, map.next_value()?));
            }
            Ok(members)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let members = deserializer.deserialize_map(Members)?;
    deserializer.end()?;
    Ok(members)
}

impl<'a> Fields<'a> {
    /// The fields of an object that stands at `place` of the body.
    pub(super) fn new(
        members: Vec<(Cow<'a, str>, &'a RawValue)>,
        place: &'a str,
    ) -> Result<Self, FieldError> {
        let mut fields = Self(list(members, place));
        fields.settle_repetitions()?;
        Ok(fields)
    }

    /// The fields of a body: those at its top and those under its `data`.
    pub(super) fn merged(mut top: Vec<(Cow<'a, str>, &'a RawValue)>) -> Result<Self, FieldError> {
        let mut nested = Vec::new();
        if let Some(at) = top.iter().position(|(name, _)| name == "data") {
            let (_, data) = top.remove(at);
            if data.get() != "null" {
                nested = members(data.get())
                    .map_err(|_| FieldError::wrong_type("data", "an object", data))?;
            }
            if top.iter().any(|(name, _)| name == "data") {
                return Err(FieldError::repeated("data"));
            }
        }
        let mut fields = Self(list(top, ""));
        fields.0.extend(list(nested, "data."));
        fields.settle_repetitions()?;
        Ok(fields)
    }

    /// Reads a struct from the fields that it knows by name.
    pub(super) fn read<T: Deserialize<'a>>(&mut self) -> Result<T, FieldError> {
        T::deserialize(StructReader(&mut self.0))
    }

    /// The fields that no struct has asked for.
    pub(super) fn unknown(&self) -> impl Iterator<Item = &Field<'a>> {
        self.0.iter().filter(|field| !field.known)
    }

    /// Counts fields that say something among the unknown ones again.
    pub(super) fn forget(&mut self, names: &[&str]) {
        for field in &mut self.0 {
            field.known &= field.value.get() == "null" || !names.contains(&&*field.name);
        }
    }

    /// Where a field stands in the body, or would.
    pub(super) fn path(&self, name: &str) -> String {
        let field = self.0.iter().find(|field| field.name == name);
        field.map_or_else(|| name.to_owned(), Field::path)
    }

    /// An error about a field.
    pub(super) fn error(&self, name: &str, fault: &str) -> FieldError {
        FieldError::new(&self.path(name), fault)
    }

    /// Keeps one field of each name. Null says nothing, so any value beats it; a name twice in one
    /// object, or with two values, is the sender's mistake.
    fn settle_repetitions(&mut self) -> Result<(), FieldError> {
        let mut by_name: Vec<usize> = (0..self.0.len()).collect();
        by_name.sort_by(|a, b| self.0[*a].name.cmp(&self.0[*b].name));
        let mut superfluous = Vec::new();
        for pair in by_name.windows(2) {
            let (a, b) = (&self.0[pair[0]], &self.0[pair[1]]);
            if a.name != b.name {
                continue;
            }
            if a.place == b.place {
                return Err(FieldError::repeated(&a.path()));
            }
            if a.value.get() == "null" {
                superfluous.push(pair[0]);
            } else if b.value.get() == "null" || same_value(a.value, b.value) {
                superfluous.push(pair[1]);
            } else {
                let fault = format!("has another value than `{}`; send it once", b.path());
                return Err(FieldError::new(&a.path(), &fault));
            }
        }
        superfluous.sort_unstable();
        let mut at = 0;
        self.0.retain(|_| {
            at += 1;
            superfluous.binary_search(&(at - 1)).is_err()
        });
        Ok(())
    }
}

impl Field<'_> {
    /// Where it stands in the body.
    pub(super) fn path(&self) -> String {
        format!("{}{}", self.place, self.name)
    }
}

fn list<'a>(members: Vec<(Cow<'a, str>, &'a RawValue)>, place: &'a str) -> Vec<Field<'a>> {
    let field = |(name, value)| Field { name, value, place, known: false };
    members.into_iter().map(field).collect()
}

fn same_value(a: &RawValue, b: &RawValue) -> bool {
    let value = |raw: &RawValue| serde_json::from_str::<serde_json::Value>(raw.get()).ok();
    a.get() == b.get() || value(a).is_some_and(|a| value(b) == Some(a))
}

/// Hands a struct the fields that it names.
struct StructReader<'f, 'de>(&'f mut [Field<'de>]);

impl<'de> Deserializer<'de> for StructReader<'_, 'de> {
    type Error = FieldError;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        visitor.visit_map(Known { names, rest: self.0.iter_mut(), current: None })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        // Only structs are read from fields; any other type gets them all, under no known name.
        self.deserialize_struct("", &[], visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct Known<'f, 'a> {
    names: &'static [&'static str],
    rest: std::slice::IterMut<'f, Field<'a>>,
    current: Option<&'f Field<'a>>,
}

impl<'a> MapAccess<'a> for Known<'_, 'a> {
    type Error = FieldError;

    fn next_key_seed<K: DeserializeSeed<'a>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, FieldError> {
        let Some(field) = self.rest.find(|field| self.names.contains(&&*field.name)) else {
            return Ok(None);
        };
        field.known = true;
        let field = self.current.insert(field);
        seed.deserialize((&*field.name).into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, FieldError> {
        let field = self.current.take().ok_or_else(|| FieldError::new("", "has no key"))?;
        seed.deserialize(&mut serde_json::Deserializer::from_str(field.value.get()))
            .map_err(|error| FieldError::value(&field.path(), field.value, &error))
    }
}
