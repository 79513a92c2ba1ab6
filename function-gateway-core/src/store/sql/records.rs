//! Records of executions and figures over them, as they are read.

use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;

use super::Operation;
use super::batch::ROLLUP_FORMAT;
use super::engine::{Dialect, Row, Session, Statement, Unreadable};
use super::fault::Fault;
use super::functions::{Pager, Place, is_plain, limited, unreadable};
use super::record_row;
use crate::store::page::invalid_cursor;
use crate::store::statistics::{Minute, Rollup};
use crate::{
    CursorKind, InvocationId, InvocationRecord, Page, PageRequest, RecordFilter, Statistics, StatisticsQuery, TenantId,
};

pub(super) struct Get<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) id: InvocationId,
}

#[async_trait]
impl Operation for Get<'_> {
    type Answer = Option<Arc<InvocationRecord>>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let select =
            session.dialect().sql("SELECT ").sql(record_row::COLUMNS).sql(" FROM fg_invocations i WHERE i.id = ");
        let select = select.arg(self.id.to_string()).sql(" AND i.tenant = ").arg(self.tenant.as_str());
        let Some(mut row) = session.row(select).await? else { return Ok(None) };
        record_row::decode(&mut row).map(Some).map_err(|reason| unreadable("the record of the execution", reason))
    }
}

pub(super) struct List<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) filter: &'a RecordFilter,
    pub(super) page: &'a PageRequest,
}

impl List<'_> {
    fn select(&self, dialect: &'static Dialect, after: Option<(i64, &str)>) -> Statement {
        let RecordFilter { name, function, state, class, caller, labels, from, until } = self.filter;
        let select = dialect.sql("SELECT ").sql(record_row::COLUMNS).sql(" FROM ");
        // The table that the list goes along is the one whose index is in the order of time.
        let (mut statement, created_at, id) = match labels.first() {
            None => {
                let statement = select.sql("fg_invocations i WHERE i.tenant = ").arg(self.tenant.as_str());
                (statement, "i.created_at", "i.id")
            }
            Some((key, value)) => {
                let from = "fg_invocation_labels l JOIN fg_invocations i ON i.id = l.id WHERE l.tenant = ";
                let statement = select.sql(from).arg(self.tenant.as_str()).sql(" AND l.label_key = ");
                let statement = statement.arg(key.as_bytes()).sql(" AND l.label_value = ").arg(value.as_bytes());
                (statement, "l.created_at", "l.id")
            }
        };
        for (key, value) in labels.iter().skip(1) {
            let exists = " AND EXISTS (SELECT 1 FROM fg_invocation_labels m WHERE m.id = i.id AND m.label_key = ";
            statement = statement.sql(exists).arg(key.as_bytes()).sql(" AND m.label_value = ");
            statement = statement.arg(value.as_bytes()).sql(")");
        }
        let function = function.map(|function| function.to_string());
        let equals = [
            ("name", name.as_ref().map(AsRef::as_ref)),
            ("function_id", function.as_deref()),
            ("state", state.map(|state| state.as_str())),
            ("class", class.map(|class| class.as_str())),
            ("caller", caller.as_ref().map(AsRef::as_ref)),
        ];
        for (column, value) in equals {
            if let Some(value) = value {
                statement = statement.sql(" AND i.").sql(column).sql(" = ").arg(value);
            }
        }
        if let Some(from) = from {
            statement = statement.sql(" AND ").sql(created_at).sql(" >= ").arg(from.as_micros());
        }
        if let Some(until) = until {
            statement = statement.sql(" AND ").sql(created_at).sql(" < ").arg(until.as_micros());
        }
        if let Some(after) = after {
            statement = after_place(statement, (created_at, id), after);
        }
        let order = format!(" ORDER BY {created_at} DESC, {id} DESC");
        limited(statement.sql(&order), self.page)
    }
}

#[async_trait]
impl Operation for List<'_> {
    type Answer = Page<Arc<InvocationRecord>>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let after = self.page.key(CursorKind::Records)?;
        let after = after.as_deref().map(|after| read_place(after).ok_or_else(invalid_cursor)).transpose()?;
        let mut pager = Pager::new(CursorKind::Records, self.page, record_row::decode, place);
        let select = self.select(session.dialect(), after);
        pager.add(session, select).await?;
        Ok(pager.finish())
    }
}

/// Adds that a list by time and id, newest first, goes on after a place; with the columns of both.
pub(super) fn after_place(statement: Statement, (created_at, id): (&str, &str), (at, after): (i64, &str)) -> Statement {
    // Said so that every database takes it as one range of its index, and looks through those of that time alone.
    let statement = statement.sql(" AND ").sql(created_at).sql(" <= ").arg(at).sql(" AND (");
    statement.sql(created_at).sql(" < ").arg(at).sql(" OR ").sql(id).sql(" < ").arg(after).sql(")")
}

