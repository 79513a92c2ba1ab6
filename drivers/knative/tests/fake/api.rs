//! The API server: objects, server-side apply, lists by pages, watches, logs, and how it refuses.

use std::collections::BTreeSet;
use std::io;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Request, header};
use axum::response::Response;
use futures_util::{StreamExt as _, stream};
use serde_json::{Map, Value, json};

use super::server::{At, cut, json_answer, plain, see};
use super::{Change, Key, PODS, REVISIONS, SECRETS, SERVICES, Shared, State};

/// What was asked for, taken apart.
struct Asked {
    verb: &'static str,
    resource: &'static str,
    /// `None` for all.
    namespace: Option<String>,
    name: Option<String>,
    log: bool,
    query: Vec<(String, String)>,
    body: Value,
}

impl Asked {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn key(&self) -> Key {
        (self.resource, self.namespace.clone().unwrap_or_default(), self.name.clone().unwrap_or_default())
    }

    fn group(&self) -> &'static str {
        if matches!(self.resource, SERVICES | REVISIONS) { "serving.knative.dev" } else { "" }
    }

    fn selects(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let selector = self.parameter("labelSelector").unwrap_or_default();
        selector.split(',').filter(|part| !part.is_empty()).all(|part| match part.split_once('=') {
            Some((key, value)) => labels[key] == value,
            None => !labels[part].is_null(),
        })
    }
}

fn status(code: u16, reason: &str, message: impl Into<String>, details: Value) -> Response {
    let kind = if code < 300 { "Success" } else { "Failure" };
    let document = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": kind,
        "message": message.into(), "reason": reason, "details": details, "code": code,
    });
    json_answer(code, &document)
}

fn not_found(asked: &Asked) -> Response {
    let name = asked.name.clone().unwrap_or_default();
    let message = format!("{}.{} \"{name}\" not found", asked.resource, asked.group());
    status(404, "NotFound", message, json!({"name": name, "group": asked.group(), "kind": asked.resource}))
}

pub(super) async fn answer(shared: &Shared, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let request = Request::from_parts(head, Body::empty());
    see(shared, At::Api, &request, body.clone());
    let path = request.uri().path().to_owned();
    {
        let state = shared.state();
        let bearer = request.headers().get(header::AUTHORIZATION);
        let token = state.options.token.as_ref().map(|token| format!("Bearer {token}"));
        if token.is_some_and(|token| bearer.is_none_or(|bearer| *bearer != token)) {
            return status(401, "Unauthorized", "Unauthorized", json!({}));
        }
        match path.as_str() {
            "/readyz" => return plain(200, "ok"),
            "/version" => return json_answer(200, &json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2"})),
            _ if path.starts_with("/apis/serving.knative.dev/") && !state.options.installed => {
                return plain(404, "404 page not found\n");
            }
            "/apis/serving.knative.dev/v1" => {
                return json_answer(200, &json!({"kind": "APIResourceList", "groupVersion": "serving.knative.dev/v1"}));
            }
            _ => {}
        }
    }
    let Some(asked) = read(&request, &path, &body) else { return plain(404, "404 page not found\n") };
    {
        let state = shared.state();
        let verb = if asked.log { "get" } else { asked.verb };
        let resource = if asked.log { "pods/log" } else { asked.resource };
        if state.options.forbidden.contains(&(verb, resource)) {
            let (group, namespace) = (asked.group(), asked.namespace.as_deref().unwrap_or_default());
            let message = format!(
                "{resource}.{group} is forbidden: User \"lab-nobody\" cannot {verb} resource \"{resource}\" in API group \"{group}\" in the namespace \"{namespace}\""
            );
            return status(403, "Forbidden", message, json!({"group": group, "kind": resource}));
        }
    }
    match asked.verb {
        "watch" => watch(shared, asked),
        "get" if asked.log => logs(shared, &asked),
        "get" => match shared.state().objects.get(&asked.key()) {
            Some(object) => json_answer(200, object),
            None => not_found(&asked),
        },
        "list" => shared.state().list(&asked),
        "patch" => shared.state().apply(&asked),
        _ => shared.state().remove(&asked),
    }
}

fn read(request: &Request<Body>, path: &str, body: &Bytes) -> Option<Asked> {
    let rest = path.strip_prefix("/apis/serving.knative.dev/v1/").or(path.strip_prefix("/api/v1/"))?;
    let parts: Vec<_> = rest.split('/').collect();
    let (namespace, parts) = match parts.as_slice() {
        ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest),
        rest => (None, rest),
    };
    let resource = [SERVICES, REVISIONS, SECRETS, PODS].into_iter().find(|known| parts.first() == Some(known))?;
    let name = parts.get(1).map(|name| (*name).to_owned());
    let query = request.uri().query().unwrap_or_default();
    let query: Vec<_> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), decoded(value)))
        .collect();
    let watch = query.iter().any(|(key, _)| key == "watch");
    let verb = match (request.method().as_str(), &name) {
        ("GET", Some(_)) => "get",
        ("GET", None) if watch => "watch",
        ("GET", None) => "list",
        ("PATCH", Some(_)) => "patch",
        ("DELETE", Some(_)) => "delete",
        _ => return None,
    };
    let body = serde_json::from_slice(body).unwrap_or_default();
    Some(Asked { verb, resource, namespace, name, log: parts.get(2) == Some(&"log"), query, body })
}

