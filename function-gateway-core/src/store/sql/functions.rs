//! Functions, their revisions and leases.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

use super::Operation;
use super::engine::{Dialect, Row, Session, Statement, Unreadable, stored};
use super::fault::{Fault, FaultKind};
use crate::store::page::invalid_cursor;
use crate::store::{FunctionFilter, Lease, check_revision, function_changed, function_not_found, lease_lost};
use crate::{
    Cursor, CursorKind, Error, ErrorKind, Function, FunctionId, FunctionKey, FunctionStatus, Generation, Page,
    PageRequest, Result, Revision, TenantId, Timestamp, UnreadableRow, Version,
};

/// The form of rows that this program writes, and the latest that it reads.
const FORMAT: i64 = 1;
/// How many bytes of rows a page holds, beside its last one.
pub(super) const PAGE_BYTES: usize = 8 * 1024 * 1024;

const COLUMNS: &str = "f.tenant, f.name, f.id, f.owner, f.generation, f.version, f.created_at, f.updated_at, f.format, \
                       f.spec, f.status";

const COLUMN_COUNT: usize = 11;

/// Reads the columns of [`COLUMNS`].
fn function(row: &mut Row) -> Result<Function, Unreadable> {
    let key = FunctionKey::new(row.parse(0)?, row.parse(1)?);
    row.check_format(8, FORMAT)?;
    Ok(Function {
        key,
        id: row.parse(2)?,
        owner: row.parse(3)?,
        generation: generation(row, 4)?,
        version: Version::new(number(row, 5)?),
        created_at: Timestamp::from_micros(row.int(6)?),
        updated_at: Timestamp::from_micros(row.int(7)?),
        spec: row.json(9)?,
        status: row.json(10)?,
    })
}

pub(super) fn number(row: &mut Row, column: usize) -> Result<u64, Unreadable> {
    let value = row.int(column)?;
    u64::try_from(value).map_err(|_| Unreadable(format!("column {column} is negative: {value}")))
}

fn generation(row: &mut Row, column: usize) -> Result<Generation, Unreadable> {
    Generation::new(number(row, column)?).ok_or_else(|| Unreadable(format!("column {column} is no generation: 0")))
}

pub(super) fn json(value: &impl Serialize) -> Result<String, Fault> {
    serde_json::to_string(value).map_err(|error| {
        Error::new(ErrorKind::Internal, "what is to be stored can't be written as JSON").with_source(error).into()
    })
}

/// The error for a row that somebody asked for and that can't be read.
pub(super) fn unreadable(what: &str, reason: Unreadable) -> Fault {
    Error::new(ErrorKind::Store, format!("{what} is stored in a form that can't be read"))
        .with_retry(crate::Retry::Never)
        .with_detail(reason.0)
        .into()
}

fn by_key(statement: Statement, key: &FunctionKey) -> Statement {
    statement.sql(" WHERE f.tenant = ").arg(key.tenant.as_str()).sql(" AND f.name = ").arg(key.name.as_str())
}

async fn read(session: &mut dyn Session, statement: Statement) -> Result<Option<Function>, Fault> {
    let Some(mut row) = session.row(statement).await? else { return Ok(None) };
    function(&mut row).map(Some).map_err(|reason| unreadable("the function", reason))
}

/// A row's key in its list, and what it is called where it can't be read.
pub(super) struct Place {
    pub(super) key: String,
    pub(super) name: String,
}

/// Whether a database takes a text from a cursor as a key. It need not be a valid one: a row under such a key is unreadable, and
/// the list goes on after it.
pub(super) fn is_plain(key: &str) -> bool {
    key.len() <= 256 && !key.chars().any(char::is_control)
}

/// Collects a page of what queries give that ask for one row more than fits.
pub(super) struct Pager<T> {
    kind: CursorKind,
    limit: usize,
    decode: fn(&mut Row) -> Result<T, Unreadable>,
    place: fn(&Row) -> Result<Place, Unreadable>,
    page: Page<T>,
    bytes: usize,
    last: Option<String>,
}

