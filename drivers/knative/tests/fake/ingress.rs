//! The ingress, and Knative's proxies behind it.

use std::collections::BTreeMap;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Request, header};
use axum::response::Response;
use base64::Engine as _;
use serde_json::Value;

use super::functions::{Called, Running};
use super::server::{At, plain, see};
use super::{REVISIONS, SECRETS, Shared, State};

pub(super) async fn answer(shared: &Shared, at: At, request: Request<Body>) -> Response {
    see(shared, at, &request, Bytes::new());
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = named.or(request.uri().authority().map(|authority| authority.as_str())).unwrap_or_default();
    let host = host.split(':').next().unwrap_or_default().to_lowercase();
    let admitted = {
        let mut state = shared.state();
        let found = state.hosts.get(&host).filter(|(_, _, hidden)| !hidden || at == At::LocalIngress).cloned();
        found.map(|(revision, ..)| state.admit(&revision).map(|admitted| (revision, admitted)))
    };
    let (revision, (env, stop)) = match admitted {
        // No such route.
        None => return served(plain(404, ""), false),
        Some(Err(answer)) => return served(answer, true),
        Some(Ok(admitted)) => admitted,
    };
    let running = Running::begin(shared, &revision);
    let (mut head, body) = request.into_parts();
    for (name, value) in [("k-proxy-request", "activator"), ("x-forwarded-proto", "http")] {
        head.headers.insert(name, HeaderValue::from_static(value));
    }
    let called = Called { env, head, running, stop: stop.clone() };
    let answer = tokio::select! {
        biased;
        answer = called.execute(body) => answer,
        () = stop.cancelled() => plain(502, "EOF\n"),
    };
    // A function that was stopped in the middle has closed its connection.
    match stop.is_cancelled() {
        true => served(plain(502, "EOF\n"), true),
        false => served(answer, true),
    }
}

fn served(mut answer: Response, upstream: bool) -> Response {
    let headers = answer.headers_mut();
    headers.insert(header::SERVER, HeaderValue::from_static("envoy"));
    if upstream {
        headers.insert("x-envoy-upstream-service-time", HeaderValue::from_static("4"));
    }
    answer
}

type Admitted = (BTreeMap<String, Vec<u8>>, tokio_util::sync::CancellationToken);

impl State {
    /// Lets a call to an instance, which is started where there is none.
    fn admit(&mut self, revision: &str) -> Result<Admitted, Response> {
        let found = self.objects.iter().find(|(key, _)| key.0 == REVISIONS && key.2 == revision);
        let Some((key, object)) = found.map(|(key, object)| (key.clone(), object.clone())) else {
            let text =
                format!("Error getting active endpoint: revision.serving.knative.dev \"{revision}\" not found\n");
            return Err(plain(404, text));
        };
        if object["status"]["actualReplicas"] == 0 {
            self.scale(revision, 1);
        }
        let container = &object["spec"]["containers"][0];
        let env = container["env"].as_array().into_iter().flatten();
        let env =
            env.filter_map(|variable| Some((variable["name"].as_str()?.to_owned(), self.value(&key.1, variable)?)));
        let env = env.collect();
        let most = object["spec"]["containerConcurrency"].as_u64().unwrap_or_default();
        let instance = self.instances.get_mut(revision).unwrap();
        if most > 0 && instance.running as u64 >= most {
            return Err(plain(503, "pending request queue full\n"));
        }
        instance.calls += 1;
        Ok((env, instance.stop.clone()))
    }

    fn value(&self, namespace: &str, variable: &Value) -> Option<Vec<u8>> {
        if let Some(value) = variable["value"].as_str() {
            return Some(value.replace("$$", "$").into_bytes());
        }
        let from = &variable["valueFrom"]["secretKeyRef"];
        let (name, key) = (from["name"].as_str()?, from["key"].as_str()?);
        let secret = self.objects.get(&(SECRETS, namespace.to_owned(), name.to_owned()))?;
        base64::engine::general_purpose::STANDARD.decode(secret["data"][key].as_str()?).ok()
    }
}

/// Where a Service is called from outside.
pub(super) fn domain(namespace: &str) -> String {
    format!("{namespace}.example.lab")
}
