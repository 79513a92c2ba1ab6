//! The description of the API: what the routes say of themselves, and what holds for all.

use function_gateway_core::FunctionSpec;
use serde_json::{Value, json};
use utoipa::ToSchema as _;
use utoipa::openapi::OpenApi;

use crate::responses;

/// Schemas of what clients send, in which a field that is not known is an error.
const CLOSED: [&str; 10] = [
    "FunctionSpec",
    "ProcessWorkload",
    "ImageWorkload",
    "CustomWorkload",
    "SecretBinding",
    "Timeouts",
    "Scale",
    "RetryPolicy",
    "RecordPolicy",
    "AsyncPolicy",
];

const DESCRIPTION: &str = "Create, execute and list functions, whichever engine runs them.\n\n\
Errors are problem documents (RFC 9457) with a stable `code`. Every answer to a call of a function says in \
`X-Function-Answered-By` whether the function or the gateway answers. Lists are read part by part: `next` of one is the `cursor` of \
the one after it. Times are RFC 3339. A request that is not as HTTP has it is refused with 400, 414 or 431, wherever it goes.";

/// The document as JSON.
pub(crate) fn document(mut paths: OpenApi) -> String {
    let components = paths.components.get_or_insert_default();
    let (name, schema) = responses::problem_schema();
    components.schemas.insert(name, schema);
    components.responses.extend(responses::problem_responses());
    let mut more = Vec::new();
    FunctionSpec::schemas(&mut more);
    crate::problem::ProblemDocument::schemas(&mut more);
    components.schemas.extend(more);
    let mut document = serde_json::to_value(&paths).unwrap_or_default();
    describe(&mut document);
    close(&mut document);
    function_url(&mut document);
    headers(&mut document);
    without_code(&mut document);
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

/// Descriptions come from the documentation of types, whose examples are in Rust.
fn without_code(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "description" => {
                        let prose = text.split("```").next().unwrap_or_default().trim_end().len();
                        text.truncate(prose);
                    }
                    value => without_code(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(without_code),
        _ => {}
    }
}

fn describe(document: &mut Value) {
    let Some(root) = document.as_object_mut() else { return };
    root.insert("openapi".into(), "3.1.0".into());
    root.insert(
        "info".into(),
        json!({
            "title": "Function Gateway",
            "version": "1",
            "description": DESCRIPTION,
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        }),
    );
    root.insert("servers".into(), json!([{"url": ".", "description": "Where this document is"}]));
    root.insert("security".into(), json!([{"bearer": []}, {"key": []}]));
    if let Some(components) = root.get_mut("components").and_then(Value::as_object_mut) {
        components.insert(
            "securitySchemes".into(),
            json!({
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key (`fgk_..`) or a JSON Web Token"},
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "An API key"},
            }),
        );
    }
}

/// Unknown fields of a specification are kept in the store and refused in a request.
fn close(document: &mut Value) {
    for name in CLOSED {
        if let Some(schema) =
            document.pointer_mut(&format!("/components/schemas/{name}")).and_then(Value::as_object_mut)
        {
            schema.insert("additionalProperties".into(), false.into());
        }
    }
}

/// The headers that every answer has, and those of problems, which no route can say of itself.
fn headers(document: &mut Value) {
    let headers = json!({
        "X-Request-Id": {
            "description": "The id of the request: the client's own, where it has sent a fit one",
            "required": true, "schema": {"type": "string"},
        },
        "X-Function-Answered-By": {
            "description": "Who answers", "required": true, "schema": {"type": "string", "enum": ["gateway"]},
        },
        "WWW-Authenticate": {"description": "What a client is to send", "schema": {"type": "string"}},
        "Retry-After": {
            "description": "In how many seconds to try again",
            "required": true, "schema": {"type": "integer", "minimum": 1},
        },
    });
    if let Some(named) = document.pointer_mut("/components/responses").and_then(Value::as_object_mut) {
        // A name ends in its status.
        named.iter_mut().for_each(|(name, response)| set_headers(name, response));
    }
    if let Some(components) = document.get_mut("components").and_then(Value::as_object_mut) {
        components.insert("headers".into(), headers);
    }
    let items = document.get_mut("paths").and_then(Value::as_object_mut).into_iter().flatten();
    let operations = items.filter_map(|(_, item)| item.as_object_mut()).flatten();
    let responses = operations.filter_map(|(_, operation)| operation.get_mut("responses")?.as_object_mut()).flatten();
    responses.for_each(|(status, response)| set_headers(status, response));
}

