CREATE TABLE fg_functions (
    seq          INTEGER PRIMARY KEY,
    tenant       TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    id           TEXT    NOT NULL UNIQUE,
    owner        TEXT    NOT NULL,
    driver       TEXT    NOT NULL,
    phase        TEXT    NOT NULL,
    generation   INTEGER NOT NULL,
    version      INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    reconcile_at INTEGER,
    lease_epoch  INTEGER NOT NULL DEFAULT 0,
    lease_from   INTEGER,
    lease_until  INTEGER,
    format       INTEGER NOT NULL,
    spec         TEXT    NOT NULL,
    status       TEXT    NOT NULL,
    UNIQUE (tenant, name)
) STRICT;
CREATE INDEX fg_functions_by_owner ON fg_functions (tenant, owner, name);
CREATE INDEX fg_functions_by_driver ON fg_functions (tenant, driver, name);
CREATE INDEX fg_functions_by_phase ON fg_functions (tenant, phase, name);
CREATE INDEX fg_functions_due ON fg_functions (reconcile_at, tenant, name) WHERE reconcile_at IS NOT NULL;

CREATE TABLE fg_function_labels (
    tenant      TEXT NOT NULL,
    label_key   BLOB NOT NULL,
    label_value BLOB NOT NULL,
    name        TEXT NOT NULL,
    seq         INTEGER NOT NULL,
    PRIMARY KEY (tenant, label_key, label_value, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX fg_function_labels_by_name ON fg_function_labels (tenant, name);

CREATE TABLE fg_revisions (
    function_id TEXT    NOT NULL,
    generation  INTEGER NOT NULL,
    tenant      TEXT    NOT NULL,
    format      INTEGER NOT NULL,
    document    TEXT    NOT NULL,
    PRIMARY KEY (function_id, generation)
) STRICT;

CREATE TABLE fg_invocations (
    id          TEXT    NOT NULL PRIMARY KEY,
    tenant      TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    function_id TEXT    NOT NULL,
    state       TEXT    NOT NULL,
    class       TEXT,
    caller      TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    finished_at INTEGER,
    format      INTEGER NOT NULL,
    document    TEXT    NOT NULL,
    payload     BLOB,
    result      BLOB,
    logs        BLOB
) STRICT;
CREATE INDEX fg_invocations_by_time ON fg_invocations (tenant, created_at, id);
CREATE INDEX fg_invocations_by_name ON fg_invocations (tenant, name, created_at, id);
CREATE INDEX fg_invocations_by_function ON fg_invocations (function_id, created_at, id);
CREATE INDEX fg_invocations_by_state ON fg_invocations (tenant, state, created_at, id);
CREATE INDEX fg_invocations_by_class ON fg_invocations (tenant, class, created_at, id) WHERE class IS NOT NULL;
CREATE INDEX fg_invocations_by_caller ON fg_invocations (tenant, caller, created_at, id);
CREATE INDEX fg_invocations_ended ON fg_invocations (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE fg_invocation_labels (
    id          TEXT    NOT NULL,
    label_key   BLOB    NOT NULL,
    label_value BLOB    NOT NULL,
    tenant      TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (id, label_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX fg_invocation_labels_by_time ON fg_invocation_labels (tenant, label_key, label_value, created_at, id);

CREATE TABLE fg_rollups (
    id       TEXT    NOT NULL PRIMARY KEY,
    tenant   TEXT    NOT NULL,
    name     TEXT    NOT NULL,
    minute   INTEGER NOT NULL,
    format   INTEGER NOT NULL,
    document TEXT    NOT NULL
) STRICT;
CREATE INDEX fg_rollups_by_name ON fg_rollups (tenant, name, minute);
CREATE INDEX fg_rollups_by_minute ON fg_rollups (tenant, minute);
