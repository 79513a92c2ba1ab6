//! Functions, their revisions and leases, with an index for each way they are looked up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::{MemoryStoreOptions, page};
use crate::store::page::invalid_cursor;
use crate::store::{check_revision, function_changed, function_not_found, lease_lost};
use crate::{
    CursorKind, Error, ErrorKind, Function, FunctionFilter, FunctionId, FunctionKey, FunctionName, FunctionStatus,
    Generation, Lease, Page, PageRequest, Result, Retry, Revision, TenantId, Timestamp, Version,
};

/// What belongs to one function.
#[derive(Debug)]
struct Row {
    function: Arc<Function>,
    revisions: BTreeMap<Generation, Arc<Revision>>,
    /// The epoch of the newest lease; 0 before the first.
    epoch: u64,
    /// From when to when the newest lease holds, unless it was given back.
    held: Option<(Timestamp, Timestamp)>,
}

impl Row {
    fn is_held(&self, now: Timestamp) -> bool {
        // A clock that jumped backwards must not prolong a lease: before its start it is over, too. The epoch keeps the
        // former holder from writing.
        self.held.is_some_and(|(from, until)| from <= now && now < until)
    }
}

/// A name as it sorts, filled up with zeros: comparing it follows no pointer, so that the order of 100,000 names is kept
/// at little cost. Longer text, as a prefix may be, is cut; it is no name.
type SortedName = [u8; FunctionName::MAX_LEN + 1];

fn sorted(name: &str) -> SortedName {
    let mut sorted = [0; FunctionName::MAX_LEN + 1];
    for (to, from) in sorted.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    sorted
}

/// All functions. Everything that changes more than one of its parts is one method.
#[derive(Debug)]
pub(super) struct Functions {
    max_functions: usize,
    max_revisions: usize,
    rows: HashMap<FunctionKey, Row>,
    by_id: HashMap<FunctionId, FunctionKey>,
    /// In the order of lists.
    by_name: BTreeMap<TenantId, BTreeMap<SortedName, Arc<Function>>>,
    due: BTreeSet<(Timestamp, FunctionKey)>,
}