impl<T: Send> Pager<T> {
    pub(super) fn new(
        kind: CursorKind,
        request: &PageRequest,
        decode: fn(&mut Row) -> Result<T, Unreadable>,
        place: fn(&Row) -> Result<Place, Unreadable>,
    ) -> Self {
        let page = Page::new(Vec::new(), None);
        Self { kind, limit: request.effective_limit(), decode, place, page, bytes: 0, last: None }
    }

    /// Adds the rows of a query. Says whether the page is full, and more would come.
    pub(super) async fn add(&mut self, session: &mut dyn Session, statement: Statement) -> Result<bool, Fault> {
        let mut is_full = false;
        let mut take = |mut row: Row| {
            if self.page.items.len() + self.page.unreadable.len() >= self.limit || self.bytes > PAGE_BYTES {
                self.page.next = self.last.as_deref().map(|key| Cursor::after(self.kind, key));
                is_full = true;
                return ControlFlow::Break(());
            }
            self.bytes += row.size();
            let place = (self.place)(&row);
            match (self.decode)(&mut row) {
                Ok(item) => self.page.items.push(item),
                Err(Unreadable(reason)) => {
                    let name = place.as_ref().map_or_else(|_| "?".to_owned(), |place| place.name.clone());
                    self.page.unreadable.push(UnreadableRow::new(name, reason));
                }
            }
            // Where it can't be read either, the list goes on after the row before.
            if let Ok(place) = place {
                self.last = Some(place.key);
            }
            ControlFlow::Continue(())
        };
        session.each(statement, &mut take).await?;
        Ok(is_full)
    }

    pub(super) fn finish(self) -> Page<T> {
        self.page
    }
}

fn limit_plus_one(page: &PageRequest) -> i64 {
    stored(u64::try_from(page.effective_limit() + 1).unwrap_or(u64::MAX))
}

/// Adds a limit that leaves room for one row more than fits.
pub(super) fn limited(statement: Statement, page: &PageRequest) -> Statement {
    statement.sql(" LIMIT ").arg(limit_plus_one(page))
}

fn shared_function(row: &mut Row) -> Result<Arc<Function>, Unreadable> {
    function(row).map(Arc::new)
}

fn place_by_name(row: &Row) -> Result<Place, Unreadable> {
    let name = row.peek_text(1)?;
    Ok(Place { key: name.to_owned(), name: name.to_owned() })
}

fn place_by_key(row: &Row) -> Result<Place, Unreadable> {
    let key = format!("{}/{}", row.peek_text(0)?, row.peek_text(1)?);
    Ok(Place { key: key.clone(), name: key })
}

pub(super) struct Create<'a> {
    pub(super) function: &'a Function,
    pub(super) revision: &'a Revision,
}

#[async_trait]
impl Operation for Create<'_> {
    type Answer = ();

    async fn run(&self, session: &mut dyn Session) -> Result<(), Fault> {
        let Self { function, revision } = self;
        check_revision(function, revision)?;
        let dialect = session.dialect();
        let status = &function.status;
        let insert = dialect
            .sql(
                "INSERT INTO fg_functions (tenant, name, id, owner, driver, phase, generation, version, created_at, \
                 updated_at, reconcile_at, format, spec, status) VALUES (",
            )
            .list([
                function.key.tenant.as_str(),
                function.key.name.as_str(),
                &function.id.to_string(),
                function.owner.as_str(),
                function.spec.driver.as_str(),
                status.phase.as_str(),
            ])
            .sql(", ")
            .list([
                Some(stored(function.generation.get())),
                Some(stored(function.version.get())),
                Some(function.created_at.as_micros()),
                Some(function.updated_at.as_micros()),
                status.reconcile_at.map(Timestamp::as_micros),
                Some(FORMAT),
            ])
            .sql(", ")
            .list([json(&function.spec)?, json(status)?])
            .sql(")");
        session.execute(insert).await.map_err(|fault| match fault.is(FaultKind::Duplicate) {
            true => Error::new(ErrorKind::AlreadyExists, "a function of this name exists already")
                .with_context("function", function.key.name.as_str())
                .into(),
            false => fault,
        })?;
        insert_labels(session, function).await?;
        insert_revision(session, revision).await
    }
}

