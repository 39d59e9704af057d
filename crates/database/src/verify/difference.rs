//! Stored values that differ from the computed ones.

use serde_json::{Map, Value};
use sqlx::types::Json;

/// The columns of a row by their names.
pub(super) type Fields = Json<Map<String, Value>>;

/// A column whose stored value is wrong. Both values are in PostgreSQL's JSON form.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Difference {
    /// The column.
    pub field: String,
    /// The stored value.
    pub is: Value,
    /// The value computed from the rows.
    pub should_be: Value,
}

/// The fields of `computed` whose stored value differs. The last digits of a fraction may differ, because an
/// average depends on the order of its sum.
pub(super) fn differences(stored: &Fields, computed: &Fields) -> Vec<Difference> {
    let is = |field: &String| stored.get(field).cloned().unwrap_or_default();
    computed
        .iter()
        .map(|(field, should_be)| Difference {
            field: field.clone(),
            is: is(field),
            should_be: should_be.clone(),
        })
        .filter(|difference| !same(&difference.is, &difference.should_be))
        .collect()
}

fn same(a: &Value, b: &Value) -> bool {
    /// Far above the rounding error of a sum, far below a microsecond in a year.
    const PRECISION: f64 = 1e-12;
    match (a, b) {
        (Value::Number(one), Value::Number(other)) if one.is_f64() || other.is_f64() => {
            let (Some(one), Some(other)) = (one.as_f64(), other.as_f64()) else { return false };
            (one - other).abs() <= PRECISION * one.abs().max(other.abs()).max(1.0)
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Fields {
        match value {
            Value::Object(fields) => Json(fields),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn only_what_is_computed_and_differs_is_a_difference() {
        let stored = object(json!({"count": 3, "average": 0.3, "tokens": null, "computed_at": 1}));
        let computed = object(json!({"count": 4, "average": 0.1 + 0.2, "tokens": 7}));
        let found = differences(&stored, &computed);
        let found: Vec<_> = found.iter().map(|it| (&*it.field, &it.is, &it.should_be)).collect();
        assert_eq!(found, [("count", &json!(3), &json!(4)), ("tokens", &json!(null), &json!(7))]);
    }

    #[test]
    fn a_microsecond_is_a_difference() {
        assert!(!same(&json!(86_400.000_001), &json!(86_400.000_002)));
        assert!(same(&json!(3), &json!(3.0)));
        assert!(!same(&json!(null), &json!(0.0)));
    }
}