impl Functions {
    pub(super) fn new(options: &MemoryStoreOptions) -> Self {
        Self {
            max_functions: options.max_functions,
            max_revisions: options.max_revisions_per_function,
            rows: HashMap::new(),
            by_id: HashMap::new(),
            by_name: BTreeMap::new(),
            due: BTreeSet::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The row of a function if the tenant is its own.
    fn row_of(&self, tenant: &TenantId, id: FunctionId) -> Option<&Row> {
        self.by_id.get(&id).filter(|key| key.tenant == *tenant).and_then(|key| self.rows.get(key))
    }

    pub(super) fn get(&self, key: &FunctionKey) -> Option<Arc<Function>> {
        self.rows.get(key).map(|row| row.function.clone())
    }

    pub(super) fn find(&self, id: FunctionId) -> Option<Arc<Function>> {
        self.by_id.get(&id).and_then(|key| self.get(key))
    }

    pub(super) fn create(&mut self, function: Arc<Function>, revision: Arc<Revision>) -> Result<()> {
        check_revision(&function, &revision)?;
        if self.rows.contains_key(&function.key) || self.by_id.contains_key(&function.id) {
            return Err(Error::new(ErrorKind::AlreadyExists, "a function of this name exists already")
                .with_context("function", function.key.name.as_str()));
        }
        if self.len() >= self.max_functions {
            let message = format!("the store is full: it takes {} functions (max_functions)", self.max_functions);
            return Err(Error::new(ErrorKind::Store, message).with_retry(Retry::Never));
        }
        let revisions = BTreeMap::from([(revision.generation, revision)]);
        let row = Row { function: function.clone(), revisions, epoch: 0, held: None };
        self.rows.insert(function.key.clone(), row);
        self.by_id.insert(function.id, function.key.clone());
        self.index(function);
        Ok(())
    }

    /// Notes a function where lists and scans go by, in place of its former self.
    fn index(&mut self, function: Arc<Function>) {
        let FunctionKey { tenant, name } = &function.key;
        if let Some(at) = function.status.reconcile_at {
            self.due.insert((at, function.key.clone()));
        }
        match self.by_name.get_mut(tenant) {
            Some(names) => names.insert(sorted(name.as_str()), function),
            None => self.by_name.entry(tenant.clone()).or_default().insert(sorted(name.as_str()), function),
        };
    }

    /// Puts a function in place of its former self.
    fn replace(&mut self, function: Function) -> Arc<Function> {
        let function = Arc::new(function);
        if let Some(row) = self.rows.get_mut(&function.key) {
            if let Some(at) = row.function.status.reconcile_at {
                self.due.remove(&(at, function.key.clone()));
            }
            row.function = function.clone();
        }
        self.index(function.clone());
        function
    }

    pub(super) fn update(
        &mut self,
        mut function: Function,
        expected: Version,
        revision: Option<Arc<Revision>>,
    ) -> Result<Arc<Function>> {
        if let Some(revision) = &revision {
            check_revision(&function, revision)?;
        }
        let max_revisions = self.max_revisions;
        let row = self.rows.get_mut(&function.key).ok_or_else(|| function_not_found(&function.key))?;
        if row.function.id != function.id || row.function.version != expected {
            return Err(function_changed(&function.key));
        }
        if let Some(revision) = revision {
            if row.revisions.contains_key(&revision.generation) {
                return Err(function_changed(&function.key));
            }
            row.revisions.insert(revision.generation, revision);
            forget_revisions(&mut row.revisions, &function, max_revisions);
        }
        function.version = expected.next();
        Ok(self.replace(function))
    }

    pub(super) fn list(
        &self,
        tenant: &TenantId,
        filter: &FunctionFilter,
        request: &PageRequest,
    ) -> Result<Page<Arc<Function>>> {
        let after = request.key(CursorKind::Functions)?;
        let prefix = filter.name_prefix.as_deref().unwrap_or_default();
        let start = match after.as_deref() {
            Some(after) if after >= prefix => Bound::Excluded(sorted(after)),
            _ => Bound::Included(sorted(prefix)),
        };
        let names = self.by_name.get(tenant).into_iter().flat_map(|names| names.range((start, Bound::Unbounded)));
        let found = names
            .take_while(|(name, _)| name.starts_with(prefix.as_bytes()))
            .map(|(_, function)| function)
            .filter(|function| filter.matches(function))
            .cloned();
        Ok(page(found, request, CursorKind::Functions, |function| function.key.name.as_str().to_owned()))
    }

    pub(super) fn scan_all(&self, request: &PageRequest) -> Result<Page<Arc<Function>>> {
        let after = request.key(CursorKind::Scan)?;
        // A tenant's name holds no slash.
        let after = after.as_deref().map(|after| after.split_once('/').ok_or_else(invalid_cursor)).transpose()?;
        let start = after.map_or(Bound::Unbounded, |(tenant, _)| Bound::Included(tenant));
        let tenants = self.by_name.range::<str, _>((start, Bound::Unbounded));
        let found = tenants.flat_map(|(tenant, names)| {
            let start = match after {
                Some((after, name)) if after == tenant.as_str() => Bound::Excluded(sorted(name)),
                _ => Bound::Unbounded,
            };
            names.range((start, Bound::Unbounded)).map(|(_, function)| function.clone())
        });
        Ok(page(found, request, CursorKind::Scan, |function| function.key.to_string()))
    }

    pub(super) fn revision(&self, tenant: &TenantId, id: FunctionId, generation: Generation) -> Option<Arc<Revision>> {
        self.row_of(tenant, id)?.revisions.get(&generation).cloned()
    }

    pub(super) fn revisions(
        &self,
        tenant: &TenantId,
        id: FunctionId,
        request: &PageRequest,
    ) -> Result<Page<Arc<Revision>>> {
        let end = match request.key(CursorKind::Revisions)? {
            Some(after) => {
                let after = after.parse().ok().and_then(Generation::new);
                Bound::Excluded(after.ok_or_else(invalid_cursor)?)
            }
            None => Bound::Unbounded,
        };
        let revisions =
            self.row_of(tenant, id).into_iter().flat_map(|row| row.revisions.range((Bound::Unbounded, end)).rev());
        let found = revisions.map(|(_, revision)| revision.clone());
        Ok(page(found, request, CursorKind::Revisions, |revision| revision.generation.to_string()))
    }

    pub(super) fn scan_due(&self, now: Timestamp, limit: usize) -> Vec<FunctionKey> {
        self.due.iter().take_while(|(at, _)| *at <= now).take(limit).map(|(_, key)| key.clone()).collect()
    }

    pub(super) fn acquire_lease(&mut self, key: &FunctionKey, now: Timestamp, ttl: Duration) -> Option<Lease> {
        let row = self.rows.get_mut(key).filter(|row| !row.is_held(now))?;
        row.epoch += 1;
        row.held = Some((now, now.plus(ttl)));
        Some(Lease::new(key.clone(), row.function.id, row.epoch))
    }

    /// The row that a lease is for, if it still holds.
    fn leased(&mut self, lease: &Lease, now: Timestamp) -> Result<&mut Row> {
        self.rows
            .get_mut(&lease.key)
            .filter(|row| row.function.id == lease.function && row.epoch == lease.epoch && row.is_held(now))
            .ok_or_else(|| lease_lost(&lease.key))
    }

    pub(super) fn renew_lease(&mut self, lease: &Lease, now: Timestamp, ttl: Duration) -> Result<()> {
        self.leased(lease, now)?.held = Some((now, now.plus(ttl)));
        Ok(())
    }

    pub(super) fn release_lease(&mut self, lease: &Lease) {
        if let Some(row) = self.rows.get_mut(&lease.key)
            && row.function.id == lease.function
            && row.epoch == lease.epoch
        {
            row.held = None;
        }
    }

    pub(super) fn update_status(
        &mut self,
        lease: &Lease,
        now: Timestamp,
        expected: Version,
        status: &FunctionStatus,
    ) -> Result<Arc<Function>> {
        let row = self.leased(lease, now)?;
        if row.function.version != expected {
            return Err(function_changed(&lease.key));
        }
        let mut function = Function::clone(&row.function);
        function.status = status.clone();
        function.version = expected.next();
        Ok(self.replace(function))
    }

    pub(super) fn delete(&mut self, lease: &Lease, now: Timestamp, expected: Version) -> Result<()> {
        let row = self.leased(lease, now)?;
        if row.function.version != expected {
            return Err(function_changed(&lease.key));
        }
        if let Some(at) = row.function.status.reconcile_at {
            self.due.remove(&(at, lease.key.clone()));
        }
        self.rows.remove(&lease.key);
        self.by_id.remove(&lease.function);
        if let Some(names) = self.by_name.get_mut(&lease.key.tenant) {
            names.remove(&sorted(lease.key.name.as_str()));
            if names.is_empty() {
                self.by_name.remove(&lease.key.tenant);
            }
        }
        Ok(())
    }
}

/// Forgets the oldest revisions that are too many and that nothing refers to.
fn forget_revisions(revisions: &mut BTreeMap<Generation, Arc<Revision>>, function: &Function, max: usize) {
    let status = &function.status;
    let is_needed = |generation: Generation| {
        generation == function.generation
            || status.deployment(generation).is_some()
            || status.route.iter().any(|entry| entry.generation == generation)
    };
    while revisions.len() > max {
        let Some(oldest) = revisions.keys().copied().find(|generation| !is_needed(*generation)) else { return };
        revisions.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ManualClock, function_of};
    use super::*;
    use crate::RouteEntry;

    const TTL: Duration = Duration::from_secs(10);

    fn functions(options: &MemoryStoreOptions) -> Functions {
        Functions::new(options)
    }

    fn add(functions: &mut Functions, name: &str) -> Result<Arc<Function>> {
        let (function, revision) = function_of(name);
        let function = Arc::new(function);
        functions.create(function.clone(), Arc::new(revision)).map(|()| function)
    }

    #[test]
    fn a_full_store_names_its_limit_and_takes_another_after_a_deletion() {
        let clock = ManualClock::default();
        let mut functions = functions(&MemoryStoreOptions::default().with_max_functions(2));
        add(&mut functions, "a").unwrap();
        add(&mut functions, "b").unwrap();
        let error = add(&mut functions, "c").unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Store, Retry::Never));
        assert!(error.message().contains("2 functions (max_functions)"), "{error}");

        let taken = add(&mut functions, "a").unwrap_err();
        assert_eq!(
            taken.kind(),
            ErrorKind::AlreadyExists,
            "a name that is taken is the caller's matter, not the store's"
        );

        let key = functions.rows.keys().find(|key| key.name.as_str() == "a").unwrap().clone();
        let lease = functions.acquire_lease(&key, clock.time(), TTL).unwrap();
        functions.delete(&lease, clock.time(), Version::FIRST).unwrap();
        add(&mut functions, "c").unwrap();
        assert_eq!(functions.len(), 2);
    }