async fn insert_labels(session: &mut dyn Session, function: &Function) -> Result<(), Fault> {
    let mut labels = function.spec.labels.iter().peekable();
    if labels.peek().is_none() {
        return Ok(());
    }
    let insert = "INSERT INTO fg_function_labels (tenant, label_key, label_value, name, seq) VALUES ";
    let mut statement = session.dialect().sql(insert);
    while let Some((key, value)) = labels.next() {
        statement = statement
            .sql("(")
            .arg(function.key.tenant.as_str())
            .sql(", ")
            .list([key.as_bytes(), value.as_bytes()])
            .sql(", ")
            .arg(function.key.name.as_str())
            // By its number a function is found with one look, in place of two.
            .sql(", (SELECT seq FROM fg_functions WHERE tenant = ")
            .arg(function.key.tenant.as_str())
            .sql(" AND name = ")
            .arg(function.key.name.as_str())
            .sql(if labels.peek().is_some() { ")), " } else { "))" });
    }
    session.execute(statement).await?;
    Ok(())
}

async fn delete_labels(session: &mut dyn Session, key: &FunctionKey) -> Result<(), Fault> {
    let delete = session.dialect().sql("DELETE FROM fg_function_labels WHERE tenant = ").arg(key.tenant.as_str());
    session.execute(delete.sql(" AND name = ").arg(key.name.as_str())).await?;
    Ok(())
}

async fn insert_revision(session: &mut dyn Session, revision: &Revision) -> Result<(), Fault> {
    let insert = session
        .dialect()
        .sql("INSERT INTO fg_revisions (function_id, generation, tenant, format, document) VALUES (")
        .arg(revision.function.to_string())
        .sql(", ")
        .arg(stored(revision.generation.get()))
        .sql(", ")
        .arg(revision.key.tenant.as_str())
        .sql(", ")
        .arg(FORMAT)
        .sql(", ")
        .arg(json(revision)?)
        .sql(")");
    session.execute(insert).await.map_err(|fault| match fault.is(FaultKind::Duplicate) {
        true => function_changed(&revision.key).into(),
        false => fault,
    })?;
    Ok(())
}

pub(super) struct Get<'a> {
    pub(super) key: &'a FunctionKey,
}

#[async_trait]
impl Operation for Get<'_> {
    type Answer = Option<Arc<Function>>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let select = session.dialect().sql("SELECT ").sql(COLUMNS).sql(" FROM fg_functions f");
        Ok(read(session, by_key(select, self.key)).await?.map(Arc::new))
    }
}

pub(super) struct Find {
    pub(super) id: FunctionId,
}

#[async_trait]
impl Operation for Find {
    type Answer = Option<Arc<Function>>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let select = session.dialect().sql("SELECT ").sql(COLUMNS).sql(" FROM fg_functions f WHERE f.id = ");
        Ok(read(session, select.arg(self.id.to_string())).await?.map(Arc::new))
    }
}

pub(super) struct Update<'a> {
    pub(super) function: &'a Function,
    pub(super) expected: Version,
    pub(super) revision: Option<&'a Revision>,
    /// How many revisions are kept.
    pub(super) keep: u64,
}

#[async_trait]
impl Operation for Update<'_> {
    type Answer = Arc<Function>;

    async fn run(&self, session: &mut dyn Session) -> Result<Arc<Function>, Fault> {
        let Self { function, expected, revision, .. } = self;
        if let Some(revision) = revision {
            check_revision(function, revision)?;
        }
        let key = &function.key;
        let dialect = session.dialect();
        let select = dialect.sql("SELECT f.id, f.version FROM fg_functions f");
        let Some(mut row) = session.row(by_key(select, key).sql(dialect.for_update)).await? else {
            return Err(function_not_found(key).into());
        };
        let is_same = row.text(0).is_ok_and(|id| id == function.id.to_string())
            && row.int(1).is_ok_and(|version| version == stored(expected.get()));
        if !is_same {
            return Err(function_changed(key).into());
        }
        let mut function = Function::clone(function);
        function.version = expected.next();
        if let Some(revision) = revision {
            insert_revision(session, revision).await?;
        }
        let update = dialect
            .sql("UPDATE fg_functions SET owner = ")
            .arg(function.owner.as_str())
            .sql(", driver = ")
            .arg(function.spec.driver.as_str())
            .sql(", generation = ")
            .arg(stored(function.generation.get()))
            .sql(", created_at = ")
            .arg(function.created_at.as_micros())
            .sql(", updated_at = ")
            .arg(function.updated_at.as_micros())
            .sql(", format = ")
            .arg(FORMAT)
            .sql(", spec = ")
            .arg(json(&function.spec)?);
        session.execute(set_status(update.sql(", "), &function)?).await?;
        delete_labels(session, key).await?;
        insert_labels(session, &function).await?;
        if revision.is_some() && function.generation.get() > self.keep {
            self.forget_revisions(session, &function).await?;
        }
        Ok(Arc::new(function))
    }
}

