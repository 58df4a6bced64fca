-- Users who were forgotten lately: what they had confirmed before and the back-end verifies later is not kept. For a day, longer than any
-- server holds drawings.
CREATE TABLE forgotten_writer (
  system text NOT NULL,
  writer text NOT NULL,                  -- the user's pseudonym
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (system, writer)
);
