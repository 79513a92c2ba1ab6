CREATE TABLE fg_submissions (
    id               TEXT    NOT NULL PRIMARY KEY,
    tenant           TEXT    NOT NULL,
    name             TEXT    NOT NULL,
    function_id      TEXT    NOT NULL,
    pinned           INTEGER,
    state            TEXT    NOT NULL,
    due_at           INTEGER,
    epoch            INTEGER NOT NULL,
    attempts         INTEGER NOT NULL,
    repeatable       INTEGER NOT NULL,
    cancel_requested INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    ended_at         INTEGER,
    dead_at          INTEGER,
    expires_at       INTEGER,
    idem_key         BLOB,
    format           INTEGER NOT NULL,
    document         TEXT    NOT NULL,
    progress         TEXT    NOT NULL,
    payload          BLOB    NOT NULL,
    result           BLOB
) STRICT;
CREATE INDEX fg_submissions_due ON fg_submissions (tenant, due_at, id) WHERE due_at IS NOT NULL;
CREATE UNIQUE INDEX fg_submissions_by_key ON fg_submissions (tenant, name, idem_key) WHERE idem_key IS NOT NULL;
CREATE INDEX fg_submissions_dead ON fg_submissions (tenant, dead_at, id) WHERE dead_at IS NOT NULL;
CREATE INDEX fg_submissions_dead_by_name ON fg_submissions (tenant, name, dead_at, id) WHERE dead_at IS NOT NULL;
CREATE INDEX fg_submissions_expiring ON fg_submissions (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX fg_submissions_pinned ON fg_submissions (function_id, pinned) WHERE pinned IS NOT NULL;

CREATE TABLE fg_queue_depth (
    tenant      TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    open        INTEGER NOT NULL,
    dead        INTEGER NOT NULL,
    pinned      INTEGER NOT NULL,
    next_due_at INTEGER,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX fg_queue_depth_due ON fg_queue_depth (next_due_at, tenant) WHERE next_due_at IS NOT NULL;

CREATE TABLE fg_commits (
    writer TEXT    NOT NULL PRIMARY KEY,
    batch  INTEGER NOT NULL,
    at     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE fg_documents (
    tenant  TEXT    NOT NULL,
    kind    BLOB    NOT NULL,
    name    BLOB    NOT NULL,
    version INTEGER NOT NULL,
    format  INTEGER NOT NULL,
    content BLOB    NOT NULL,
    PRIMARY KEY (tenant, kind, name)
) STRICT;
