-- Sections of a configuration as runs were asked for with them, under the SHA-256 of their text.
CREATE TABLE sections (
  sha256 text PRIMARY KEY,
  system text NOT NULL,
  body text NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
);

-- Which of them each request for a run was made with.
CREATE TABLE run_sections (
  system text NOT NULL,
  version text NOT NULL,
  attempt integer NOT NULL,
  sha256 text NOT NULL REFERENCES sections (sha256),
  PRIMARY KEY (system, version, attempt)
);

DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['sections', 'run_sections'] LOOP
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION refuse_change()', name);
    EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
  END LOOP;
END $$;
