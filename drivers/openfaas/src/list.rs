//! What the engine holds for a gateway: one request for each namespace, however many functions there are.

use std::collections::HashSet;

use function_gateway_core::{CallContext, Deployment, DriverRef, Error, ErrorKind, FunctionId, ListScope, Result};
use http::StatusCode;
use serde_json::Value;

use crate::client::{Client, Manage};
use crate::config::OpenFaasConfig;
use crate::mapping::{FunctionDocument, Held};
use crate::names::Target;

/// Lists what belongs to a gateway, or to one function of it. An item of the gateway's that can't be read is an error in its
/// place; what somebody has changed is left out, so that it is missed and deployed again.
pub(crate) async fn all(
    client: &Client,
    config: &OpenFaasConfig,
    cx: &CallContext,
    scope: &ListScope,
) -> Result<Vec<Result<Deployment>>> {
    let (gateway, function) = match scope {
        ListScope::All(gateway) => (gateway, None),
        ListScope::Function(gateway, function) => (gateway, Some(*function)),
        _ => return Ok(Vec::new()),
    };
    let mut namespaces = vec![config.namespace.clone()];
    if !config.namespaces.is_empty() {
        // One that the host allows and nobody has made yet must not break the whole list.
        let present = client.namespaces(cx).await?;
        let allowed = present.into_iter().filter(|name| config.namespaces.contains(name));
        namespaces.extend(allowed.map(Some).filter(|name| *name != config.namespace));
    }
    let mut listed = Vec::new();
    let mut seen = HashSet::new();
    for namespace in namespaces {
        let answer =
            client.send(cx, Manage::get("/system/functions").with("namespace", namespace)).await.map_err(hinted)?;
        if answer.status != StatusCode::OK {
            return Err(answer.error());
        }
        // A provider without functions may say `null`.
        let items = answer.json::<Option<Vec<Value>>>()?.unwrap_or_default();
        listed.extend(items.into_iter().filter_map(|item| deployment(item, gateway.as_str(), function)).filter(
            |item| {
                // The engine's default namespace may be listed by its name too.
                item.as_ref().map_or(true, |deployment| seen.insert(deployment.target.clone()))
            },
        ));
    }
    Ok(listed)
}

/// A gateway without its Prometheus closes the connection on every list with a function in it.
fn hinted(error: Error) -> Error {
    if error.delivery() != function_gateway_core::Delivery::Unknown {
        return error;
    }
    let detail =
        "OpenFaaS closes the connection where it lists functions and can't reach its Prometheus: see the driver's page";
    error.with_context("hint", "does the engine's gateway reach its Prometheus?").with_detail(detail)
}

fn deployment(item: Value, gateway: &str, function: Option<FunctionId>) -> Option<Result<Deployment>> {
    let ours = item.pointer("/labels/function-gateway~1gateway").and_then(Value::as_str) == Some(gateway);
    if !ours {
        return None;
    }
    let unreadable = || Error::new(ErrorKind::Engine, "the engine holds a function of this gateway that can't be read");
    let document: FunctionDocument = match serde_json::from_value(item) {
        Ok(document) => document,
        Err(error) => return Some(Err(unreadable().with_source(error))),
    };
    let read = || {
        let target = Target::parse_text(document.reference()?)?;
        let (id, generation) = target.identity()?;
        Some((target, id, generation))
    };
    let Some((target, id, generation)) = read() else {
        return Some(Err(unreadable().with_context("service", document.name.clone())));
    };
    let held = document.held(&target);
    if target.service != document.name || held == Held::Foreign {
        // Its labels and its reference contradict each other: what it is can't be told.
        return Some(Err(unreadable().with_context("service", document.name.clone())));
    }
    if held == Held::Changed || function.is_some_and(|wanted| wanted != id) {
        return None;
    }
    let reference = DriverRef::new(document.reference().unwrap_or_default());
    let deployment = Deployment::new(reference, id, generation);
    // faasd never says in a list how many replicas are available, so that none says nothing.
    Some(Ok(match document.available_replicas {
        0 => deployment,
        _ => deployment.with_status(document.status()),
    }))
}
