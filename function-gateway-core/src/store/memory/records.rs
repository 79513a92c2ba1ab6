//! Records of executions, and figures over them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

// Every call looks four keys up. The hasher is seeded at random, and tells nobody what it makes of a key.
use foldhash::HashMap;

use super::{MemoryStoreOptions, between, page};
use crate::store::page::{invalid_cursor, place_in_time, read_place_in_time};
use crate::store::statistics::{Minute, Rollup};
use crate::store::{check_begin, check_finish, kept_bytes, record_exists, record_is_final};
use crate::{
    CursorKind, Error, ErrorKind, FunctionId, FunctionKey, FunctionName, InvocationId, InvocationRecord,
    InvocationState, Page, PageRequest, RecordFilter, Result, Retention, Statistics, StatisticsQuery, TenantId,
    Timestamp,
};

/// The place of a record in a list.
type Place = (Timestamp, InvocationId);

fn place(record: &InvocationRecord) -> Place {
    (record.created_at, record.id)
}

/// Which records a list is over.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Scope {
    Tenant(TenantId),
    Name(FunctionKey),
    Function(TenantId, FunctionId),
}

impl Scope {
    fn all_of(record: &InvocationRecord) -> [Self; 3] {
        let key = &record.key;
        [Self::Tenant(key.tenant.clone()), Self::Name(key.clone()), Self::Function(key.tenant.clone(), record.function)]
    }

    /// The smallest one that holds all that a filter means.
    fn of_filter(tenant: &TenantId, filter: &RecordFilter) -> Self {
        match (filter.function, &filter.name) {
            (Some(function), _) => Self::Function(tenant.clone(), function),
            (None, Some(name)) => Self::Name(FunctionKey::new(tenant.clone(), name.clone())),
            (None, None) => Self::Tenant(tenant.clone()),
        }
    }
}

/// Records in the orders in which they are read and deleted.
#[derive(Debug, Default)]
struct Index {
    lists: HashMap<Scope, BTreeMap<Place, Arc<InvocationRecord>>>,
    /// Those that have ended, by when they did.
    ended: BTreeSet<Place>,
    /// Those that have ended, of each function.
    ended_of: HashMap<FunctionId, BTreeSet<Place>>,
}

impl Index {
    fn insert(&mut self, record: &Arc<InvocationRecord>) {
        for scope in Scope::all_of(record) {
            self.lists.entry(scope).or_default().insert(place(record), record.clone());
        }
        if let Some(at) = ended_at(record) {
            self.ended.insert((at, record.id));
            self.ended_of.entry(record.function).or_default().insert(place(record));
        }
    }

    fn remove(&mut self, record: &InvocationRecord) {
        for scope in Scope::all_of(record) {
            if let Entry::Occupied(mut list) = self.lists.entry(scope) {
                list.get_mut().remove(&place(record));
                if list.get().is_empty() {
                    list.remove();
                }
            }
        }
        if let Some(at) = ended_at(record) {
            self.ended.remove(&(at, record.id));
            if let Entry::Occupied(mut places) = self.ended_of.entry(record.function) {
                places.get_mut().remove(&place(record));
                if places.get().is_empty() {
                    places.remove();
                }
            }
        }
    }
}

/// All records.
///
/// Finishing an execution is on the path of every call, so a record that has ended is only appended to `fresh`. It gets
/// into the index when somebody reads a list, and never if nobody does before it is forgotten.
#[derive(Debug)]
pub(super) struct Records {
    max_records: usize,
    max_kept_bytes: u64,
    /// Every record.
    by_id: HashMap<InvocationId, Arc<InvocationRecord>>,
    /// Those that have ended and are not in the index yet, in the order in which they came.
    fresh: VecDeque<Arc<InvocationRecord>>,
    /// All others.
    index: Index,
    /// How many are of invocations that the queue holds and that have not ended. Its own limit goes for them.
    queued: usize,
    /// How many bytes of payloads, results and logs there are.
    kept_bytes: u64,
    rollups: Rollups,
}

impl Records {
    /// How many records are put into the index before others get their turn.
    const INDEX_BATCH: usize = 1024;

