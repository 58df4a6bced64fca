-- What an answer said, one label per input in their order; null in rows of before this revision.
ALTER TABLE answer ADD COLUMN labels text[];

-- The truth, when it arrives: what was said and what it was, for each input of an answered request.
CREATE TABLE feedback (
  request_id text NOT NULL,
  position integer NOT NULL CHECK (position >= 0),
  system text NOT NULL,
  version integer NOT NULL,
  said text NOT NULL,
  truth text NOT NULL,
  actor text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (request_id, position)
);
CREATE INDEX feedback_latest ON feedback (system, version, at DESC);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON feedback FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON feedback FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
