//! The calls in `tool_calls`, by their ids: a tool's result names the call that it answers.

use crate::json::{Json, array_elements, members, string};

/// The ids of the calls.
#[must_use]
pub fn call_ids(tool_calls: &Json) -> Vec<String> {
    let calls = array_elements(tool_calls.as_str()).unwrap_or_default();
    calls.into_iter().filter_map(call_id).collect()
}

/// The calls without those of this id, each as it was sent. `None` if no call is left.
#[must_use]
pub fn without_call(tool_calls: &Json, id: &str) -> Option<Json> {
    let calls = array_elements(tool_calls.as_str()).unwrap_or_default();
    let rest: Vec<&str> =
        calls.into_iter().filter(|call| call_id(call).as_deref() != Some(id)).collect();
    if rest.is_empty() { None } else { Json::parse(format!("[{}]", rest.join(","))).ok() }
}

fn call_id(call: &str) -> Option<String> {
    let members = members(call).ok()?;
    let (_, id) = members.into_iter().find(|(name, _)| name == "id")?;
    string(id).map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_taken_out_and_the_others_stay_byte_for_byte() {
        let calls = Json::parse(r#"[ {"id":"a", "n": 1.0}, 7, {"id":"b"} ,{"id":"a"}]"#.to_owned());
        let calls = calls.unwrap();
        assert_eq!(call_ids(&calls), ["a", "b", "a"]);
        assert_eq!(without_call(&calls, "a").unwrap().as_str(), r#"[7,{"id":"b"}]"#);
        assert_eq!(
            without_call(&calls, "b").unwrap().as_str(),
            r#"[{"id":"a", "n": 1.0},7,{"id":"a"}]"#
        );
        let one = Json::parse(r#"[{"id":"a"}]"#.to_owned()).unwrap();
        assert_eq!(without_call(&one, "a"), None);
        assert_eq!(call_ids(&Json::parse("{}".to_owned()).unwrap()), [""; 0]);
    }
}
