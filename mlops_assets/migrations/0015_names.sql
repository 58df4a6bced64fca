-- Names become folders and keys. The rules are those of names.py; rows of before are not looked at (NOT VALID), each new one is.
DO $$
DECLARE found record;
BEGIN
  FOR found IN SELECT c.table_name FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name)
    WHERE c.table_schema = current_schema() AND t.table_type = 'BASE TABLE' AND c.column_name = 'system' LOOP
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT system_name CHECK (system ~ ''^[a-z][a-z0-9_-]{0,62}$'') NOT VALID', found.table_name);
  END LOOP;
  FOR found IN SELECT * FROM (VALUES ('dataset_version', 'version'), ('run_request', 'version'), ('attempt', 'dataset_version'),
    ('receipt', 'dataset_version')) x (table_name, column_name) LOOP
    EXECUTE format('ALTER TABLE %1$I ADD CONSTRAINT version_name CHECK (%2$I ~ ''^[a-z0-9][a-z0-9._-]{0,62}$'' AND %2$I !~ ''[.][.]'') NOT VALID',
      found.table_name, found.column_name);
  END LOOP;
  FOR found IN SELECT * FROM (VALUES ('attempt'), ('receipt'), ('promotion'), ('bundle_deleted')) x (table_name) LOOP
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT bundle_digest CHECK (bundle_sha256 ~ ''^[0-9a-f]{64}$'') NOT VALID', found.table_name);
  END LOOP;
  FOR found IN SELECT * FROM (VALUES ('receipt'), ('promotion')) x (table_name) LOOP
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT payload_size CHECK (octet_length(payload) <= 1048576) NOT VALID', found.table_name);
  END LOOP;
END $$;

-- A row that nobody signed must not stand in the way of one that is: whether a bundle was registered or recorded before is asked of the
-- rows that verify, under a lock. The numbers stay unique; the registrar steps over those that are taken.
ALTER TABLE receipt DROP CONSTRAINT receipt_system_bundle_sha256_key;
CREATE INDEX receipt_by_bundle ON receipt (system, bundle_sha256);
ALTER TABLE attempt DROP CONSTRAINT attempt_system_variant_dataset_version_bundle_sha256_key;
CREATE INDEX attempt_by_bundle ON attempt (system, bundle_sha256);
