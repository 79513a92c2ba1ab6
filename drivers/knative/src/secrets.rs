//! The secrets of a generation, in the cluster: one Secret, written when it is deployed, deleted with it, and never read back.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use function_gateway_core::{DeployRequest, Result};

use crate::api::{self, AppliedSecret, OwnerReference, SERVING, Service};
use crate::client::{Client, Manage};
use crate::mapping::{secret_key, secret_meta};
use crate::names::Target;

/// Makes the cluster hold a generation's secrets, whether it has them already or not. They go with the Service, once there is one: who
/// deletes that behind our back leaves none behind.
pub(crate) async fn put(
    client: &Client,
    target: &Target<'_>,
    request: &DeployRequest,
    owner: Option<&Service>,
) -> Result<()> {
    if request.secrets.is_empty() {
        return Ok(());
    }
    let mut metadata = secret_meta(request, target);
    metadata.owner_references.extend(owner.map(|service| OwnerReference {
        api_version: SERVING.to_owned(),
        kind: "Service".to_owned(),
        name: service.metadata.name.clone(),
        uid: service.metadata.uid.clone(),
    }));
    let data = request.secrets.iter();
    let data = data.map(|variable| (secret_key(&variable.name), STANDARD.encode(variable.secret.expose()))).collect();
    let document = AppliedSecret { api_version: "v1", kind: "Secret", metadata, secret_type: "Opaque", data };
    // It is this generation's alone: whoever has changed it has broken it.
    let path = api::secret(target.namespace, &target.revision());
    let answer = client.send(&Manage::apply(path, &document, true)?).await?;
    if answer.is_done() { Ok(()) } else { Err(answer.error()) }
}

/// Deletes a generation's secrets.
pub(crate) async fn delete(client: &Client, target: &Target<'_>) -> Result<()> {
    if target.secrets == 0 {
        return Ok(());
    }
    client.delete(api::secret(target.namespace, &target.revision())).await
}
