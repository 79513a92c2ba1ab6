//! API keys.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::{MemoryStoreOptions, page};
use crate::store::page::{invalid_cursor, place_in_time, read_place_in_time};
use crate::store::{key_exists, key_not_found};
use crate::{ApiKey, ApiKeyId, CursorKind, Error, ErrorKind, Page, PageRequest, Result, Retry, TenantId, Timestamp};

/// All keys.
#[derive(Debug)]
pub(super) struct Keys {
    max: usize,
    by_id: HashMap<ApiKeyId, Arc<ApiKey>>,
    /// In the order of lists, which is from the end.
    by_time: HashMap<TenantId, BTreeSet<(Timestamp, ApiKeyId)>>,
}

impl Keys {
    pub(super) fn new(options: &MemoryStoreOptions) -> Self {
        Self { max: options.max_api_keys, by_id: HashMap::new(), by_time: HashMap::new() }
    }

    pub(super) fn add(&mut self, key: ApiKey) -> Result<()> {
        if self.by_id.contains_key(&key.id) {
            return Err(key_exists(key.id));
        }
        if self.by_id.len() >= self.max {
            let message = format!("the store is full: it takes {} API keys (max_api_keys)", self.max);
            return Err(Error::new(ErrorKind::Store, message).with_retry(Retry::Never));
        }
        self.by_time.entry(key.tenant.clone()).or_default().insert((key.created_at, key.id));
        self.by_id.insert(key.id, Arc::new(key));
        Ok(())
    }

    pub(super) fn find(&self, id: ApiKeyId) -> Option<Arc<ApiKey>> {
        self.by_id.get(&id).cloned()
    }

    pub(super) fn list(&self, tenant: &TenantId, request: &PageRequest) -> Result<Page<Arc<ApiKey>>> {
        let end = match request.key(CursorKind::ApiKeys)? {
            Some(after) => Bound::Excluded(read_place_in_time(&after).ok_or_else(invalid_cursor)?),
            None => Bound::Unbounded,
        };
        let places =
            self.by_time.get(tenant).into_iter().flat_map(|places| places.range((Bound::Unbounded, end)).rev());
        let found = places.filter_map(|(_, id)| self.find(*id));
        Ok(page(found, request, CursorKind::ApiKeys, |key| place_in_time(key.created_at, key.id)))
    }

    pub(super) fn revoke(&mut self, tenant: &TenantId, id: ApiKeyId, at: Timestamp) -> Result<Arc<ApiKey>> {
        let key = self.by_id.get_mut(&id).filter(|key| key.tenant == *tenant).ok_or_else(|| key_not_found(id))?;
        if key.revoked_at.is_none() {
            let mut revoked = ApiKey::clone(key);
            revoked.revoked_at = Some(at);
            *key = Arc::new(revoked);
        }
        Ok(Arc::clone(key))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::time;
    use super::*;

    #[test]
    fn a_store_that_is_full_of_keys_says_so_and_keeps_them() {
        let mut keys = Keys::new(&MemoryStoreOptions::default().with_max_api_keys(2));
        let key = |second| {
            let created = (time(second), "ann".parse().unwrap());
            ApiKey::new(ApiKeyId::generate(), "tenant".parse().unwrap(), "bob".parse().unwrap(), [0; 32], created)
        };
        keys.add(key(1)).unwrap();
        keys.add(key(2)).unwrap();
        let error = keys.add(key(3)).unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Store, Retry::Never));
        assert!(error.message().contains("2 API keys (max_api_keys)"), "{error}");
        assert_eq!(keys.list(&"tenant".parse().unwrap(), &PageRequest::default()).unwrap().items.len(), 2);
    }
}
