//! What the cluster holds for a gateway: by pages, however many functions there are.

use function_gateway_core::{Deployment, DeploymentStatus, DriverRef, Error, ErrorKind, FunctionId, ListScope, Result};
use serde_json::Value;

use crate::api::{self, List, Service, label};
use crate::client::{Client, Manage};
use crate::config::{KnativeConfig, KnativeNamespaces};
use crate::mapping;
use crate::names::Target;
use crate::watch::Watches;

/// A list that is asked for page by page.
pub(crate) struct Pages<'a> {
    client: &'a Client,
    namespace: Option<&'a str>,
    selector: String,
    size: u32,
    next: Option<String>,
    version: String,
}

impl<'a> Pages<'a> {
    pub(crate) fn new(client: &'a Client, namespace: Option<&'a str>, selector: String, size: u32) -> Self {
        Self { client, namespace, selector, size, next: Some(String::new()), version: String::new() }
    }

    /// The next page; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Value>>> {
        let Some(next) = self.next.take() else { return Ok(None) };
        let request = Manage::get(api::services(self.namespace))
            .with("labelSelector", Some(self.selector.as_str()))
            .with("limit", Some(self.size.to_string()))
            .with("continue", Some(next).filter(|next| !next.is_empty()));
        let answer = self.client.send(&request).await?;
        if !answer.is_done() {
            return Err(answer.error());
        }
        let page: List<Value> = answer.json()?;
        self.next = Some(page.metadata.next).filter(|next| !next.is_empty());
        self.version = page.metadata.resource_version;
        Ok(Some(page.items))
    }

    /// What the list is of, for a watch that goes on from it.
    pub(crate) fn resource_version(&self) -> &str {
        &self.version
    }
}

/// Lists what belongs to a gateway, or to one function of it. An item of the gateway's that can't be read is an error in its place; what
/// somebody has changed is left out, so that it is missed and deployed again.
pub(crate) async fn all(
    client: &Client,
    watches: &Watches,
    config: &KnativeConfig,
    scope: &ListScope,
) -> Result<Vec<Result<Deployment>>> {
    let selector = match scope {
        ListScope::All(gateway) => format!("{}={gateway}", label::GATEWAY),
        ListScope::Function(gateway, function) => {
            format!("{}={gateway},{}={function}", label::GATEWAY, label::FUNCTION)
        }
        _ => return Ok(Vec::new()),
    };
    let namespace = match &config.namespaces {
        KnativeNamespaces::Shared(name) => Some(name.as_str()),
        KnativeNamespaces::PerTenant { .. } => None,
    };
    // A list that took too long can't be gone on with, and is begun anew, once.
    for last in [false, true] {
        let mut pages = Pages::new(client, namespace, selector.clone(), config.page_size);
        let mut listed = Vec::new();
        loop {
            match pages.next().await {
                Ok(Some(page)) => {
                    listed.extend(page.into_iter().flat_map(|item| deployments(item, watches, scope)));
                }
                Ok(None) => return Ok(listed),
                Err(error) if !last && error.context_value("engine_status") == Some("410") => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(Vec::new())
}

fn deployments(item: Value, watches: &Watches, scope: &ListScope) -> Vec<Result<Deployment>> {
    let (gateway, wanted) = match scope {
        ListScope::All(gateway) => (gateway, None),
        ListScope::Function(gateway, function) => (gateway, Some(*function)),
        _ => return Vec::new(),
    };
    let unreadable =
        || Error::new(ErrorKind::Engine, "the cluster holds a function of this gateway that can't be read");
    let name = item.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let service: Service = match serde_json::from_value(item) {
        Ok(service) => service,
        Err(error) => return vec![Err(unreadable().with_context("service", name).with_source(error))],
    };
    let references = mapping::held(&service).into_values().map(str::to_owned).collect::<Vec<_>>();
    if references.is_empty() {
        return vec![Err(unreadable().with_context("service", name))];
    }
    let held = watches.fold(service);
    let one = |reference: String| -> Option<Result<Deployment>> {
        let read = |text| {
            let target = Target::parse_text(text)?;
            let id: FunctionId = target.function_id()?;
            let ours = target.gateway == gateway.as_str() && target.service == name && !held.is_foreign(&target);
            ours.then_some((target, id))
        };
        let Some((target, id)) = read(reference.as_str()) else {
            // Its labels and its reference contradict each other: what it is can't be told.
            return Some(Err(unreadable().with_context("service", name.clone())));
        };
        if wanted.is_some_and(|wanted| wanted != id) || !held.holds(&target) {
            return None;
        }
        let generation = target.generation;
        let deployment = Deployment::new(DriverRef::new(reference.as_str()), id, generation);
        Some(Ok(match held.is_routed(generation) {
            true => deployment.with_status(DeploymentStatus::ready()),
            false => deployment,
        }))
    };
    references.into_iter().filter_map(one).collect()
}