/// Sets what follows from a status, and the version, of a row that is known to be the right one.
fn set_status(statement: Statement, function: &Function) -> Result<Statement, Fault> {
    let FunctionKey { tenant, name } = &function.key;
    Ok(statement
        .sql("version = ")
        .arg(stored(function.version.get()))
        .sql(", phase = ")
        .arg(function.status.phase.as_str())
        .sql(", reconcile_at = ")
        .arg(function.status.reconcile_at.map(Timestamp::as_micros))
        .sql(", status = ")
        .arg(json(&function.status)?)
        .sql(" WHERE tenant = ")
        .arg(tenant.as_str())
        .sql(" AND name = ")
        .arg(name.as_str()))
}

impl Update<'_> {
    /// Deletes the oldest revisions that are too many and that nothing refers to.
    async fn forget_revisions(&self, session: &mut dyn Session, function: &Function) -> Result<(), Fault> {
        let id = function.id.to_string();
        let dialect = session.dialect();
        let select = dialect.sql("SELECT generation FROM fg_revisions WHERE function_id = ").arg(id.as_str());
        let rows = session.rows(select.sql(" ORDER BY generation")).await?;
        let status = &function.status;
        let is_needed = |wanted: i64| {
            let wanted = u64::try_from(wanted).ok().and_then(Generation::new);
            wanted.is_none_or(|wanted| {
                wanted == function.generation
                    || status.deployment(wanted).is_some()
                    || status.route.iter().any(|entry| entry.generation == wanted)
            })
        };
        let excess = rows.len().saturating_sub(usize::try_from(self.keep).unwrap_or(usize::MAX));
        let old = rows.into_iter().filter_map(|mut row| row.int(0).ok()).filter(|old| !is_needed(*old));
        for old in old.take(excess).collect::<Vec<_>>() {
            let delete = dialect.sql("DELETE FROM fg_revisions WHERE function_id = ").arg(id.as_str());
            session.execute(delete.sql(" AND generation = ").arg(old)).await?;
        }
        Ok(())
    }
}

pub(super) struct List<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) filter: &'a FunctionFilter,
    pub(super) page: &'a PageRequest,
}

impl List<'_> {
    fn select(&self, dialect: &'static Dialect, after: Option<&str>) -> Statement {
        let FunctionFilter { owner, labels, phase, driver, name_prefix } = self.filter;
        let select = dialect.sql("SELECT ").sql(COLUMNS).sql(" FROM ");
        // The table that the list goes along is the one whose index is in the order of names.
        let (mut statement, along) = match labels.split_first() {
            None => (select.sql("fg_functions f WHERE f.tenant = ").arg(self.tenant.as_str()), "f.name"),
            Some(((key, value), _)) => {
                let from = "fg_function_labels l JOIN fg_functions f ON f.seq = l.seq WHERE l.tenant = ";
                let statement = select.sql(from).arg(self.tenant.as_str()).sql(" AND l.label_key = ");
                (statement.arg(key.as_bytes()).sql(" AND l.label_value = ").arg(value.as_bytes()), "l.name")
            }
        };
        for (key, value) in labels.iter().skip(1) {
            let exists = " AND EXISTS (SELECT 1 FROM fg_function_labels m WHERE m.tenant = f.tenant AND m.name = f.name \
                          AND m.label_key = ";
            statement = statement.sql(exists).arg(key.as_bytes()).sql(" AND m.label_value = ");
            statement = statement.arg(value.as_bytes()).sql(")");
        }
        let equals = [
            ("owner", owner.as_ref().map(AsRef::as_ref)),
            ("phase", phase.map(|phase| phase.as_str())),
            ("driver", driver.as_ref().map(AsRef::as_ref)),
        ];
        for (column, value) in equals {
            if let Some(value) = value {
                statement = statement.sql(" AND f.").sql(column).sql(" = ").arg(value);
            }
        }
        if let Some(prefix) = name_prefix {
            // What follows in a name is a letter, a digit or '-': all of it sorts before this.
            statement = statement.sql(" AND ").sql(along).sql(" >= ").arg(prefix.as_str());
            statement = statement.sql(" AND ").sql(along).sql(" < ").arg(format!("{prefix}\u{7f}"));
        }
        if let Some(after) = after {
            statement = statement.sql(" AND ").sql(along).sql(" > ").arg(after);
        }
        limited(statement.sql(" ORDER BY ").sql(along), self.page)
    }
}

