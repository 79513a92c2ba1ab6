CREATE TABLE fg_submissions (
    id               TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant           TEXT COLLATE "C" NOT NULL,
    name             TEXT COLLATE "C" NOT NULL,
    function_id      TEXT COLLATE "C" NOT NULL,
    pinned           BIGINT,
    state            TEXT COLLATE "C" NOT NULL,
    due_at           BIGINT,
    epoch            BIGINT NOT NULL,
    attempts         BIGINT NOT NULL,
    repeatable       BIGINT NOT NULL,
    cancel_requested BIGINT NOT NULL,
    created_at       BIGINT NOT NULL,
    ended_at         BIGINT,
    dead_at          BIGINT,
    expires_at       BIGINT,
    idem_key         BYTEA,
    format           BIGINT NOT NULL,
    document         TEXT   NOT NULL,
    progress         TEXT   NOT NULL,
    payload          BYTEA  NOT NULL,
    result           BYTEA
);
CREATE INDEX fg_submissions_due ON fg_submissions (tenant, due_at, id) WHERE due_at IS NOT NULL;
CREATE UNIQUE INDEX fg_submissions_by_key ON fg_submissions (tenant, name, idem_key) WHERE idem_key IS NOT NULL;
CREATE INDEX fg_submissions_dead ON fg_submissions (tenant, dead_at, id) WHERE dead_at IS NOT NULL;
CREATE INDEX fg_submissions_dead_by_name ON fg_submissions (tenant, name, dead_at, id) WHERE dead_at IS NOT NULL;
CREATE INDEX fg_submissions_expiring ON fg_submissions (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX fg_submissions_pinned ON fg_submissions (function_id, pinned) WHERE pinned IS NOT NULL;

CREATE TABLE fg_queue_depth (
    tenant      TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    open        BIGINT NOT NULL,
    dead        BIGINT NOT NULL,
    pinned      BIGINT NOT NULL,
    next_due_at BIGINT,
    PRIMARY KEY (tenant, name)
) WITH (fillfactor = 50);
CREATE INDEX fg_queue_depth_due ON fg_queue_depth (next_due_at, tenant) WHERE next_due_at IS NOT NULL;

CREATE TABLE fg_commits (
    writer TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    batch  BIGINT NOT NULL,
    at     BIGINT NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE fg_documents (
    tenant  TEXT COLLATE "C" NOT NULL,
    kind    BYTEA  NOT NULL,
    name    BYTEA  NOT NULL,
    version BIGINT NOT NULL,
    format  BIGINT NOT NULL,
    content BYTEA  NOT NULL,
    PRIMARY KEY (tenant, kind, name)
);
