//! Documents of what is built on the gateway.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use super::{MemoryStoreOptions, page};
use crate::store::{check_document, document_changed, document_exists, document_not_found};
use crate::{CursorKind, Error, ErrorKind, Page, PageRequest, Result, Retry, StoredDocument, TenantId, Version};

/// A tenant's documents by kind and name.
type Kinds = HashMap<String, BTreeMap<String, StoredDocument>>;

/// All documents.
#[derive(Debug)]
pub(super) struct Documents {
    max: usize,
    count: usize,
    by_tenant: HashMap<TenantId, Kinds>,
}

impl Documents {
    pub(super) fn new(options: &MemoryStoreOptions) -> Self {
        Self { max: options.max_documents, count: 0, by_tenant: HashMap::new() }
    }

    pub(super) fn put(&mut self, mut document: StoredDocument, expected: Option<Version>) -> Result<StoredDocument> {
        check_document(&document)?;
        let is_full = self.count >= self.max;
        let kinds = self.by_tenant.get_mut(&document.tenant);
        let documents = kinds.and_then(|kinds| kinds.get_mut(&document.kind));
        let kept = documents.and_then(|documents| documents.get_mut(&document.name));
        match (kept, expected) {
            (Some(_), None) => Err(document_exists(&document.name)),
            (None, Some(_)) => Err(document_not_found(&document.name)),
            (Some(kept), Some(expected)) if kept.version != expected => Err(document_changed(&document.name)),
            (Some(kept), Some(expected)) => {
                document.version = expected.next();
                kept.clone_from(&document);
                Ok(document)
            }
            (None, None) if is_full => {
                let message = format!("the store is full: it takes {} documents (max_documents)", self.max);
                Err(Error::new(ErrorKind::Store, message).with_retry(Retry::Never))
            }
            (None, None) => {
                document.version = Version::FIRST;
                let kinds = self.by_tenant.entry(document.tenant.clone()).or_default();
                kinds.entry(document.kind.clone()).or_default().insert(document.name.clone(), document.clone());
                self.count += 1;
                Ok(document)
            }
        }
    }

    fn kind(&self, tenant: &TenantId, kind: &str) -> Option<&BTreeMap<String, StoredDocument>> {
        self.by_tenant.get(tenant)?.get(kind)
    }

    pub(super) fn get(&self, tenant: &TenantId, kind: &str, name: &str) -> Option<StoredDocument> {
        self.kind(tenant, kind)?.get(name).cloned()
    }

    pub(super) fn list(&self, tenant: &TenantId, kind: &str, request: &PageRequest) -> Result<Page<StoredDocument>> {
        let after = request.key(CursorKind::Documents)?;
        let start = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let documents = self.kind(tenant, kind).into_iter();
        let found = documents.flat_map(|documents| documents.range::<str, _>((start, Bound::Unbounded)));
        let found = found.map(|(_, document)| document.clone());
        Ok(page(found, request, CursorKind::Documents, |document| document.name.clone()))
    }

    pub(super) fn delete(
        &mut self,
        tenant: &TenantId,
        kind: &str,
        name: &str,
        expected: Option<Version>,
    ) -> Result<()> {
        let kinds = self.by_tenant.get_mut(tenant).ok_or_else(|| document_not_found(name))?;
        let documents = kinds.get_mut(kind).ok_or_else(|| document_not_found(name))?;
        let version = documents.get(name).ok_or_else(|| document_not_found(name))?.version;
        if expected.is_some_and(|expected| expected != version) {
            return Err(document_changed(name));
        }
        documents.remove(name);
        self.count -= 1;
        if documents.is_empty() {
            kinds.remove(kind);
        }
        if kinds.is_empty() {
            self.by_tenant.remove(tenant);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(tenant: &str, name: &str) -> StoredDocument {
        StoredDocument::new(tenant.parse().unwrap(), "kind", name, "content")
    }

    #[test]
    fn a_store_that_is_full_of_documents_says_so_and_keeps_them() {
        let mut documents = Documents::new(&MemoryStoreOptions::default().with_max_documents(2));
        documents.put(document("a", "1"), None).unwrap();
        documents.put(document("b", "1"), None).unwrap();
        let error = documents.put(document("a", "2"), None).unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Store, Retry::Never));
        assert!(error.message().contains("2 documents (max_documents)"), "{error}");
        documents.put(document("a", "1"), Some(Version::FIRST)).unwrap();
        documents.delete(&"b".parse().unwrap(), "kind", "1", None).unwrap();
        documents.put(document("a", "2"), None).unwrap();
    }

    #[test]
    fn nothing_is_left_of_what_was_deleted() {
        let mut documents = Documents::new(&MemoryStoreOptions::default());
        for name in ["1", "2"] {
            documents.put(document("a", name), None).unwrap();
        }
        for name in ["1", "2"] {
            documents.delete(&"a".parse().unwrap(), "kind", name, None).unwrap();
        }
        assert!(documents.by_tenant.is_empty() && documents.count == 0);
    }
}