#[async_trait]
impl Operation for List<'_> {
    type Answer = Page<Arc<Function>>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let after = self.page.key(CursorKind::Functions)?;
        let mut pager = Pager::new(CursorKind::Functions, self.page, shared_function, place_by_name);
        // No name has other characters than these, and databases do not take all.
        let is_possible = |prefix: &String| prefix.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if self.filter.name_prefix.as_ref().is_some_and(|prefix| !is_possible(prefix)) {
            return Ok(pager.finish());
        }
        if after.as_deref().is_some_and(|after| !is_plain(after)) {
            return Err(invalid_cursor().into());
        }
        let statement = self.select(session.dialect(), after.as_deref());
        pager.add(session, statement).await?;
        Ok(pager.finish())
    }
}

pub(super) struct ScanAll<'a> {
    pub(super) page: &'a PageRequest,
}

#[async_trait]
impl Operation for ScanAll<'_> {
    type Answer = Page<Arc<Function>>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let after = self.page.key(CursorKind::Scan)?;
        let after = after.as_deref().map(|after| after.split_once('/').ok_or_else(invalid_cursor)).transpose()?;
        let mut pager = Pager::new(CursorKind::Scan, self.page, shared_function, place_by_key);
        let dialect = session.dialect();
        let select = || dialect.sql("SELECT ").sql(COLUMNS).sql(" FROM fg_functions f");
        let Some((tenant, name)) = after else {
            pager.add(session, limited(select().sql(" ORDER BY f.tenant, f.name"), self.page)).await?;
            return Ok(pager.finish());
        };
        if !is_plain(tenant) || !is_plain(name) {
            return Err(invalid_cursor().into());
        }
        // Two queries that go along the index; not every database does so for both at once.
        let rest = select().sql(" WHERE f.tenant = ").arg(tenant).sql(" AND f.name > ").arg(name);
        if !pager.add(session, limited(rest.sql(" ORDER BY f.tenant, f.name"), self.page)).await? {
            let others = select().sql(" WHERE f.tenant > ").arg(tenant).sql(" ORDER BY f.tenant, f.name");
            pager.add(session, limited(others, self.page)).await?;
        }
        Ok(pager.finish())
    }
}

pub(super) struct ScanDue {
    pub(super) now: Timestamp,
    pub(super) limit: usize,
}

#[async_trait]
impl Operation for ScanDue {
    type Answer = Vec<FunctionKey>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let select = "SELECT tenant, name FROM fg_functions WHERE reconcile_at IS NOT NULL AND reconcile_at <= ";
        let select = session.dialect().sql(select).arg(self.now.as_micros());
        let limit = stored(u64::try_from(self.limit).unwrap_or(u64::MAX));
        let rows = session.rows(select.sql(" ORDER BY reconcile_at, tenant, name LIMIT ").arg(limit)).await?;
        let keys = rows.into_iter().filter_map(|mut row| match (row.parse(0), row.parse(1)) {
            (Ok(tenant), Ok(name)) => Some(FunctionKey::new(tenant, name)),
            (Err(Unreadable(reason)), _) | (_, Err(Unreadable(reason))) => {
                tracing::error!(reason, "a function that is due is stored under a name that can't be read");
                None
            }
        });
        Ok(keys.collect())
    }
}

const REVISION: &str = "SELECT generation, format, document FROM fg_revisions WHERE function_id = ";

fn revision(row: &mut Row) -> Result<Arc<Revision>, Unreadable> {
    row.check_format(1, FORMAT)?;
    row.json(2)
}