    #[test]
    fn the_longest_names_sort_and_a_longer_prefix_matches_none() {
        let mut functions = functions(&MemoryStoreOptions::default());
        let longest = "x".repeat(FunctionName::MAX_LEN);
        let key = add(&mut functions, &longest).unwrap().key.clone();
        add(&mut functions, "x").unwrap();
        for (prefix, expected) in
            [(longest.clone(), 1), (longest.clone() + "x", 0), (longest + "xx", 0), ("x\0".into(), 0)]
        {
            let filter = FunctionFilter::all().with_name_prefix(prefix);
            let page = functions.list(&key.tenant, &filter, &PageRequest::default()).unwrap();
            assert_eq!(page.items.len(), expected, "{filter:?}");
        }
    }

    #[test]
    fn nothing_is_left_of_a_deleted_function() {
        let clock = ManualClock::default();
        let mut functions = functions(&MemoryStoreOptions::default());
        let function = add(&mut functions, "a").unwrap();
        let lease = functions.acquire_lease(&function.key, clock.time(), TTL).unwrap();
        functions.delete(&lease, clock.time(), Version::FIRST).unwrap();
        let Functions { rows, by_name, by_id, due, .. } = &functions;
        assert!(rows.is_empty() && by_name.is_empty() && by_id.is_empty() && due.is_empty());
    }

