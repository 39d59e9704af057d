//! A validator for the part of JSON Schema (2020-12) that our generator uses. It panics at any other keyword, so that
//! no unchecked keyword makes a document valid. Complete validators would add some 25 crates to every build.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use regex::Regex;
use serde_json::{Map, Number, Value};

/// The faults of a value with their paths; empty if it is valid.
pub(crate) fn faults(document: &Value, value: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    Validator { document, faults: &mut faults }.check(document, value, "");
    faults
}

struct Validator<'a> {
    document: &'a Value,
    faults: &'a mut Vec<String>,
}

impl Validator<'_> {
    fn check(&mut self, schema: &Value, value: &Value, path: &str) {
        let Value::Object(keywords) = schema else {
            assert_eq!(schema, &Value::Bool(true), "a schema at {path}");
            return;
        };
        if let Some(condition) = keywords.get("if")
            && self.is_valid(condition, value)
        {
            self.check(&keywords["then"], value, path);
        }
        for (keyword, argument) in keywords {
            if !self.holds(keyword, argument, value, path) {
                self.faults.push(format!("{path}: {keyword} {argument}"));
            }
        }
    }

    fn is_valid(&self, schema: &Value, value: &Value) -> bool {
        let mut faults = Vec::new();
        Validator { document: self.document, faults: &mut faults }.check(schema, value, "");
        faults.is_empty()
    }

    fn holds(&mut self, keyword: &str, argument: &Value, value: &Value, path: &str) -> bool {
        let order = value.as_number().zip(argument.as_number()).map(|(a, b)| order(a, b));
        let length = value.as_str().map(|text| text.chars().count() as u64).zip(argument.as_u64());
        match keyword {
            "$schema" | "$defs" | "title" | "description" | "default" | "format" => true,
            // See `check`.
            "if" | "then" => true,
            "not" => !self.is_valid(argument, value),
            "$ref" => {
                let pointer = argument.as_str().and_then(|r| r.strip_prefix('#')).expect("a ref");
                let target = self.document.pointer(pointer).expect(pointer);
                self.check(&target.clone(), value, path);
                true
            }
            "type" => match argument {
                Value::String(name) => has_type(value, name),
                Value::Array(names) => {
                    names.iter().filter_map(Value::as_str).any(|name| has_type(value, name))
                }
                _ => panic!("type {argument}"),
            },
            "const" => value == argument,
            "enum" => list(argument).contains(value),
            "minimum" => order != Some(Ordering::Less),
            "maximum" => order != Some(Ordering::Greater),
            "minLength" => length.is_none_or(|(value, bound)| value >= bound),
            "maxLength" => length.is_none_or(|(value, bound)| value <= bound),
            "pattern" => {
                let pattern = argument.as_str().expect("a pattern");
                value.as_str().is_none_or(|text| matches(pattern, text))
            }
            "minItems" => {
                let least = argument.as_u64().expect("a number");
                value.as_array().is_none_or(|array| array.len() as u64 >= least)
            }
            "maxItems" => {
                let most = argument.as_u64().expect("a number");
                value.as_array().is_none_or(|array| array.len() as u64 <= most)
            }
            "required" => list(argument)
                .iter()
                .filter_map(Value::as_str)
                .all(|name| value.as_object().is_none_or(|object| object.contains_key(name))),
            "properties" => {
                for (name, schema) in object(argument) {
                    if let Some(value) = value.get(name) {
                        self.check(schema, value, &format!("{path}.{name}"));
                    }
                }
                true
            }
            "additionalProperties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    self.check(argument, value, &format!("{path}.{name}"));
                }
                true
            }
            "items" => {
                for value in value.as_array().into_iter().flatten() {
                    self.check(argument, value, &format!("{path}[]"));
                }
                true
            }
            "allOf" => list(argument).iter().all(|schema| self.is_valid(schema, value)),
            "anyOf" => list(argument).iter().any(|schema| self.is_valid(schema, value)),
            "oneOf" => {
                list(argument).iter().filter(|schema| self.is_valid(schema, value)).count() == 1
            }
            _ => panic!("the validator does not know the keyword {keyword}"),
        }
    }
}

/// Whether a text matches a pattern. The patterns mean the same in ECMAScript, which JSON Schema refers to, and in
/// this crate: they have no classes such as `\d`.
fn matches(pattern: &str, text: &str) -> bool {
    static PATTERNS: LazyLock<Mutex<HashMap<String, Regex>>> = LazyLock::new(Mutex::default);
    assert!(!pattern.contains(r"\d") && !pattern.contains(r"\w"), "{pattern}");
    let mut patterns = PATTERNS.lock().expect("no test panicked here");
    let regex = patterns
        .entry(pattern.to_owned())
        .or_insert_with(|| Regex::new(pattern).expect("a regular expression"));
    regex.is_match(text)
}

/// The order of two numbers: exact if both are integers.
fn order(a: &Number, b: &Number) -> Ordering {
    let integers = a.as_i128().zip(b.as_i128());
    integers.map_or_else(
        || a.as_f64().partial_cmp(&b.as_f64()).expect("JSON has no NaN"),
        |(a, b)| a.cmp(&b),
    )
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => panic!("type {name}"),
    }
}

fn list(argument: &Value) -> &[Value] {
    argument.as_array().expect("an array")
}

fn object(argument: &Value) -> &Map<String, Value> {
    argument.as_object().expect("an object")
}