pub(super) struct GetRevision<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) function: FunctionId,
    pub(super) generation: Generation,
}

#[async_trait]
impl Operation for GetRevision<'_> {
    type Answer = Option<Arc<Revision>>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let select = session.dialect().sql(REVISION).arg(self.function.to_string());
        let select = select.sql(" AND generation = ").arg(stored(self.generation.get()));
        let row = session.row(select.sql(" AND tenant = ").arg(self.tenant.as_str())).await?;
        let Some(mut row) = row else { return Ok(None) };
        revision(&mut row).map(Some).map_err(|reason| unreadable("the revision", reason))
    }
}

pub(super) struct ListRevisions<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) function: FunctionId,
    pub(super) page: &'a PageRequest,
}

#[async_trait]
impl Operation for ListRevisions<'_> {
    type Answer = Page<Arc<Revision>>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let select = session.dialect().sql(REVISION).arg(self.function.to_string());
        let mut select = select.sql(" AND tenant = ").arg(self.tenant.as_str());
        if let Some(after) = self.page.key(CursorKind::Revisions)? {
            let after = after.parse().ok().and_then(Generation::new).ok_or_else(invalid_cursor)?;
            select = select.sql(" AND generation < ").arg(stored(after.get()));
        }
        let mut pager = Pager::new(CursorKind::Revisions, self.page, revision, place_by_generation);
        pager.add(session, limited(select.sql(" ORDER BY generation DESC"), self.page)).await?;
        Ok(pager.finish())
    }
}

fn place_by_generation(row: &Row) -> Result<Place, Unreadable> {
    let generation = row.peek_int(0)?;
    Ok(Place { key: generation.to_string(), name: format!("generation {generation}") })
}

/// Time of leases in microseconds.
fn micros(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX / 4)
}

fn is_held(now: i64, held: Option<(i64, i64)>) -> bool {
    // A clock that jumped backwards must not prolong a lease: before its start it is over, too. The epoch keeps the
    // former holder from writing.
    held.is_some_and(|(from, until)| from <= now && now < until)
}

/// The database's time, and the lease of a row as it is now.
const LEASE_COLUMNS: &str = ", f.lease_epoch, f.lease_from, f.lease_until";

struct LeaseRow {
    now: i64,
    epoch: i64,
    held: Option<(i64, i64)>,
}

/// Reads the time and [`LEASE_COLUMNS`] from a column on.
fn lease_row(row: &mut Row, at: usize) -> Result<LeaseRow, Fault> {
    let mut read = || {
        let (now, epoch) = (row.int(at)?, row.int(at + 1)?);
        Ok(LeaseRow { now, epoch, held: row.opt_int(at + 2)?.zip(row.opt_int(at + 3)?) })
    };
    read().map_err(|reason| unreadable("the lease of the function", reason))
}

pub(super) struct AcquireLease<'a> {
    pub(super) key: &'a FunctionKey,
    pub(super) ttl: Duration,
}

#[async_trait]
impl Operation for AcquireLease<'_> {
    type Answer = Option<Lease>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let dialect = session.dialect();
        let select = dialect.sql("SELECT f.id, ").sql(dialect.now).sql(LEASE_COLUMNS).sql(" FROM fg_functions f");
        let row = session.row(by_key(select, self.key).sql(dialect.for_update)).await?;
        let Some(mut row) = row else { return Ok(None) };
        let LeaseRow { now, epoch, held } = lease_row(&mut row, 1)?;
        if is_held(now, held) {
            return Ok(None);
        }
        let id = row.parse(0).map_err(|reason| unreadable("the function", reason))?;
        let epoch = epoch + 1;
        let update = dialect.sql("UPDATE fg_functions SET lease_epoch = ").arg(epoch).sql(", lease_from = ").arg(now);
        let update = update.sql(", lease_until = ").arg(now.saturating_add(micros(self.ttl)));
        let update = update.sql(" WHERE tenant = ").arg(self.key.tenant.as_str());
        session.execute(update.sql(" AND name = ").arg(self.key.name.as_str())).await?;
        Ok(Some(Lease::new(self.key.clone(), id, u64::try_from(epoch).unwrap_or_default())))
    }
}

