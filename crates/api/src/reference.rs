//! The OpenAPI document as a page for people: one HTML file that needs no script and nothing from elsewhere, so that it can
//! also be saved and read offline.
//!
//! Texts come from the document; every one of them is escaped.

mod html;
mod schemas;

use std::sync::LazyLock;

use axum::http::Method;
use serde_json::{Map, Value};

use crate::endpoint::{Endpoint, Publishes};
use crate::endpoints::ENDPOINTS;
use crate::openapi;
use crate::reference::html::{escaped, put, text};
use crate::reference::schemas::{json, kind, objects};

/// The page.
pub(crate) static PAGE: LazyLock<String> = LazyLock::new(|| page(&openapi::VALUE));

/// Its style, the only one that its Content-Security-Policy allows.
pub(crate) const STYLE: &str = include_str!("reference.css");

fn page(document: &Value) -> String {
    let info = &document["info"];
    let (title, version) = (text(&info["title"]), text(&info["version"]));
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title} API</title><style>{STYLE}</style></head><body>\n\
         <header><h1>{title} API <small>{version}</small></h1><p>{}.</p><p>{}</p>\
         <p>The examples need two variables: the address of the API, and <a href=\"#key\">a key</a>.</p>\
         <pre>URL=https://api.example.com\nKEY=vbt_…</pre>\
         <p>For programs: <a href=\"/openapi.json\">OpenAPI 3.1</a>, <a href=\"/llms.txt\">llms.txt</a></p></header>\n<nav><ul>",
        text(&info["summary"]),
        text(&info["description"]),
    );
    for endpoint in &ENDPOINTS {
        put(
            &mut html,
            format_args!(
                "<li><a href=\"#{}\">{}</a> {}</li>",
                endpoint.name,
                method_and_path(endpoint),
                escaped(endpoint.summary)
            ),
        );
    }
    html.push_str("</ul></nav>\n<main>");
    for endpoint in &ENDPOINTS {
        let method = endpoint.method.as_str().to_lowercase();
        section(&mut html, document, endpoint, &document["paths"][endpoint.path][method]);
    }
    put(
        &mut html,
        format_args!(
            "<section id=\"key\"><h2>Keys</h2><p>{}.</p>\
             <p>It is sent with each request: <code>Authorization: Bearer vbt_…</code></p></section></main></body></html>\n",
            text(&document["components"]["securitySchemes"]["key"]["description"])
        ),
    );
    html
}

fn section(html: &mut String, document: &Value, endpoint: &Endpoint, operation: &Value) {
    put(
        html,
        format_args!(
            "\n<section id=\"{}\"><h2>{}</h2><p><strong>{}.</strong> {}</p><p>Scope of the key: <code>{}</code></p>",
            endpoint.name,
            method_and_path(endpoint),
            escaped(endpoint.summary),
            escaped(endpoint.about),
            endpoint.scope.as_str()
        ),
    );
    let parameters = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
    if !parameters.is_empty() {
        html.push_str("<h3>Parameters</h3><dl>");
        for parameter in parameters {
            let place = if parameter["required"] == true { ", required" } else { "" };
            let schema = &parameter["schema"];
            put(
                html,
                format_args!(
                    "<dt><code>{}</code> <small>{}{place}</small></dt><dd>{}<br><small>{}</small></dd>",
                    text(&parameter["name"]),
                    text(&parameter["in"]),
                    text(&parameter["description"]),
                    kind(document, schema)
                ),
            );
        }
        html.push_str("</dl>");
    }
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    if !body.is_null() {
        html.push_str("<h3>Body</h3>");
        json(html, document, body);
    }
    put(
        html,
        format_args!("<h3>Example</h3><pre>{}</pre>", escaped(&example(document, endpoint, body))),
    );
    html.push_str("<h3>Answers</h3>");
    answers(html, document, &operation["responses"]);
    html.push_str("</section>");
}

/// Those that succeed with their bodies, then the problems.
fn answers(html: &mut String, document: &Value, responses: &Value) {
    let all = || responses.as_object().into_iter().flatten();
    let is_problem = |status: &str| status >= "400";
    html.push_str("<dl>");
    for (status, answer) in all().filter(|(status, _)| !is_problem(status)) {
        put(html, format_args!("<dt>{status}</dt><dd>{}", text(&answer["description"])));
        let schema = &answer["content"]["application/json"]["schema"];
        if !schema.is_null() {
            json(html, document, schema);
        }
        html.push_str("</dd>");
    }
    html.push_str("</dl><details><summary>Problems</summary><dl>");
    for (status, answer) in all().filter(|(status, _)| is_problem(status)) {
        put(html, format_args!("<dt>{status}</dt><dd>{}</dd>", text(&answer["description"])));
    }
    html.push_str("</dl>");
    let problem = all().find_map(|(_, answer)| {
        answer["content"]["application/problem+json"]["schema"].as_object()
    });
    if let Some(problem) = problem {
        json(html, document, &Value::Object(problem.clone()));
    }
    html.push_str("</details>");
}

