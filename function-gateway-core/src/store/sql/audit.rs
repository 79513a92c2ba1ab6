//! Audit events.

use std::sync::Arc;

use async_trait::async_trait;

use super::Operation;
use super::batch::row_limit;
use super::engine::{Dialect, Row, Session, Statement, Unreadable};
use super::fault::{Fault, FaultKind};
use super::functions::{Pager, json, limited};
use super::records::{after_place, place, read_place};
use super::retention::delete_from;
use crate::store::event_exists;
use crate::store::page::invalid_cursor;
use crate::{AuditEvent, AuditFilter, CursorKind, Page, PageRequest, TenantId, Timestamp};

/// The form of rows that this program writes, and the latest that it reads.
const FORMAT: i64 = 1;

/// Reads the columns of [`List`].
fn decode(row: &mut Row) -> Result<Arc<AuditEvent>, Unreadable> {
    row.check_format(2, FORMAT)?;
    row.json(3)
}

pub(super) struct Append<'a> {
    pub(super) event: &'a AuditEvent,
}

#[async_trait]
impl Operation for Append<'_> {
    type Answer = ();

    async fn run(&self, session: &mut dyn Session) -> Result<(), Fault> {
        let event = self.event;
        let (id, document) = (event.id.to_string(), json(event)?);
        let insert = session
            .dialect()
            .sql("INSERT INTO fg_audit (id, tenant, name, principal, action, document, created_at, format) VALUES (")
            .list([
                Some(id.as_str()),
                Some(event.tenant.as_str()),
                event.function.as_ref().map(AsRef::as_ref),
                Some(event.principal.as_str()),
                Some(event.action.as_str()),
                Some(document.as_str()),
            ])
            .sql(", ")
            .list([event.at.as_micros(), FORMAT])
            .sql(")");
        session.execute(insert).await.map_err(|fault| match fault.is(FaultKind::Duplicate) {
            true => event_exists(event).into(),
            false => fault,
        })?;
        Ok(())
    }
}

pub(super) struct List<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) filter: &'a AuditFilter,
    pub(super) page: &'a PageRequest,
}

impl List<'_> {
    fn select(&self, dialect: &'static Dialect, after: Option<(i64, &str)>) -> Statement {
        let AuditFilter { function, principal, action, from, until } = self.filter;
        let select = "SELECT created_at, id, format, document FROM fg_audit WHERE tenant = ";
        let mut statement = dialect.sql(select).arg(self.tenant.as_str());
        let equals = [
            ("name", function.as_ref().map(AsRef::as_ref)),
            ("principal", principal.as_ref().map(AsRef::as_ref)),
            ("action", action.map(|action| action.as_str())),
        ];
        for (column, value) in equals {
            if let Some(value) = value {
                statement = statement.sql(" AND ").sql(column).sql(" = ").arg(value);
            }
        }
        if let Some(from) = from {
            statement = statement.sql(" AND created_at >= ").arg(from.as_micros());
        }
        if let Some(until) = until {
            statement = statement.sql(" AND created_at < ").arg(until.as_micros());
        }
        if let Some(after) = after {
            statement = after_place(statement, ("created_at", "id"), after);
        }
        limited(statement.sql(" ORDER BY created_at DESC, id DESC"), self.page)
    }
}

#[async_trait]
impl Operation for List<'_> {
    type Answer = Page<Arc<AuditEvent>>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let after = self.page.key(CursorKind::Audit)?;
        let after = after.as_deref().map(|after| read_place(after).ok_or_else(invalid_cursor)).transpose()?;
        let mut pager = Pager::new(CursorKind::Audit, self.page, decode, place);
        let select = self.select(session.dialect(), after);
        pager.add(session, select).await?;
        Ok(pager.finish())
    }
}

pub(super) struct DeleteOld {
    pub(super) before: Timestamp,
    pub(super) limit: usize,
}

#[async_trait]
impl Operation for DeleteOld {
    type Answer = u64;

    async fn run(&self, session: &mut dyn Session) -> Result<u64, Fault> {
        let select = session.dialect().sql("SELECT id FROM fg_audit WHERE created_at < ").arg(self.before.as_micros());
        let select = select.sql(" ORDER BY created_at LIMIT ").arg(row_limit(self.limit));
        delete_from(session, &["fg_audit"], select).await
    }
}