/// The function that a lease is for, locked, and the time; if the lease still holds.
async fn leased(session: &mut dyn Session, lease: &Lease) -> Result<(Function, i64), Fault> {
    let dialect = session.dialect();
    let select = dialect.sql("SELECT ").sql(COLUMNS).sql(", ").sql(dialect.now).sql(LEASE_COLUMNS);
    let select = by_key(select.sql(" FROM fg_functions f"), &lease.key).sql(dialect.for_update);
    let Some(mut row) = session.row(select).await? else { return Err(lease_lost(&lease.key).into()) };
    let LeaseRow { now, epoch, held } = lease_row(&mut row, COLUMN_COUNT)?;
    let function = function(&mut row).map_err(|reason| unreadable("the function", reason))?;
    let is_its = function.id == lease.function && epoch == stored(lease.epoch);
    if is_its && is_held(now, held) { Ok((function, now)) } else { Err(lease_lost(&lease.key).into()) }
}

pub(super) struct RenewLease<'a> {
    pub(super) lease: &'a Lease,
    pub(super) ttl: Duration,
}

#[async_trait]
impl Operation for RenewLease<'_> {
    type Answer = ();

    async fn run(&self, session: &mut dyn Session) -> Result<(), Fault> {
        let (_, now) = leased(session, self.lease).await?;
        let FunctionKey { tenant, name } = &self.lease.key;
        let update = session.dialect().sql("UPDATE fg_functions SET lease_from = ").arg(now).sql(", lease_until = ");
        let update = update.arg(now.saturating_add(micros(self.ttl))).sql(" WHERE tenant = ").arg(tenant.as_str());
        session.execute(update.sql(" AND name = ").arg(name.as_str())).await?;
        Ok(())
    }
}

pub(super) struct ReleaseLease<'a> {
    pub(super) lease: &'a Lease,
}

#[async_trait]
impl Operation for ReleaseLease<'_> {
    type Answer = ();

    async fn run(&self, session: &mut dyn Session) -> Result<(), Fault> {
        let Lease { key, function, epoch, .. } = self.lease;
        let update = "UPDATE fg_functions SET lease_from = NULL, lease_until = NULL WHERE tenant = ";
        let update = session.dialect().sql(update).arg(key.tenant.as_str()).sql(" AND name = ").arg(key.name.as_str());
        let update = update.sql(" AND id = ").arg(function.to_string()).sql(" AND lease_epoch = ").arg(stored(*epoch));
        session.execute(update).await?;
        Ok(())
    }
}

pub(super) struct UpdateStatus<'a> {
    pub(super) lease: &'a Lease,
    pub(super) expected: Version,
    pub(super) status: &'a FunctionStatus,
}

#[async_trait]
impl Operation for UpdateStatus<'_> {
    type Answer = Arc<Function>;

    async fn run(&self, session: &mut dyn Session) -> Result<Arc<Function>, Fault> {
        let Self { lease, expected, status } = self;
        let (mut function, _) = leased(session, lease).await?;
        if function.version != *expected {
            return Err(function_changed(&lease.key).into());
        }
        function.version = expected.next();
        function.status = FunctionStatus::clone(status);
        let update = session.dialect().sql("UPDATE fg_functions SET ");
        session.execute(set_status(update, &function)?).await?;
        Ok(Arc::new(function))
    }
}

pub(super) struct Delete<'a> {
    pub(super) lease: &'a Lease,
    pub(super) expected: Version,
}

#[async_trait]
impl Operation for Delete<'_> {
    type Answer = ();

    async fn run(&self, session: &mut dyn Session) -> Result<(), Fault> {
        let Lease { key, function, .. } = self.lease;
        if leased(session, self.lease).await?.0.version != self.expected {
            return Err(function_changed(key).into());
        }
        delete_labels(session, key).await?;
        let dialect = session.dialect();
        let revisions = dialect.sql("DELETE FROM fg_revisions WHERE function_id = ").arg(function.to_string());
        session.execute(revisions).await?;
        let row = dialect.sql("DELETE FROM fg_functions WHERE tenant = ").arg(key.tenant.as_str());
        session.execute(row.sql(" AND name = ").arg(key.name.as_str())).await?;
        Ok(())
    }
}