/// The place of a row that begins with time and id. As [`place_in_time`](crate::store::page::place_in_time) has it, whatever
/// stands there as an id.
pub(super) fn place(row: &Row) -> Result<Place, Unreadable> {
    let (at, id) = (row.peek_int(0)?, row.peek_text(1)?);
    Ok(Place { key: format!("{at}/{id}"), name: id.to_owned() })
}

/// Reads a place, of which the id need not be one.
pub(super) fn read_place(key: &str) -> Option<(i64, &str)> {
    let (at, id) = key.split_once('/').filter(|(_, id)| is_plain(id))?;
    Some((at.parse().ok()?, id))
}

pub(super) struct ReadStatistics<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) query: &'a StatisticsQuery,
}

impl ReadStatistics<'_> {
    fn select(&self, dialect: &'static Dialect, minutes: &std::ops::Range<Minute>) -> Statement {
        let select = "SELECT id, format, document FROM fg_rollups WHERE tenant = ";
        let mut select = dialect.sql(select).arg(self.tenant.as_str());
        if let Some(name) = &self.query.name {
            select = select.sql(" AND name = ").arg(name.as_str());
        }
        let select = select.sql(" AND minute >= ").arg(minutes.start.get());
        select.sql(" AND minute < ").arg(minutes.end.get())
    }
}

#[async_trait]
impl Operation for ReadStatistics<'_> {
    type Answer = Statistics;

    async fn run(&self, session: &mut dyn Session) -> Result<Statistics, Fault> {
        let minutes = Minute::range(self.query);
        let mut sum = Rollup::default();
        if minutes.is_empty() {
            return Ok(sum.statistics());
        }
        let select = self.select(session.dialect(), &minutes);
        let mut take = |mut row: Row| {
            let read = row.check_format(1, ROLLUP_FORMAT).and_then(|_| row.json::<Rollup>(2));
            match read {
                Ok(rollup) => sum.merge(&rollup),
                Err(Unreadable(reason)) => {
                    let id = row.text(0).unwrap_or_default();
                    tracing::error!(id, reason, "figures over executions are left out, since they can't be read");
                }
            }
            ControlFlow::Continue(())
        };
        session.each(select, &mut take).await?;
        Ok(sum.statistics())
    }
}

#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests {
    use std::time::Duration;

    use super::super::SqlStore;
    use super::super::tests::{is_along_indexes, is_along_indexes_of_time};
    use super::*;
    use crate::{ErrorClass, FunctionId, InvocationState, Timestamp};

    #[tokio::test]
    async fn lists_and_figures_are_read_along_indexes_in_their_order() {
        let store = SqlStore::open("sqlite::memory:").await.unwrap();
        let dialect = store.0.engine.dialect();
        let (tenant, page): (TenantId, _) = ("acme".parse().unwrap(), PageRequest::default());
        let all = RecordFilter::default;
        let mut filters = vec![all(), all().with_label("a", "b"), all().with_label("a", "b").with_label("c", "d")];
        let mut filter = |set: &dyn Fn(&mut RecordFilter)| {
            let mut filter = all();
            set(&mut filter);
            filters.push(filter);
        };
        filter(&|filter| filter.name = Some("a".parse().unwrap()));
        filter(&|filter| filter.function = Some(FunctionId::generate()));
        filter(&|filter| filter.state = Some(InvocationState::Failed));
        filter(&|filter| filter.class = Some(ErrorClass::Function));
        filter(&|filter| filter.caller = Some("ann".parse().unwrap()));
        filter(&|filter| (filter.from, filter.until) = (Some(Timestamp::now()), Some(Timestamp::now())));
        for filter in &filters {
            let list = List { tenant: &tenant, filter, page: &page };
            for after in [None, Some((1, "x"))] {
                let select = list.select(dialect, after);
                match filter.labels.is_empty() {
                    true => is_along_indexes_of_time(&store, select).await,
                    false => is_along_indexes(&store, select).await,
                }
            }
        }
        let day = StatisticsQuery::new(Timestamp::now(), Timestamp::now().plus(Duration::from_secs(86_400)));
        for query in [day.clone(), day.of("a".parse().unwrap())] {
            let minutes = Minute::range(&query);
            is_along_indexes(&store, ReadStatistics { tenant: &tenant, query: &query }.select(dialect, &minutes)).await;
        }
    }
}
