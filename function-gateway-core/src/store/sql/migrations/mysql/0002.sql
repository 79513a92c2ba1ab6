CREATE TABLE IF NOT EXISTS fg_api_keys (
    id         VARBINARY(36) NOT NULL PRIMARY KEY,
    tenant     VARBINARY(64) NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT,
    hash       VARBINARY(32) NOT NULL,
    format     BIGINT NOT NULL,
    document   LONGTEXT NOT NULL,
    INDEX fg_api_keys_by_time (tenant, created_at, id)
) ENGINE = InnoDB, CHARACTER SET = utf8mb4, COLLATE = utf8mb4_bin, ROW_FORMAT = DYNAMIC;

CREATE TABLE IF NOT EXISTS fg_audit (
    id         VARBINARY(36) NOT NULL PRIMARY KEY,
    tenant     VARBINARY(64) NOT NULL,
    name       VARBINARY(63),
    principal  VARBINARY(256) NOT NULL,
    action     VARBINARY(32) NOT NULL,
    created_at BIGINT NOT NULL,
    format     BIGINT NOT NULL,
    document   LONGTEXT NOT NULL,
    INDEX fg_audit_by_time (tenant, created_at, id),
    INDEX fg_audit_by_name (tenant, name, created_at, id),
    INDEX fg_audit_by_principal (tenant, principal, created_at, id),
    INDEX fg_audit_by_action (tenant, action, created_at, id),
    INDEX fg_audit_by_age (created_at)
) ENGINE = InnoDB, CHARACTER SET = utf8mb4, COLLATE = utf8mb4_bin, ROW_FORMAT = DYNAMIC;