/// A call with curl. What is in capitals is to be replaced.
fn example(document: &Value, endpoint: &Endpoint, body: &Value) -> String {
    let in_path = |part: (usize, &str)| match part.0 % 2 {
        0 => part.1.to_owned(),
        _ => part.1.to_uppercase(),
    };
    let path: String = endpoint.path.split(['{', '}']).enumerate().map(in_path).collect();
    let mut call = format!("curl -H \"Authorization: Bearer $KEY\" \"$URL{path}\"");
    if body.is_null() {
        if endpoint.method != Method::GET {
            put(&mut call, format_args!(" -X {}", endpoint.method));
        }
    } else {
        let objects = objects(document, body);
        let sent = Value::Object(objects.first().map(|it| sent(it.schema)).unwrap_or_default());
        let key = match endpoint.publishes {
            Publishes::Yes => " -H 'Idempotency-Key: ID'",
            Publishes::No => "",
        };
        put(
            &mut call,
            format_args!(" \\\n     -H 'Content-Type: application/json'{key} \\\n     -d '{sent}'"),
        );
    }
    call
}

/// What an object must have.
fn sent(schema: &Value) -> Map<String, Value> {
    let names = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let value = |name: &str| {
        let example = schema["properties"][name]["examples"].get(0).cloned();
        example.unwrap_or_else(|| Value::from(name.to_uppercase()))
    };
    names.map(|name| (name.to_owned(), value(name))).collect()
}

fn method_and_path(endpoint: &Endpoint) -> String {
    format!("<code><b>{}</b> {}</code>", endpoint.method, escaped(endpoint.path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Kind;

    /// Elements without an end tag.
    const WITHOUT_END: [&str; 3] = ["!doctype", "meta", "br"];

    #[test]
    fn every_element_is_closed() {
        let mut open: Vec<&str> = Vec::new();
        let (head, rest) = PAGE.split_once("<style>").unwrap();
        let (style, body) = rest.split_once("</style>").unwrap();
        assert_eq!(style, STYLE);
        for tag in format!("{head}{body}").leak().split('<').skip(1) {
            let (tag, _) = tag.split_once('>').unwrap();
            let name = tag.split(' ').next().unwrap();
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name), "</{tag}>"),
                None if WITHOUT_END.contains(&name) => {}
                None => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn nothing_is_loaded_and_every_link_leads_somewhere() {
        for loading in ["<script", "src=", "<link", "@import", "url(", "style="] {
            assert!(!PAGE.contains(loading), "{loading}");
        }
        let links = PAGE.split("href=\"").skip(1).map(|it| it.split('"').next().unwrap());
        for link in links {
            let is_there = match link.strip_prefix('#') {
                Some(id) => PAGE.contains(&format!("id=\"{id}\"")),
                None => ["/openapi.json", "/llms.txt"].contains(&link),
            };
            assert!(is_there, "{link}");
        }
    }

    #[test]
    fn the_page_has_every_parameter_with_its_limits_every_problem_and_every_field() {
        for endpoint in &ENDPOINTS {
            let (_, section) =
                PAGE.split_once(&format!("<section id=\"{}\"", endpoint.name)).unwrap();
            let (section, _) = section.split_once("</section>").unwrap();
            for parameter in endpoint.parameters {
                assert!(section.contains(&format!("<dt><code>{}</code>", parameter.name())));
                assert!(section.contains(&escaped(parameter.about())), "{}", parameter.about());
            }
            for kind in Kind::ALL {
                let (status, name, _) = kind.parts();
                let is_there = section.contains(&format!("urn:verbatim:problem:{name}"));
                assert_eq!(is_there, openapi::may_answer(endpoint, kind), "{name}");
                let status = format!("<dt>{}</dt>", status.as_u16());
                assert!(!is_there || section.contains(&status), "{status}");
            }
            assert!(section.contains("<pre>curl "), "{}", endpoint.name);
            // With a body curl sends POST by itself.
            let is_post = section.contains(" -X POST") || section.contains(" -d '");
            assert_eq!(is_post, endpoint.method == Method::POST, "{}", endpoint.name);
        }
        assert!(PAGE.contains("integer, 1 to 200, default <code>50</code>"));
        assert!(PAGE.contains("string, 1 to 512 characters"));
        let schemas = openapi::VALUE["components"]["schemas"].as_object().unwrap();
        for (name, schema) in schemas {
            for field in schema["properties"].as_object().into_iter().flatten().map(|it| it.0) {
                assert!(PAGE.contains(&format!("<dt><code>{field}</code>")), "{name}.{field}");
            }
        }
    }
}
