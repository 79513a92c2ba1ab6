//! API keys.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::Operation;
use super::engine::{Row, Session, Unreadable};
use super::fault::{Fault, FaultKind};
use super::functions::{Pager, json, limited, unreadable};
use super::records::{after_place, place, read_place};
use crate::store::page::invalid_cursor;
use crate::store::{key_exists, key_not_found};
use crate::{ApiKey, ApiKeyId, CursorKind, Page, PageRequest, PrincipalId, TenantId, Timestamp};

/// The form of rows that this program writes, and the latest that it reads.
const FORMAT: i64 = 1;

const SELECT: &str = "SELECT created_at, id, tenant, expires_at, revoked_at, hash, format, document FROM fg_api_keys \
                      WHERE ";

/// What has no column of its own.
#[derive(Serialize, Deserialize)]
struct Document {
    principal: PrincipalId,
    scopes: BTreeSet<String>,
    description: String,
    created_by: PrincipalId,
}

/// Reads the columns of [`SELECT`].
fn decode(row: &mut Row) -> Result<Arc<ApiKey>, Unreadable> {
    row.check_format(6, FORMAT)?;
    let Document { principal, scopes, description, created_by } = row.json(7)?;
    let hash = row.opt_bytes(5)?.unwrap_or_default();
    Ok(Arc::new(ApiKey {
        created_at: Timestamp::from_micros(row.int(0)?),
        id: row.parse(1)?,
        tenant: row.parse(2)?,
        expires_at: row.opt_int(3)?.map(Timestamp::from_micros),
        revoked_at: row.opt_int(4)?.map(Timestamp::from_micros),
        hash: hash
            .try_into()
            .map_err(|hash: Vec<u8>| Unreadable(format!("column 5 is no hash: it has {} bytes", hash.len())))?,
        principal,
        scopes,
        description,
        created_by,
    }))
}

pub(super) struct Add<'a> {
    pub(super) key: &'a ApiKey,
}

#[async_trait]
impl Operation for Add<'_> {
    type Answer = ();

    async fn run(&self, session: &mut dyn Session) -> Result<(), Fault> {
        let ApiKey { id, tenant, principal, scopes, description, hash, created_at, created_by, expires_at, revoked_at } =
            self.key.clone();
        let document = json(&Document { principal, scopes, description, created_by })?;
        let id_text = id.to_string();
        let insert = session
            .dialect()
            .sql(
                "INSERT INTO fg_api_keys (id, tenant, hash, document, created_at, expires_at, revoked_at, format) VALUES (",
            )
            .list([id_text.as_str(), tenant.as_str()])
            .sql(", ")
            .arg(hash.as_slice())
            .sql(", ")
            .arg(document)
            .sql(", ")
            .list([
                Some(created_at.as_micros()),
                expires_at.map(Timestamp::as_micros),
                revoked_at.map(Timestamp::as_micros),
                Some(FORMAT),
            ])
            .sql(")");
        session.execute(insert).await.map_err(|fault| match fault.is(FaultKind::Duplicate) {
            true => key_exists(id).into(),
            false => fault,
        })?;
        Ok(())
    }
}

pub(super) struct Find {
    pub(super) id: ApiKeyId,
}

#[async_trait]
impl Operation for Find {
    type Answer = Option<Arc<ApiKey>>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let select = session.dialect().sql(SELECT).sql("id = ").arg(self.id.to_string());
        let Some(mut row) = session.row(select).await? else { return Ok(None) };
        decode(&mut row).map(Some).map_err(|reason| unreadable("the API key", reason))
    }
}

pub(super) struct List<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) page: &'a PageRequest,
}

#[async_trait]
impl Operation for List<'_> {
    type Answer = Page<Arc<ApiKey>>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let after = self.page.key(CursorKind::ApiKeys)?;
        let mut select = session.dialect().sql(SELECT).sql("tenant = ").arg(self.tenant.as_str());
        if let Some(after) = &after {
            let after = read_place(after).ok_or_else(invalid_cursor)?;
            select = after_place(select, ("created_at", "id"), after);
        }
        let mut pager = Pager::new(CursorKind::ApiKeys, self.page, decode, place);
        pager.add(session, limited(select.sql(" ORDER BY created_at DESC, id DESC"), self.page)).await?;
        Ok(pager.finish())
    }
}

pub(super) struct Revoke<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) id: ApiKeyId,
    pub(super) at: Timestamp,
}

#[async_trait]
impl Operation for Revoke<'_> {
    type Answer = Arc<ApiKey>;

    async fn run(&self, session: &mut dyn Session) -> Result<Arc<ApiKey>, Fault> {
        let (tenant, id) = (self.tenant.as_str(), self.id.to_string());
        let dialect = session.dialect();
        // Of several that revoke it, the first one sets the time; the others wait for it and meet no row.
        let update = dialect.sql("UPDATE fg_api_keys SET revoked_at = ").arg(self.at.as_micros()).sql(" WHERE id = ");
        let update = update.arg(id.as_str()).sql(" AND tenant = ").arg(tenant);
        session.execute(update.sql(" AND revoked_at IS NULL")).await?;
        let select = dialect.sql(SELECT).sql("id = ").arg(id.as_str()).sql(" AND tenant = ").arg(tenant);
        let Some(mut row) = session.row(select).await? else { return Err(key_not_found(self.id).into()) };
        decode(&mut row).map_err(|reason| unreadable("the API key", reason))
    }
}