fn decoded(text: &str) -> String {
    let pair = format!("x={text}");
    let url = url::Url::parse(&format!("http://x/?{pair}")).unwrap();
    url.query_pairs().next().map(|(_, value)| value.into_owned()).unwrap_or_default()
}

/// What may stand in a container and around it: anything else is refused, as it was asked to be.
const KNOWN: [&[&str]; 3] = [
    &["template", "traffic"],
    &[
        "containers",
        "timeoutSeconds",
        "responseStartTimeoutSeconds",
        "idleTimeoutSeconds",
        "containerConcurrency",
        "serviceAccountName",
        "imagePullSecrets",
        "enableServiceLinks",
    ],
    &[
        "name",
        "image",
        "command",
        "args",
        "env",
        "resources",
        "ports",
        "imagePullPolicy",
        "readinessProbe",
        "livenessProbe",
        "startupProbe",
    ],
];

impl State {
    fn list(&self, asked: &Asked) -> Response {
        let in_scope =
            |key: &Key| key.0 == asked.resource && asked.namespace.as_ref().is_none_or(|name| *name == key.1);
        let mut found: Vec<_> =
            self.objects.iter().filter(|(key, object)| in_scope(key) && asked.selects(object)).collect();
        let mut version = self.version;
        if let Some(token) = asked.parameter("continue") {
            let Some((of, after)) = token.split_once(':') else {
                return status(400, "BadRequest", "invalid continue token", json!({}));
            };
            version = of.parse().unwrap();
            if version < self.forgotten {
                return status(410, "Expired", "The provided continue parameter is too old", json!({}));
            }
            found.retain(|(key, _)| key.2.as_str() > after);
        }
        let limit = asked.parameter("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        let more = found.len() > limit;
        found.truncate(limit);
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if let Some((key, _)) = found.last().filter(|_| more) {
            metadata["continue"] = json!(format!("{version}:{}", key.2));
        }
        let items: Vec<_> = found.into_iter().map(|(_, object)| object).collect();
        json_answer(200, &json!({"kind": "List", "metadata": metadata, "items": items}))
    }

    fn remove(&mut self, asked: &Asked) -> Response {
        let key = asked.key();
        let Some(object) = self.objects.get(&key).cloned() else { return not_found(asked) };
        let wanted = &asked.body["preconditions"];
        for field in ["uid", "resourceVersion"] {
            if !wanted[field].is_null() && wanted[field] != object["metadata"][field] {
                let message = format!("Operation cannot be fulfilled on {}: the precondition does not match", key.2);
                return status(409, "Conflict", message, json!({"name": key.2, "kind": key.0}));
            }
        }
        if object["metadata"]["finalizers"].as_array().is_some_and(|held| !held.is_empty()) {
            let mut object = object;
            object["metadata"]["deletionTimestamp"] = json!("2026-11-24T01:46:16Z");
            self.write(key.clone(), object);
            return json_answer(200, &self.objects[&key]);
        }
        self.delete(&key);
        status(200, "", "", json!({"name": key.2, "kind": key.0, "uid": object["metadata"]["uid"]}))
    }

    /// Server-side apply.
    fn apply(&mut self, asked: &Asked) -> Response {
        let key = asked.key();
        let manager = asked.parameter("fieldManager").unwrap_or_default();
        if manager.is_empty() {
            return status(
                422,
                "Invalid",
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value",
                json!({}),
            );
        }
        if !self.namespaces.contains(&key.1) {
            let details = json!({"name": key.1, "kind": "namespaces"});
            return status(404, "NotFound", format!("namespaces \"{}\" not found", key.1), details);
        }
        let before = self.objects.get(&key).cloned();
        let version = asked.body["metadata"]["resourceVersion"].clone();
        if !version.is_null() && before.as_ref().is_none_or(|before| before["metadata"]["resourceVersion"] != version) {
            let message = format!(
                "Operation cannot be fulfilled on services.serving.knative.dev \"{}\": the object has been modified; please apply your changes to the latest version and try again",
                key.2
            );
            return status(409, "Conflict", message, json!({"name": key.2, "kind": key.0}));
        }
        if let Some(before) = before.as_ref().filter(|before| before["metadata"]["deletionTimestamp"].is_string()) {
            let name = &before["metadata"]["name"];
            return status(409, "AlreadyExists", format!("object is being deleted: {name} already exists"), json!({}));
        }
        if key.0 == SECRETS {
            self.write(key.clone(), asked.body.clone());
            return json_answer(if before.is_some() { 200 } else { 201 }, &self.objects[&key]);
        }
        match self.merged(&key, asked, before.as_ref()) {
            Err(refused) => refused,
            Ok(object) => {
                if before.as_ref() != Some(&object) {
                    self.write(key.clone(), object);
                }
                let mut answer = json_answer(if before.is_some() { 200 } else { 201 }, &self.objects[&key]);
                let warning = HeaderValue::from_static("299 - \"Kubernetes default value is insecure\"");
                answer.headers_mut().insert(header::WARNING, warning);
                answer
            }
        }
    }

    /// A Service as it is once it was applied.
    fn merged(&mut self, key: &Key, asked: &Asked, before: Option<&Value>) -> Result<Value, Response> {
        let wanted = &asked.body;
        let denied = |why: &str| {
            let message =
                format!("admission webhook \"validation.webhook.serving.knative.dev\" denied the request: {why}");
            status(400, "BadRequest", message, json!({}))
        };
        let pod = &wanted["spec"]["template"]["spec"];
        for (object, known) in [&wanted["spec"], pod, &pod["containers"][0]].into_iter().zip(KNOWN) {
            let unknown =
                object.as_object().and_then(|object| object.keys().find(|name| !known.contains(&name.as_str())));
            if let Some(name) = unknown {
                let message = format!(
                    "Service in version \"v1\" cannot be handled as a Service: strict decoding error: unknown field \"{name}\""
                );
                return Err(status(400, "BadRequest", message, json!({})));
            }
        }
        if let Some(why) = self.options.refusal {
            return Err(denied(why));
        }
        if self.options.quota_full && before.is_none() {
            let message = "services.serving.knative.dev is forbidden: exceeded quota: functions, requested: 1, used: 5, limited: 5";
            return Err(status(403, "Forbidden", message, json!({"group": "serving.knative.dev", "kind": "services"})));
        }
        let mut template = wanted["spec"]["template"].clone();
        for (name, default) in
            [("containerConcurrency", json!(0)), ("timeoutSeconds", json!(300)), ("enableServiceLinks", json!(false))]
        {
            template["spec"].as_object_mut().unwrap().entry(name).or_insert(default);
        }
        let container = template["spec"]["containers"][0].as_object_mut().unwrap();
        container.entry("resources").or_insert(json!({}));
        container.entry("readinessProbe").or_insert(json!({"successThreshold": 1, "tcpSocket": {"port": 0}}));
        let name = template["metadata"]["name"].as_str().unwrap_or_default();
        if !name.starts_with(&format!("{}-", key.2)) {
            return Err(denied(&format!(
                "validation failed: invalid value: \"{name}\" must have prefix \"{}-\": spec.template.metadata.name",
                key.2
            )));
        }
        if template["spec"]["timeoutSeconds"].as_u64().is_some_and(|seconds| seconds > 600) {
            return Err(denied("validation failed: expected 0 <= 601 <= 600: spec.template.spec.timeoutSeconds"));
        }
        if let Some(before) = before {
            let old = &before["spec"]["template"];
            if old["metadata"]["name"] == template["metadata"]["name"] && old["spec"] != template["spec"] {
                return Err(denied(
                    "validation failed: Saw the following changes without a name change (-old +new): spec.template.metadata.name",
                ));
            }
        }
        let mut next = before.cloned().unwrap_or_else(|| json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service",
            "metadata": {"name": key.2, "generation": 0, "annotations": {"serving.knative.dev/creator": "lab-driver"}},
            "spec": {},
        }));
        self.check_managers(key, asked, &next, &template)?;
        self.merge_names(key, wanted, &mut next);
        let spec = json!({"template": template, "traffic": wanted["spec"]["traffic"]});
        if next["spec"] != spec {
            next["spec"] = spec;
            let generation = next["metadata"]["generation"].as_i64().unwrap();
            next["metadata"]["generation"] = json!(generation + 1);
        }
        Ok(next)
    }

    /// Refuses to change what others manage, unless it is taken over.
    fn check_managers(&mut self, key: &Key, asked: &Asked, before: &Value, template: &Value) -> Result<(), Response> {
        let changes = [
            (".spec.traffic", before["spec"]["traffic"] != asked.body["spec"]["traffic"]),
            (
                ".spec.template.spec.containers",
                before["spec"]["template"]["spec"]["containers"] != template["spec"]["containers"],
            ),
        ];
        for (field, changes) in changes {
            let of = (key.2.clone(), field.to_owned());
            let Some(manager) = self.managed.get(&of).filter(|_| changes) else { continue };
            if asked.parameter("force") == Some("true") {
                self.managed.remove(&of);
                continue;
            }
            let cause = json!({"reason": "FieldManagerConflict", "message": format!("conflict with \"{manager}\""), "field": field});
            let message = format!("Apply failed with 1 conflict: conflict with \"{manager}\": {field}");
            return Err(status(409, "Conflict", message, json!({"causes": [cause]})));
        }
        Ok(())
    }

    /// Labels and annotations: those that were applied before and are not wanted any more go, those of others stay.
    fn merge_names(&mut self, key: &Key, wanted: &Value, next: &mut Value) {
        let owned = self.applied.remove(&key.2).unwrap_or_default();
        let mut owns = BTreeSet::new();
        for part in ["labels", "annotations"] {
            let mut names = next["metadata"][part].as_object().cloned().unwrap_or_else(Map::new);
            names.retain(|name, _| !owned.contains(name));
            for (name, value) in wanted["metadata"][part].as_object().into_iter().flatten() {
                owns.insert(name.clone());
                names.insert(name.clone(), value.clone());
            }
            next["metadata"][part] = Value::Object(names);
        }
        self.applied.insert(key.2.clone(), owns);
    }
}