    pub(super) fn new(options: &MemoryStoreOptions) -> Self {
        Self {
            max_records: options.max_records,
            max_kept_bytes: options.max_kept_bytes,
            by_id: HashMap::default(),
            fresh: VecDeque::new(),
            index: Index::default(),
            queued: 0,
            kept_bytes: 0,
            rollups: Rollups { max: options.max_rollups, count: 0, minutes: BTreeMap::new() },
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn begin(&mut self, record: Arc<InvocationRecord>) -> Result<()> {
        check_begin(&record)?;
        if self.contains(record.id) {
            return Err(record_exists(&record));
        }
        if self.limited() >= self.max_records && !self.forget_oldest() {
            let message = format!("the store is full: {} executions are running (max_records)", self.limited());
            return Err(Error::new(ErrorKind::Store, message));
        }
        self.insert(record);
        Ok(())
    }

    /// Keeps the record of an invocation that the queue holds from now on.
    pub(super) fn accept(&mut self, record: Arc<InvocationRecord>) -> Result<()> {
        check_begin(&record)?;
        if self.contains(record.id) {
            return Err(record_exists(&record));
        }
        self.queued += 1;
        self.insert(record);
        Ok(())
    }

    /// Notes how far an invocation is that the queue holds.
    pub(super) fn set_state(&mut self, id: InvocationId, state: InvocationState) {
        let Some(record) = self.by_id.get_mut(&id).filter(|record| !record.state.is_final()) else { return };
        Arc::make_mut(record).state = state;
        self.index.insert(record);
    }

    /// Ends an invocation that the queue held. A record that is final already stays as it is.
    pub(super) fn end(&mut self, record: Option<Arc<InvocationRecord>>, was_accepted: bool) {
        self.queued = self.queued.saturating_sub(usize::from(was_accepted));
        if let Some(record) = record {
            drop(self.finish(record));
        }
        self.keep_bounds();
    }

    pub(super) fn contains(&self, id: InvocationId) -> bool {
        self.by_id.contains_key(&id)
    }

    /// How many there are that `max_records` goes for.
    fn limited(&self) -> usize {
        self.len().saturating_sub(self.queued)
    }

    fn insert(&mut self, record: Arc<InvocationRecord>) {
        self.kept_bytes += stored_bytes(&record);
        self.index.insert(&record);
        self.by_id.insert(record.id, record);
        self.keep_bounds();
    }

    pub(super) fn finish(&mut self, record: Arc<InvocationRecord>) -> Result<()> {
        let at = check_finish(&record)?;
        match self.by_id.entry(record.id) {
            Entry::Vacant(entry) => {
                entry.insert(record.clone());
            }
            Entry::Occupied(mut entry) => {
                let begun = entry.get();
                if begun.state.is_final()
                    || begun.key != record.key
                    || begun.function != record.function
                    || begun.caller != record.caller
                    || begun.created_at != record.created_at
                {
                    return Err(record_is_final(&record));
                }
                let begun = entry.insert(record.clone());
                self.index.remove(&begun);
                self.kept_bytes -= stored_bytes(&begun);
            }
        }
        self.kept_bytes += stored_bytes(&record);
        self.rollups.record(Minute::of(at), &record);
        self.fresh.push_back(record);
        self.keep_bounds();
        Ok(())
    }

    fn keep_bounds(&mut self) {
        while (self.limited() > self.max_records || self.kept_bytes > self.max_kept_bytes) && self.forget_oldest() {}
    }

    /// Forgets the record that ended first. Says whether there was one.
    fn forget_oldest(&mut self) -> bool {
        if let Some((_, id)) = self.index.ended.first().copied() {
            self.forget(id);
            return true;
        }
        let Some(record) = self.fresh.pop_front() else { return false };
        self.by_id.remove(&record.id);
        self.kept_bytes -= stored_bytes(&record);
        true
    }

    /// Forgets a record that is in the index.
    fn forget(&mut self, id: InvocationId) {
        if let Some(record) = self.by_id.remove(&id) {
            self.kept_bytes -= stored_bytes(&record);
            self.index.remove(&record);
        }
    }

    /// Puts a batch of what has come in into the index. Says whether that was all of it.
    pub(super) fn index_some(&mut self) -> bool {
        let batch = self.fresh.len().min(Self::INDEX_BATCH);
        for record in self.fresh.drain(..batch) {
            self.index.insert(&record);
        }
        self.fresh.is_empty()
    }

    pub(super) fn get(&self, tenant: &TenantId, id: InvocationId) -> Option<Arc<InvocationRecord>> {
        self.by_id.get(&id).filter(|record| record.key.tenant == *tenant).cloned()
    }

    /// Reads what is in the index.
    pub(super) fn list(
        &self,
        tenant: &TenantId,
        filter: &RecordFilter,
        request: &PageRequest,
    ) -> Result<Page<Arc<InvocationRecord>>> {
        let first_id = InvocationId::from_bytes([0; 16]);
        let after = request.key(CursorKind::Records)?;
        let after = after.map(|after| read_place_in_time(&after).ok_or_else(invalid_cursor)).transpose()?;
        let Some(range) = between(first_id, filter.from, filter.until, after) else {
            return Ok(Page::new(Vec::new(), None));
        };
        let list = self.index.lists.get(&Scope::of_filter(tenant, filter));
        let records = list.into_iter().flat_map(|list| list.range(range).rev()).map(|(_, record)| record);
        let found = records.filter(|record| filter.matches(record)).cloned();
        Ok(page(found, request, CursorKind::Records, |record| place_in_time(record.created_at, record.id)))
    }

    pub(super) fn statistics(&self, tenant: &TenantId, query: &StatisticsQuery) -> Statistics {
        self.rollups.statistics(tenant, query)
    }

    /// Deletes from what is in the index.
    pub(super) fn retain(&mut self, retention: &Retention, now: Timestamp, limit: usize) -> u64 {
        let mut deleted = 0;
        if let Some(max_age) = retention.max_statistics_age {
            self.rollups.forget_before(Minute::of(now.minus(max_age)));
        }
        if let Some(max_age) = retention.max_age {
            let oldest = now.minus(max_age);
            while deleted < limit
                && let Some((_, id)) = self.index.ended.first().copied().filter(|(at, _)| *at < oldest)
            {
                self.forget(id);
                deleted += 1;
            }
        }
        if let Some(max) = retention.max_per_function {
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            let too_many = self.index.ended_of.values().flat_map(|places| {
                let excess = places.len().saturating_sub(max);
                places.iter().take(excess).map(|(_, id)| *id)
            });
            let too_many: Vec<_> = too_many.take(limit - deleted).collect();
            deleted += too_many.len();
            for id in too_many {
                self.forget(id);
            }
        }
        u64::try_from(deleted).unwrap_or(u64::MAX)
    }
}

fn stored_bytes(record: &InvocationRecord) -> u64 {
    u64::try_from(kept_bytes(record)).unwrap_or(u64::MAX)
}

fn ended_at(record: &InvocationRecord) -> Option<Timestamp> {
    record.finished_at.filter(|_| record.state.is_final())
}

/// Figures by minute, tenant and function name.
#[derive(Debug)]
struct Rollups {
    max: usize,
    count: usize,
    minutes: BTreeMap<Minute, HashMap<TenantId, HashMap<FunctionName, Rollup>>>,
}

impl Rollups {
    fn record(&mut self, minute: Minute, record: &InvocationRecord) {
        let FunctionKey { tenant, name } = &record.key;
        let tenants = self.minutes.entry(minute).or_default();
        if let Some(rollup) = tenants.get_mut(tenant).and_then(|names| names.get_mut(name)) {
            rollup.record(record);
            return;
        }
        tenants.entry(tenant.clone()).or_default().entry(name.clone()).or_default().record(record);
        self.count += 1;
        while self.count > self.max
            && self.minutes.len() > 1
            && let Some((_, oldest)) = self.minutes.pop_first()
        {
            self.count -= oldest.values().map(HashMap::len).sum::<usize>();
        }
    }

    fn forget_before(&mut self, minute: Minute) {
        self.minutes = self.minutes.split_off(&minute);
        self.count = self.minutes.values().flat_map(HashMap::values).map(HashMap::len).sum();
    }

    fn statistics(&self, tenant: &TenantId, query: &StatisticsQuery) -> Statistics {
        let range = Minute::range(query);
        let mut sum = Rollup::default();
        if range.is_empty() {
            return sum.statistics();
        }
        for names in self.minutes.range(range).filter_map(|(_, tenants)| tenants.get(tenant)) {
            match &query.name {
                Some(name) => names.get(name).into_iter().for_each(|rollup| sum.merge(rollup)),
                None => names.values().for_each(|rollup| sum.merge(rollup)),
            }
        }
        sum.statistics()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{function_of, time};
    use super::*;
    use crate::KeptBytes;

    fn running(name: &str, at: Timestamp) -> InvocationRecord {
        let mut revision = function_of(name).1;
        revision.function = FunctionId::from_bytes([name.as_bytes()[0]; 16]);
        InvocationRecord::new(InvocationId::generate(), &revision, "caller".parse().unwrap(), at)
    }

    fn ended(name: &str, at: Timestamp) -> InvocationRecord {
        let mut record = running(name, at);
        record.state = InvocationState::Succeeded;
        record.finished_at = Some(at);
        record
    }

    fn all(records: &mut Records) -> Vec<InvocationId> {
        assert!(records.index_some());
        let tenant = function_of("a").0.key.tenant;
        let page = records.list(&tenant, &RecordFilter::default(), &PageRequest::default()).unwrap();
        page.items.iter().map(|record| record.id).collect()
    }

    fn assert_empty(records: &Records) {
        let Records { by_id, fresh, index: Index { lists, ended, ended_of }, kept_bytes, .. } = records;
        assert!(by_id.is_empty() && fresh.is_empty() && lists.is_empty() && ended.is_empty() && ended_of.is_empty());
        assert_eq!(*kept_bytes, 0);
    }

    #[test]
    fn the_oldest_final_records_make_room_whether_they_were_read_or_not() {
        for read_at in [0, 3, 7] {
            let mut records = Records::new(&MemoryStoreOptions::default().with_max_records(4));
            let begun = running("a", time(0));
            records.begin(Arc::new(begun.clone())).unwrap();
            let finished: Vec<_> = (1..=8).map(|second| ended("a", time(second))).collect();
            for (at, record) in finished.iter().enumerate() {
                if at == read_at {
                    all(&mut records);
                }
                records.finish(Arc::new(record.clone())).unwrap();
                assert!(records.len() <= 4);
            }
            let expected = [finished[7].id, finished[6].id, finished[5].id, begun.id];
            assert_eq!(all(&mut records), expected, "read after {read_at}");
            assert_eq!(records.fresh.len(), 0);
        }
    }

    #[test]
    fn executions_that_run_are_never_forgotten_and_a_store_full_of_them_says_so() {
        let mut records = Records::new(&MemoryStoreOptions::default().with_max_records(2));
        let begun = [running("a", time(0)), running("a", time(1))];
        records.finish(Arc::new(ended("a", time(0)))).unwrap();
        for record in &begun {
            records.begin(Arc::new(record.clone())).unwrap();
        }
        let error = records.begin(Arc::new(running("a", time(2)))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Store);
        assert!(error.message().contains("2 executions are running (max_records)"), "{error}");

        let mut ended = begun[0].clone();
        (ended.state, ended.finished_at) = (InvocationState::Failed, Some(time(3)));
        records.finish(Arc::new(ended)).unwrap();
        records.begin(Arc::new(running("a", time(4)))).unwrap();
        assert_eq!(records.len(), 2);
    }

    #[test]
    fn kept_bytes_are_bounded() {
        let mut records = Records::new(&MemoryStoreOptions::default().with_max_kept_bytes(250));
        let ids: Vec<_> = (0..5)
            .map(|second| {
                let mut record = ended("a", time(second));
                record.logs = Some(KeptBytes::cut(vec![b'x'; 100].into(), 100));
                let id = record.id;
                records.finish(Arc::new(record)).unwrap();
                id
            })
            .collect();
        assert_eq!(all(&mut records), [ids[4], ids[3]]);
        assert_eq!(records.kept_bytes, 200);
    }

    #[test]
    fn minutes_are_bounded_and_outlive_records() {
        let mut records = Records::new(&MemoryStoreOptions::default().with_max_records(0).with_max_rollups(3));
        for minute in 0..5 {
            for name in ["a", "b"] {
                records.finish(Arc::new(ended(name, time(60 * minute)))).unwrap();
            }
        }
        assert_empty(&records);
        let tenant = function_of("a").0.key.tenant;
        let query = StatisticsQuery::new(time(0), time(600));
        assert_eq!(records.statistics(&tenant, &query).count, 2, "four would be more than three");
        assert_eq!(records.rollups.count, 2);
    }

    #[test]
    fn nothing_is_left_of_what_retention_deleted() {
        let mut records = Records::new(&MemoryStoreOptions::default());
        for second in 0..10 {
            let mut record = ended("a", time(second));
            record.payload = Some(KeptBytes::cut("payload".into(), 4));
            records.finish(Arc::new(record)).unwrap();
        }
        assert!(records.index_some());
        let by_count = Retention::keep_all().with_max_per_function(6);
        assert_eq!(records.retain(&by_count, time(20), 3), 3);
        assert_eq!(records.retain(&by_count, time(20), 3), 1);
        let by_age = Retention::keep_all().with_max_age(Duration::from_secs(1));
        assert_eq!(records.retain(&by_age, time(20), 100), 6);
        assert_empty(&records);
    }

    #[test]
    fn indexing_goes_in_batches() {
        let mut records = Records::new(&MemoryStoreOptions::default());
        for _ in 0..=Records::INDEX_BATCH {
            records.finish(Arc::new(ended("a", time(0)))).unwrap();
        }
        assert!(!records.index_some());
        assert!(records.index_some());
        assert_eq!(records.index.ended.len(), Records::INDEX_BATCH + 1);
    }
}
