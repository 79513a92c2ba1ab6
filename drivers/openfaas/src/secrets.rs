//! The secrets of a generation, in the engine: written when it is deployed, deleted with it, and never read back.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use function_gateway_core::{CallContext, Result, SecretVariable};
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::client::{Client, Manage};
use crate::names::{Target, secret_name};

const PATH: &str = "/system/secrets";

/// A secret, as it is written (`Secret` of the API).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    /// What is no text, in base 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_value: Option<String>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
}

/// Makes the engine hold a generation's secrets, whether it has them already or not. What it answers where it has one differs
/// (200, 409, 500), so it is created, and where that is refused, updated.
pub(crate) async fn put(
    client: &Client,
    cx: &CallContext,
    target: &Target<'_>,
    secrets: &[SecretVariable],
) -> Result<()> {
    for (index, secret) in secrets.iter().enumerate() {
        let name = secret_name(target.service, index);
        let value = std::str::from_utf8(secret.secret.expose()).ok();
        let raw_value = value.is_none().then(|| STANDARD.encode(secret.secret.expose()));
        let document = Document { name: &name, namespace: target.namespace, value, raw_value };
        let request = |method| Manage::new(method, PATH).with("namespace", target.namespace).with_json(&document);
        let created = client.send(cx, request(Method::POST)?).await?;
        if created.is_done() {
            continue;
        }
        if !matches!(created.status.as_u16(), 400 | 409 | 500) {
            return Err(created.error());
        }
        let updated = client.send(cx, request(Method::PUT)?).await?;
        if !updated.is_done() {
            let refused = if updated.status == StatusCode::NOT_FOUND { created } else { updated };
            return Err(refused.error());
        }
    }
    Ok(())
}

/// Deletes a generation's secrets. Only those that are there: faasd fails where one is missing.
pub(crate) async fn delete(client: &Client, cx: &CallContext, target: &Target<'_>) -> Result<()> {
    if target.secrets == 0 {
        return Ok(());
    }
    let present = names(client, cx, target).await?;
    for name in target.secret_names().filter(|name| present.contains(name)) {
        let document = Document { name: &name, namespace: target.namespace, value: None, raw_value: None };
        let request = Manage::new(Method::DELETE, PATH).with("namespace", target.namespace).with_json(&document)?;
        let deleted = client.send(cx, request).await?;
        let gone = deleted.is_done() || deleted.status == StatusCode::NOT_FOUND;
        // Another process may have been faster.
        if !gone && names(client, cx, target).await?.contains(&name) {
            return Err(deleted.error());
        }
    }
    Ok(())
}

async fn names(client: &Client, cx: &CallContext, target: &Target<'_>) -> Result<BTreeSet<String>> {
    let answer = client.send(cx, Manage::get(PATH).with("namespace", target.namespace)).await?;
    if answer.status != StatusCode::OK {
        return Err(answer.error());
    }
    let listed = answer.json::<Option<Vec<Listed>>>()?.unwrap_or_default();
    Ok(listed.into_iter().map(|secret| secret.name).collect())
}
