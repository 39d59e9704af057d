//! A validator for the part of JSON Schema that our generator uses. It panics at any other keyword,
//! so that no unchecked keyword makes a document valid.

use serde_json::{Map, Value};

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
        let number = value.as_f64().zip(argument.as_f64());
        let length = value.as_str().map(|text| text.chars().count() as u64).zip(argument.as_u64());
        match keyword {
            "$schema" | "$defs" | "title" | "description" | "default" | "format" => true,
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
            "minimum" => number.is_none_or(|(value, bound)| value >= bound),
            "maximum" => number.is_none_or(|(value, bound)| value <= bound),
            "minLength" => length.is_none_or(|(value, bound)| value >= bound),
            "maxLength" => length.is_none_or(|(value, bound)| value <= bound),
            "pattern" => {
                let pattern = argument.as_str().expect("a pattern");
                value.as_str().is_none_or(|text| match pattern {
                    "^[^\\u0000-\\u001f\\u007f-\\u009f]*$" => !text.contains(char::is_control),
                    date if date.starts_with("^\\d{4}-") => looks_like_a_date(text),
                    other => panic!("the validator does not know the pattern {other}"),
                })
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

/// Matches the pattern of timestamps: date and time, then a fraction, then an offset.
fn looks_like_a_date(text: &str) -> bool {
    let form: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let Some(rest) = form
        .to_uppercase()
        .replace(' ', "T")
        .strip_prefix("0000-00-00T00:00:00")
        .map(str::to_owned)
    else {
        return false;
    };
    let offset = rest.strip_prefix('.').map_or(rest.as_str(), |rest| rest.trim_start_matches('0'));
    matches!(offset, "" | "Z" | "+00:00" | "-00:00")
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