    #[test]
    fn old_revisions_are_forgotten_except_those_in_use() {
        let mut functions = functions(&MemoryStoreOptions::default().with_max_revisions_per_function(3));
        let mut function = Function::clone(&add(&mut functions, "a").unwrap());
        function.status.route = vec![RouteEntry::all(Generation::FIRST)];
        for _ in 0..5 {
            function.generation = function.generation.next();
            let mut revision = function_of("a").1;
            (revision.function, revision.generation) = (function.id, function.generation);
            function = Function::clone(
                &functions.update(function.clone(), function.version, Some(Arc::new(revision))).unwrap(),
            );
        }
        let page = functions.revisions(&function.key.tenant, function.id, &PageRequest::default()).unwrap();
        let kept: Vec<_> = page.items.iter().map(|revision| revision.generation.get()).collect();
        assert_eq!(kept, [6, 5, 1]);
    }

    #[test]
    fn a_lease_runs_out_by_the_clock() {
        let clock = ManualClock::default();
        let mut functions = functions(&MemoryStoreOptions::default());
        let key = &add(&mut functions, "a").unwrap().key;
        let first = functions.acquire_lease(key, clock.time(), TTL).unwrap();
        clock.advance(TTL - Duration::from_micros(1));
        assert_eq!(functions.acquire_lease(key, clock.time(), TTL), None);
        functions.renew_lease(&first, clock.time(), TTL).unwrap();
        clock.advance(TTL - Duration::from_micros(1));
        assert_eq!(functions.acquire_lease(key, clock.time(), TTL), None);
        clock.advance(Duration::from_micros(1));
        assert_eq!(functions.renew_lease(&first, clock.time(), TTL).unwrap_err().kind(), ErrorKind::Conflict);
        assert!(functions.acquire_lease(key, clock.time(), TTL).unwrap().epoch > first.epoch);
    }

    #[test]
    fn a_clock_that_jumps_back_leaves_no_function_stuck() {
        let clock = ManualClock::default();
        let mut functions = functions(&MemoryStoreOptions::default());
        let key = &add(&mut functions, "a").unwrap().key;
        clock.advance(Duration::from_secs(86_400));
        let first = functions.acquire_lease(key, clock.time(), TTL).unwrap();
        let back = clock.time().minus(Duration::from_secs(86_400));
        let second = functions.acquire_lease(key, back, TTL).unwrap();
        assert!(second.epoch > first.epoch);
        let status = FunctionStatus::new(back);
        let late = functions.update_status(&first, back, Version::FIRST, &status).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Conflict);
    }
}
