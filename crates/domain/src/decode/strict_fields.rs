//! The fields of an object by serde_json, which accepts every valid JSON text.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::field::Field;

/// The fields of an object as serde_json reads them, without a check of the limits.
pub(super) fn strict_fields<'a>(
    text: &'a str,
    place: &'a str,
) -> Result<Vec<Field<'a>>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

    struct Members<'a>(&'a str);
    impl<'a> Visitor<'a> for Members<'a> {
        type Value = Vec<Field<'a>>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("one JSON object")
        }
        fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut fields = Vec::new();
            while let Some((Key(name), value)) = map.next_entry::<_, &RawValue>()? {
                fields.push(Field::new(name, value.get(), self.0));
            }
            Ok(fields)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let fields = deserializer.deserialize_map(Members(place))?;
    deserializer.end()?;
    Ok(fields)
}
