//! Small documents of what is built on the gateway.

use async_trait::async_trait;

use super::Operation;
use super::engine::{Row, Session, Statement, Unreadable, stored};
use super::fault::{Fault, FaultKind};
use super::functions::{Pager, Place, limited, number, unreadable};
use crate::store::{StoredDocument, check_document, document_changed, document_exists, document_not_found};
use crate::{CursorKind, Page, PageRequest, TenantId, Version};

/// The form of rows that this program writes, and the latest that it reads.
const FORMAT: i64 = 1;

const SELECT: &str = "SELECT tenant, kind, name, version, format, content FROM fg_documents WHERE tenant = ";

/// Reads the columns of [`SELECT`].
fn decode(row: &mut Row) -> Result<StoredDocument, Unreadable> {
    row.check_format(4, FORMAT)?;
    Ok(StoredDocument {
        tenant: row.parse(0)?,
        kind: row.text(1)?,
        name: row.text(2)?,
        version: Version::new(number(row, 3)?),
        content: row.text(5)?,
    })
}

fn place(row: &Row) -> Result<Place, Unreadable> {
    let name = row.peek_text(2)?;
    Ok(Place { key: name.to_owned(), name: name.to_owned() })
}

fn by_name(statement: Statement, tenant: &TenantId, kind: &str, name: &str) -> Statement {
    let statement = statement.arg(tenant.as_str()).sql(" AND kind = ").arg(kind.as_bytes());
    statement.sql(" AND name = ").arg(name.as_bytes())
}

/// The version of a document, which is locked.
async fn version(
    session: &mut dyn Session,
    (tenant, kind, name): (&TenantId, &str, &str),
) -> Result<Option<Version>, Fault> {
    let dialect = session.dialect();
    let select = dialect.sql("SELECT version FROM fg_documents WHERE tenant = ");
    let Some(mut row) = session.row(by_name(select, tenant, kind, name).sql(dialect.for_update)).await? else {
        return Ok(None);
    };
    number(&mut row, 0).map(|version| Some(Version::new(version))).map_err(|reason| unreadable("the document", reason))
}

pub(super) struct Put<'a> {
    pub(super) document: &'a StoredDocument,
    pub(super) expected: Option<Version>,
}

#[async_trait]
impl Operation for Put<'_> {
    type Answer = StoredDocument;

    async fn run(&self, session: &mut dyn Session) -> Result<StoredDocument, Fault> {
        check_document(self.document)?;
        let StoredDocument { tenant, kind, name, content, .. } = self.document;
        let mut document = self.document.clone();
        let dialect = session.dialect();
        let Some(expected) = self.expected else {
            document.version = Version::FIRST;
            let insert = "INSERT INTO fg_documents (tenant, kind, name, content, version, format) VALUES (";
            let insert = dialect.sql(insert).arg(tenant.as_str()).sql(", ");
            let insert = insert.list([kind.as_bytes(), name.as_bytes(), content.as_bytes()]).sql(", ");
            let insert = insert.list([stored(document.version.get()), FORMAT]).sql(")");
            session.execute(insert).await.map_err(|fault| match fault.is(FaultKind::Duplicate) {
                true => document_exists(name).into(),
                false => fault,
            })?;
            return Ok(document);
        };
        match version(session, (tenant, kind, name)).await? {
            None => return Err(document_not_found(name).into()),
            Some(found) if found != expected => return Err(document_changed(name).into()),
            Some(_) => document.version = expected.next(),
        }
        let update = dialect.sql("UPDATE fg_documents SET content = ").arg(content.as_bytes()).sql(", version = ");
        let update = update.arg(stored(document.version.get())).sql(", format = ").arg(FORMAT).sql(" WHERE tenant = ");
        session.execute(by_name(update, tenant, kind, name)).await?;
        Ok(document)
    }
}

pub(super) struct Get<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) kind: &'a str,
    pub(super) name: &'a str,
}

#[async_trait]
impl Operation for Get<'_> {
    type Answer = Option<StoredDocument>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let select = by_name(session.dialect().sql(SELECT), self.tenant, self.kind, self.name);
        let Some(mut row) = session.row(select).await? else { return Ok(None) };
        decode(&mut row).map(Some).map_err(|reason| unreadable("the document", reason))
    }
}

pub(super) struct List<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) kind: &'a str,
    pub(super) page: &'a PageRequest,
}

#[async_trait]
impl Operation for List<'_> {
    type Answer = Page<StoredDocument>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let mut select = session.dialect().sql(SELECT).arg(self.tenant.as_str());
        select = select.sql(" AND kind = ").arg(self.kind.as_bytes());
        if let Some(after) = self.page.key(CursorKind::Documents)? {
            select = select.sql(" AND name > ").arg(after.as_bytes());
        }
        let mut pager = Pager::new(CursorKind::Documents, self.page, decode, place);
        pager.add(session, limited(select.sql(" ORDER BY name"), self.page)).await?;
        Ok(pager.finish())
    }
}

pub(super) struct Delete<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) kind: &'a str,
    pub(super) name: &'a str,
    pub(super) expected: Option<Version>,
}

#[async_trait]
impl Operation for Delete<'_> {
    type Answer = ();

    async fn run(&self, session: &mut dyn Session) -> Result<(), Fault> {
        let Self { tenant, kind, name, expected } = self;
        match version(session, (tenant, kind, name)).await? {
            None => return Err(document_not_found(name).into()),
            Some(found) if expected.is_some_and(|expected| found != expected) => {
                return Err(document_changed(name).into());
            }
            Some(_) => {}
        }
        let delete = session.dialect().sql("DELETE FROM fg_documents WHERE tenant = ");
        session.execute(by_name(delete, tenant, kind, name)).await?;
        Ok(())
    }
}
