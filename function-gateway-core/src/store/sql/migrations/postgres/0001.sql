CREATE TABLE fg_functions (
    seq          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant       TEXT COLLATE "C" NOT NULL,
    name         TEXT COLLATE "C" NOT NULL,
    id           TEXT COLLATE "C" NOT NULL UNIQUE,
    owner        TEXT COLLATE "C" NOT NULL,
    driver       TEXT COLLATE "C" NOT NULL,
    phase        TEXT COLLATE "C" NOT NULL,
    generation   BIGINT  NOT NULL,
    version      BIGINT  NOT NULL,
    created_at   BIGINT  NOT NULL,
    updated_at   BIGINT  NOT NULL,
    reconcile_at BIGINT,
    lease_epoch  BIGINT  NOT NULL DEFAULT 0,
    lease_from   BIGINT,
    lease_until  BIGINT,
    format       BIGINT  NOT NULL,
    spec         TEXT    NOT NULL,
    status       TEXT    NOT NULL,
    UNIQUE (tenant, name)
);
CREATE INDEX fg_functions_by_owner ON fg_functions (tenant, owner, name);
CREATE INDEX fg_functions_by_driver ON fg_functions (tenant, driver, name);
CREATE INDEX fg_functions_by_phase ON fg_functions (tenant, phase, name);
CREATE INDEX fg_functions_due ON fg_functions (reconcile_at, tenant, name) WHERE reconcile_at IS NOT NULL;

CREATE TABLE fg_function_labels (
    tenant      TEXT COLLATE "C" NOT NULL,
    label_key   BYTEA NOT NULL,
    label_value BYTEA NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    seq         BIGINT NOT NULL,
    PRIMARY KEY (tenant, label_key, label_value, name)
);
CREATE INDEX fg_function_labels_by_name ON fg_function_labels (tenant, name);

CREATE TABLE fg_revisions (
    function_id TEXT COLLATE "C" NOT NULL,
    generation  BIGINT  NOT NULL,
    tenant      TEXT COLLATE "C" NOT NULL,
    format      BIGINT  NOT NULL,
    document    TEXT    NOT NULL,
    PRIMARY KEY (function_id, generation)
);

CREATE TABLE fg_invocations (
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant      TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    function_id TEXT COLLATE "C" NOT NULL,
    state       TEXT COLLATE "C" NOT NULL,
    class       TEXT COLLATE "C",
    caller      TEXT COLLATE "C" NOT NULL,
    created_at  BIGINT  NOT NULL,
    finished_at BIGINT,
    format      BIGINT  NOT NULL,
    document    TEXT    NOT NULL,
    payload     BYTEA,
    result      BYTEA,
    logs        BYTEA
);
CREATE INDEX fg_invocations_by_time ON fg_invocations (tenant, created_at, id);
CREATE INDEX fg_invocations_by_name ON fg_invocations (tenant, name, created_at, id);
CREATE INDEX fg_invocations_by_function ON fg_invocations (function_id, created_at, id);
CREATE INDEX fg_invocations_by_state ON fg_invocations (tenant, state, created_at, id);
CREATE INDEX fg_invocations_by_class ON fg_invocations (tenant, class, created_at, id) WHERE class IS NOT NULL;
CREATE INDEX fg_invocations_by_caller ON fg_invocations (tenant, caller, created_at, id);
CREATE INDEX fg_invocations_ended ON fg_invocations (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE fg_invocation_labels (
    id          TEXT COLLATE "C" NOT NULL,
    label_key   BYTEA    NOT NULL,
    label_value BYTEA    NOT NULL,
    tenant      TEXT COLLATE "C" NOT NULL,
    created_at  BIGINT  NOT NULL,
    PRIMARY KEY (id, label_key)
);
CREATE INDEX fg_invocation_labels_by_time ON fg_invocation_labels (tenant, label_key, label_value, created_at, id);

CREATE TABLE fg_rollups (
    id       TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant   TEXT COLLATE "C" NOT NULL,
    name     TEXT COLLATE "C" NOT NULL,
    minute   BIGINT  NOT NULL,
    format   BIGINT  NOT NULL,
    document TEXT    NOT NULL
);
CREATE INDEX fg_rollups_by_name ON fg_rollups (tenant, name, minute);
CREATE INDEX fg_rollups_by_minute ON fg_rollups (tenant, minute);