fn set_headers(status: &str, response: &mut Value) {
    let is_problem = response.pointer("/content/application~1problem+json").is_some();
    let Some(response) = response.as_object_mut().filter(|response| !response.contains_key("$ref")) else { return };
    let wanted = [
        ("X-Request-Id", true),
        ("X-Function-Answered-By", is_problem),
        ("WWW-Authenticate", is_problem && status.ends_with("401")),
        ("Retry-After", is_problem && ["429", "503"].iter().any(|for_now| status.ends_with(for_now))),
    ];
    let own = response.entry("headers").or_insert_with(|| json!({}));
    let Some(own) = own.as_object_mut() else { return };
    for (name, _) in wanted.into_iter().filter(|(_, is_wanted)| *is_wanted) {
        own.entry(name).or_insert_with(|| json!({"$ref": format!("#/components/headers/{name}")}));
    }
}

/// The function's own URL has every method, at once and for later, which no route can say of itself.
fn function_url(document: &mut Value) {
    for (route, path, id, later) in
        [("invocations", "http", "function_url", ""), ("submit", "submit/http", "submit_function_url", ", for later")]
    {
        let pointer = format!("/paths/~1v1~1functions~1{{name}}~1{route}/post");
        let operation = document.pointer(&pointer).cloned().unwrap_or_default();
        let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) else { return };
        for (below, id, at) in [
            ("/{path}", id.to_owned(), ""),
            ("/", format!("{id}_root"), " at its root"),
            ("", format!("{id}_bare"), " without a path"),
        ] {
            let summary =
                format!("The function's own URL{at}{later}: method, path, query, headers and body pass as they came.");
            let item = every_method(&operation, (&id, below), &summary, later.is_empty());
            paths.insert(format!("/v1/functions/{{name}}/{path}{below}"), item.into());
        }
    }
}

/// What is the function's own at its URL, and not the gateway's.
const FUNCTIONS_OWN: [&str; 2] = ["Prefer", "Idempotency-Key"];

fn every_method(
    operation: &Value,
    (id, below): (&str, &str),
    summary: &str,
    is_at_once: bool,
) -> serde_json::Map<String, Value> {
    let mut item = serde_json::Map::new();
    for method in ["get", "put", "post", "delete", "options", "head", "patch"] {
        let mut operation = operation.clone();
        let Some(fields) = operation.as_object_mut() else { break };
        fields.insert("operationId".into(), format!("{id}_{method}").into());
        fields.insert("summary".into(), summary.into());
        fields.remove("description");
        if !matches!(method, "put" | "post" | "patch") {
            fields.remove("requestBody");
        }
        if is_at_once && let Some(responses) = fields.get_mut("responses").and_then(Value::as_object_mut) {
            responses.remove("202");
        }
        if let Some(parameters) = fields.get_mut("parameters").and_then(Value::as_array_mut) {
            let is_own = |name: &Value| FUNCTIONS_OWN.iter().any(|own| name == own);
            parameters.retain(|parameter| !is_at_once || parameter.get("name").is_none_or(|name| !is_own(name)));
            if below == "/{path}" {
                parameters.insert(
                    1,
                    json!({"name": "path", "in": "path", "required": true, "schema": {"type": "string"},
                           "description": "The path below the function. It may hold `/`."}),
                );
            }
        }
        item.insert(method.into(), operation);
    }
    item
}
