//! Audit events.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{MemoryStoreOptions, between, page};
use crate::store::event_exists;
use crate::store::page::{invalid_cursor, place_in_time, read_place_in_time};
use crate::{
    AuditEvent, AuditEventId, AuditFilter, CursorKind, Page, PageRequest, Result, Retention, TenantId, Timestamp,
};

/// The place of an event in a list.
type Place = (Timestamp, AuditEventId);

/// The newest events.
#[derive(Debug)]
pub(super) struct Events {
    max: usize,
    by_id: HashMap<AuditEventId, TenantId>,
    /// Of all tenants, in the order in which they are forgotten.
    by_time: BTreeSet<Place>,
    /// In the order of lists, which is from the end.
    by_tenant: HashMap<TenantId, BTreeMap<Place, Arc<AuditEvent>>>,
}

impl Events {
    pub(super) fn new(options: &MemoryStoreOptions) -> Self {
        let max = options.max_audit_events;
        Self { max, by_id: HashMap::new(), by_time: BTreeSet::new(), by_tenant: HashMap::new() }
    }

    pub(super) fn append(&mut self, event: AuditEvent) -> Result<()> {
        let Entry::Vacant(entry) = self.by_id.entry(event.id) else { return Err(event_exists(&event)) };
        entry.insert(event.tenant.clone());
        let place = (event.at, event.id);
        self.by_time.insert(place);
        self.by_tenant.entry(event.tenant.clone()).or_default().insert(place, Arc::new(event));
        while self.by_time.len() > self.max && self.forget_oldest() {}
        Ok(())
    }

    /// Forgets the oldest event. Says whether there was one.
    fn forget_oldest(&mut self) -> bool {
        let Some(place) = self.by_time.pop_first() else { return false };
        if let Some(tenant) = self.by_id.remove(&place.1)
            && let Entry::Occupied(mut events) = self.by_tenant.entry(tenant)
        {
            events.get_mut().remove(&place);
            if events.get().is_empty() {
                events.remove();
            }
        }
        true
    }

    pub(super) fn list(
        &self,
        tenant: &TenantId,
        filter: &AuditFilter,
        request: &PageRequest,
    ) -> Result<Page<Arc<AuditEvent>>> {
        let after = request.key(CursorKind::Audit)?;
        let after = after.map(|after| read_place_in_time(&after).ok_or_else(invalid_cursor)).transpose()?;
        let first = AuditEventId::from_bytes([0; 16]);
        let Some(range) = between(first, filter.from, filter.until, after) else {
            return Ok(Page::new(Vec::new(), None));
        };
        let events = self.by_tenant.get(tenant).into_iter().flat_map(|events| events.range(range).rev());
        let found = events.map(|(_, event)| event).filter(|event| filter.matches(event)).cloned();
        Ok(page(found, request, CursorKind::Audit, |event| place_in_time(event.at, event.id)))
    }

    pub(super) fn retain(&mut self, retention: &Retention, now: Timestamp, limit: usize) -> u64 {
        let Some(max_age) = retention.max_audit_age else { return 0 };
        let oldest = now.minus(max_age);
        let mut deleted = 0;
        while deleted < limit && self.by_time.first().is_some_and(|(at, _)| *at < oldest) && self.forget_oldest() {
            deleted += 1;
        }
        u64::try_from(deleted).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::time;
    use super::*;
    use crate::{Action, CallContext, Principal};

    fn append(events: &mut Events, tenant: &str, second: i64) {
        let cx = CallContext::new(Principal::new(tenant.parse().unwrap(), "ann".parse().unwrap()));
        events.append(AuditEvent::new(time(second), &cx, Action::Update, true)).unwrap();
    }

    fn seconds(events: &Events, tenant: &str) -> Vec<i64> {
        let page = events.list(&tenant.parse().unwrap(), &AuditFilter::all(), &PageRequest::default()).unwrap();
        page.items.iter().map(|event| event.at.as_micros() / 1_000_000).collect()
    }

    #[test]
    fn the_newest_events_of_all_tenants_together_are_kept() {
        let mut events = Events::new(&MemoryStoreOptions::default().with_max_audit_events(4));
        for second in [1, 5, 2, 3, 6] {
            append(&mut events, "many", second);
        }
        append(&mut events, "few", 4);
        assert_eq!((seconds(&events, "many"), seconds(&events, "few")), (vec![6, 5, 3], vec![4]));
        append(&mut events, "few", 1);
        assert_eq!(seconds(&events, "few"), [4], "what is older than all that is kept is not kept");
    }

    #[test]
    fn nothing_is_left_of_what_retention_deleted() {
        let mut events = Events::new(&MemoryStoreOptions::default());
        for second in 0..10 {
            append(&mut events, "tenant", second);
        }
        let retention = Retention::keep_all().with_max_audit_age(Duration::from_secs(1));
        assert_eq!(events.retain(&retention, time(8), 3), 3);
        assert_eq!(events.retain(&retention, time(8), 100), 4);
        assert_eq!(seconds(&events, "tenant"), [9, 8, 7]);
        assert_eq!(events.retain(&retention, time(100), 100), 3);
        let Events { by_id, by_time, by_tenant, .. } = &events;
        assert!(by_id.is_empty() && by_time.is_empty() && by_tenant.is_empty());
    }
}