/// Counts a watch as open until it is dropped.
struct Watching(Shared);

impl Drop for Watching {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.watching -= 1;
        state.tell();
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(json!({"type": kind, "object": object}).to_string() + "\n")
}

fn watch(shared: &Shared, asked: Asked) -> Response {
    let from: u64 = asked.parameter("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or_default();
    let (epoch, changed, bookmarks) = {
        let mut state = shared.state();
        if from < state.forgotten {
            let expired = json!({"kind": "Status", "status": "Failure", "message": "too old resource version", "reason": "Expired", "code": 410});
            return Response::new(Body::from(line("ERROR", &expired)));
        }
        state.watching += 1;
        state.tell();
        (state.epoch, state.changed.subscribe(), state.options.bookmarks)
    };
    let first = match bookmarks {
        true => line("BOOKMARK", &json!({"metadata": {"resourceVersion": from.to_string()}})),
        false => Bytes::new(),
    };
    let watching = Watching(shared.clone());
    let rest =
        stream::unfold((watching, asked, from, changed), move |(watching, asked, mut at, mut changed)| async move {
            loop {
                changed.borrow_and_update();
                let lines = {
                    let state = watching.0.state();
                    if state.epoch != epoch {
                        return None;
                    }
                    let mut lines = Vec::new();
                    for change in state.changes.iter().filter(|change| change.version > at) {
                        lines.extend(shown(change, &asked));
                    }
                    at = state.version;
                    lines
                };
                if !lines.is_empty() {
                    return Some((Ok::<_, io::Error>(Bytes::from(lines.concat())), (watching, asked, at, changed)));
                }
                changed.changed().await.ok()?;
            }
        });
    Response::new(Body::from_stream(stream::iter([Ok(first)]).chain(rest)))
}

fn shown(change: &Change, asked: &Asked) -> Option<Bytes> {
    let in_scope = asked.namespace.as_ref().is_none_or(|name| change.object["metadata"]["namespace"] == name.as_str());
    match (in_scope, asked.selects(&change.object)) {
        (false, _) => None,
        (true, true) => Some(line(change.kind, &change.object)),
        // What is not selected any more is gone, for who watches.
        (true, false) => Some(line("DELETED", &change.object)),
    }
}

fn logs(shared: &Shared, asked: &Asked) -> Response {
    let pod = asked.name.clone().unwrap_or_default();
    let (lines, cuts) = {
        let state = shared.state();
        if !state.objects.contains_key(&asked.key()) {
            return not_found(asked);
        }
        if asked.parameter("container").is_none() {
            let message = format!(
                "a container name must be specified for pod {pod}, choose one of: [user-container queue-proxy]"
            );
            return status(400, "BadRequest", message, json!({}));
        }
        let revision = pod.trim_end_matches("-deployment-abc");
        let lines = state.instances.get(revision).map(|instance| instance.lines.clone()).unwrap_or_default();
        (lines, state.options.cuts_follow)
    };
    // By whole seconds.
    let since = asked.parameter("sinceTime").map(|since| since[..19].to_owned());
    let mut lines: Vec<_> =
        lines.into_iter().filter(|(at, _)| since.as_ref().is_none_or(|since| at[..19] >= since[..])).collect();
    if let Some(tail) = asked.parameter("tailLines").and_then(|tail| tail.parse().ok()) {
        lines.drain(..lines.len().saturating_sub(tail));
    }
    let told: String = lines.iter().map(|(at, text)| format!("{at} {text}\n")).collect();
    let first = stream::iter([Ok::<_, io::Error>(Bytes::from(told))]);
    match (asked.parameter("follow"), cuts) {
        (Some("true"), true) => Response::new(Body::from_stream(first.chain(cut()))),
        (Some("true"), false) => {
            let (shared, read) = (shared.clone(), lines.len());
            let changed = shared.state().changed.subscribe();
            let rest = stream::unfold((shared, read, changed), move |(shared, read, mut changed)| {
                let revision = pod.trim_end_matches("-deployment-abc").to_owned();
                async move {
                    loop {
                        changed.borrow_and_update();
                        let lines = shared.state().instances.get(&revision).map(|instance| instance.lines.clone())?;
                        if lines.len() > read {
                            let new: String = lines[read..].iter().map(|(at, text)| format!("{at} {text}\n")).collect();
                            return Some((Ok(Bytes::from(new)), (shared, lines.len(), changed)));
                        }
                        changed.changed().await.ok()?;
                    }
                }
            });
            Response::new(Body::from_stream(first.chain(rest)))
        }
        _ => Response::new(Body::from_stream(first)),
    }
}
