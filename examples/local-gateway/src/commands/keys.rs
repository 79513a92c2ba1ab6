//! `keys`: creates, lists and revokes API keys, in the gateway's database: the first key can't come from the API.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use function_gateway::rest::MintedKey;
use function_gateway::{
    AccessManager as _, ApiKey, ApiKeyId, CallContext, Error, Gateway, NewApiKey, PageRequest, Principal, PrincipalId,
    ScopeAuthorizer, TenantId, Timestamp,
};
use serde_json::{Value, json};

use crate::config::Config;
use crate::exit::Result;
use crate::output::{self, Format};
use crate::settings::Flags;
use crate::store;

#[derive(Debug, Args)]
pub(crate) struct Keys {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Create a key, and show it: this once, alone on standard output
    Create(Create),
    /// List the keys of a tenant, newest first
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Revoke a key, for good
    Revoke {
        /// What the key is known by
        id: ApiKeyId,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// The tenant [default: that of the setting `tenant`]
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Args)]
struct Create {
    /// As whom its holder acts
    #[arg(long)]
    principal: PrincipalId,
    /// What its holder may do: read, write, invoke, admin or metrics, or for some functions only, such as invoke:img-*
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', required = true)]
    scopes: Vec<String>,
    /// When it expires: a time such as 2027-01-31T00:00:00Z, or a number of days from now such as 90d [default: never]
    #[arg(long, value_name = "WHEN", value_parser = when)]
    expires: Option<Timestamp>,
    /// What it is for
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    #[command(flatten)]
    common: Common,
}

fn when(text: &str) -> Result<Timestamp, String> {
    match text.strip_suffix('d').map(str::parse::<u32>) {
        Some(Ok(days)) => Ok(Timestamp::now().plus(Duration::from_secs(86_400) * days)),
        _ => text.parse().map_err(|_| "it is a time such as 2027-01-31T00:00:00Z, or days such as 90d".to_owned()),
    }
}

impl Keys {
    pub(crate) fn flags(&self) -> &Flags {
        &self.common().flags
    }

    pub(crate) fn output(&self) -> Format {
        self.common().output
    }

    fn common(&self) -> &Common {
        match &self.command {
            KeysCommand::Create(Create { common, .. })
            | KeysCommand::List { common }
            | KeysCommand::Revoke { common, .. } => common,
        }
    }

    pub(crate) async fn run(self, config: &Config) -> Result<()> {
        let store = store::open(config).await?;
        // The checks and the audit log of a gateway, without drivers and tasks.
        let authorizer = Arc::new(ScopeAuthorizer);
        let gateway = Gateway::builder().store(Arc::new(store.clone())).authorizer(authorizer).without_reconciler();
        let gateway = gateway.build().await?;
        let result = self.run_on(config, &gateway).await;
        gateway.shutdown(Duration::ZERO).await?;
        store.close().await;
        result
    }

    async fn run_on(self, config: &Config, gateway: &Gateway) -> Result<()> {
        let Common { tenant, output, .. } = self.common();
        let (tenant, output) = (tenant.clone().unwrap_or_else(|| config.tenant.clone()), *output);
        // Whoever reaches the database may do everything.
        let operator = "operator".parse().map_err(Error::from)?;
        let cx = CallContext::new(Principal::new(tenant, operator).with_scope("admin").with_scope("metrics"));
        match self.command {
            KeysCommand::Create(create) => create.run(gateway, &cx, output).await,
            KeysCommand::List { .. } => list(gateway, &cx, output).await,
            KeysCommand::Revoke { id, .. } => {
                let key = gateway.revoke_api_key(&cx, id).await?;
                match output {
                    Format::Json => output::json(&document(&key, gateway.now()))?,
                    Format::Table => output::line(&format!("{id} is revoked"))?,
                }
                Ok(())
            }
        }
    }
}

impl Create {
    async fn run(self, gateway: &Gateway, cx: &CallContext, output: Format) -> Result<()> {
        let minted = MintedKey::mint()?;
        let mut wanted = NewApiKey::new(minted.id, minted.hash).with_principal(self.principal);
        wanted.scopes = self.scopes.into_iter().collect();
        wanted.description = self.description;
        wanted.expires_at = self.expires;
        let key = gateway.create_api_key(cx, wanted).await?;
        let text = minted.text.expose_str()?;
        match output {
            Format::Table => {
                let until = key.expires_at.map_or_else(|| "does not expire".to_owned(), |at| format!("expires {at}"));
                let scopes = scopes(&key);
                output::note(&format!(
                    "Key {} of {}/{} with {scopes} {until}. It is shown this once:",
                    key.id, key.tenant, key.principal
                ));
                output::line(text)?;
            }
            Format::Json => {
                let mut document = document(&key, gateway.now());
                if let Value::Object(fields) = &mut document {
                    fields.insert("key".to_owned(), text.into());
                }
                output::json(&document)?;
            }
        }
        Ok(())
    }
}

async fn list(gateway: &Gateway, cx: &CallContext, output: Format) -> Result<()> {
    let mut keys = Vec::new();
    let mut request = PageRequest::default();
    loop {
        let page = gateway.api_keys(cx, &request).await?;
        for row in page.unreadable {
            output::note(&format!("{} can't be read: {}", row.id, row.reason));
        }
        keys.extend(page.items);
        match page.next {
            Some(cursor) => request = PageRequest::default().after(cursor),
            None => break,
        }
    }
    let now = gateway.now();
    if output == Format::Json {
        return Ok(output::json(&keys.iter().map(|key| document(key, now)).collect::<Vec<_>>())?);
    }
    let row = |key: &Arc<ApiKey>| {
        let expires = key.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string());
        let (id, principal, state) = (key.id.to_string(), key.principal.to_string(), key.state(now).to_string());
        [id, principal, scopes(key), state, expires, output::ago(key.created_at), key.description.clone()]
    };
    let names = ["ID", "PRINCIPAL", "SCOPES", "STATE", "EXPIRES", "CREATED", "DESCRIPTION"];
    Ok(output::table(names, keys.iter().map(row))?)
}

fn scopes(key: &ApiKey) -> String {
    key.scopes.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

/// What is known of a key, as the REST API has it.
fn document(key: &ApiKey, now: Timestamp) -> Value {
    json!({
        "id": key.id,
        "tenant": key.tenant,
        "principal": key.principal,
        "description": key.description,
        "scopes": key.scopes,
        "state": key.state(now),
        "created_at": key.created_at,
        "created_by": key.created_by,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    })
}
