//! Values with bounds. Decoding and the JSON Schema use the same bounds.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Expected, Unexpected};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::json::{Json, integer, is_empty_array};

/// An integer from `MIN` to `MAX`, both included, however it is written: `4.0` is 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Integer<const MIN: i64, const MAX: i64>(i64);

/// A finite number that is not negative.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Amount(f64);

/// A JSON object, stored byte for byte. An empty array counts as an empty object: PHP cannot tell them apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonObject(Json);

/// A JSON array, stored byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonArray(Json);

/// A value of the type `T`, or any other value, which counts as a field that the contract does not define. For fields
/// that were added within version 1 of the contract: a sender may have had one of that name before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fitting<T>(Option<T>);

impl<T> Fitting<T> {
    /// The value, if it has the type.
    #[must_use]
    pub fn get(self) -> Option<T> {
        self.0
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Fitting<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(T::deserialize(deserializer).ok()))
    }
}

impl<T: JsonSchema> JsonSchema for Fitting<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Fitting_{}", T::schema_name()).into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [generator.subschema_for::<T>(), true] })
    }
}

impl<const MIN: i64, const MAX: i64> Integer<MIN, MAX> {
    fn new(number: i64) -> Option<Self> {
        (MIN..=MAX).contains(&number).then_some(Self(number))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> i64 {
        self.0
    }
}

impl Amount {
    /// The number.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

impl<const MIN: i64, const MAX: i64> From<Integer<MIN, MAX>> for u8 {
    /// A number outside of the target's range becomes the nearest one within it.
    fn from(integer: Integer<MIN, MAX>) -> Self {
        Self::try_from(integer.0.max(0)).unwrap_or(Self::MAX)
    }
}

impl<'de, const MIN: i64, const MAX: i64> Deserialize<'de> for Integer<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Range<const MIN: i64, const MAX: i64>;
        impl<const MIN: i64, const MAX: i64> Expected for Range<MIN, MAX> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an integer from {MIN} to {MAX}")
            }
        }
        // From its text, because 4.0 is 4 as well, and a double would change the last digits of a large number.
        let text = <&RawValue>::deserialize(deserializer)?.get();
        integer(text)
            .and_then(Self::new)
            .ok_or_else(|| de::Error::invalid_value(Unexpected::Other("JSON"), &Range::<MIN, MAX>))
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        if number.is_finite() && number >= 0.0 {
            Ok(Self(number))
        } else {
            Err(de::Error::invalid_value(Unexpected::Float(number), &"a number of at least 0"))
        }
    }
}

/// Reads a string that is not empty.
pub(crate) fn non_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Err(de::Error::custom("must not be empty")) } else { Ok(text) }
}

/// Implements reading of JSON that starts with `$first`. `$empty` replaces what is written for an empty one.
macro_rules! json_text {
    ($name:ident, $first:literal, $empty:expr, $expected:literal, $type:literal) => {
        impl $name {
            /// The text, as it was sent.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// The JSON, as it was sent.
            #[must_use]
            pub fn into_json(self) -> Json {
                self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let json = Json::deserialize(deserializer)?;
                let empty: Option<&str> = $empty;
                match empty.filter(|_| is_empty_array(json.as_str())) {
                    Some(empty) => Json::parse(empty.to_owned()).map(Self).map_err(de::Error::custom),
                    None if json.as_str().starts_with($first) => Ok(Self(json)),
                    None => Err(de::Error::invalid_type(Unexpected::Other("JSON"), &$expected)),
                }
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": $type })
            }
        }
    };
}
json_text!(JsonObject, '{', Some("{}"), "an object", "object");
json_text!(JsonArray, '[', None, "an array", "array");

impl<const MIN: i64, const MAX: i64> JsonSchema for Integer<MIN, MAX> {
    fn schema_name() -> Cow<'static, str> {
        format!("Integer_{MIN}_to_{MAX}").into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

impl JsonSchema for Amount {
    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "minimum": 0, "maximum": f64::MAX })
    }
}
