-- Comments: what was read of each source, and what people say about it. Texts are masked before they come here.

-- How far a source has been read: a table of the application's database, or the files of a data set ("unsmile/train").
CREATE TABLE comment_source (
  source text PRIMARY KEY,
  read_to bigint NOT NULL DEFAULT 0,   -- every id up to here is in comment_ledger, or a hole, or was one that expired
  edits_to timestamptz,                -- edits were looked for up to here, by the source's updated_at
  looked_back_at timestamptz,          -- when edits were looked for again from far back
  sweep_at timestamptz,                -- where a look for edits that did not end within its tick goes on, and
  sweep_id bigint,                     -- after which id of that moment
  window_id bigint,                    -- up to here the newest ids were compared with the source; null: begin anew
  reconciled_at timestamptz,
  key_check bigint                     -- tells whether the key of the hashes is still the one that they were made with
);

-- Ids below read_to that were not there when they were passed: a transaction that commits late, or one that was rolled back.
CREATE TABLE comment_hole (
  source text NOT NULL REFERENCES comment_source,
  first_id bigint NOT NULL,
  last_id bigint NOT NULL CHECK (last_id >= first_id),
  since timestamptz NOT NULL DEFAULT now(),
  next_look_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (source, first_id)
);
CREATE INDEX comment_hole_due ON comment_hole (source, next_look_at);

-- Every content of every comment that was ever seen, once. The truth about what arrived.
CREATE TABLE comment_ledger (
  source text NOT NULL,
  id bigint NOT NULL,
  content_hash bigint NOT NULL,        -- of the unmasked content, with a key that stays here: it tells nothing of what was masked
  seen_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (source, id, content_hash)
);

-- Each comment as it stands now.
CREATE TABLE comment (
  source text NOT NULL,
  id bigint NOT NULL,
  content_hash bigint NOT NULL,
  text text NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  moderation jsonb,                    -- the source's moderation fields, as they are
  row_hash bigint,                     -- of text and moderation fields, what the source is compared by; null: nobody compares
  quarantined text CHECK (quarantined IN ('too_large', 'no_text', 'no_time')),  -- why its text is not here; no version uses it
  deleted_at timestamptz,              -- when it was found gone from its source: no later dataset version uses it
  PRIMARY KEY (source, id)
);

-- What somebody said that a comment is, about one content of it. The latest that holds is found by ingest/labels.py.
CREATE TABLE comment_label (
  sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  source text NOT NULL,
  id bigint NOT NULL,
  content_hash bigint NOT NULL,
  labels text[] NOT NULL CHECK (cardinality(labels) > 0 OR origin = 'moderation'),  -- none: the moderators took their decision back
  origin text NOT NULL CHECK (origin IN ('dataset', 'moderation', 'review')),
  actor text NOT NULL,                 -- a person's name, or the rule's
  at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX comment_label_of ON comment_label (source, id, sequence);

DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['comment_ledger', 'comment_label'] LOOP
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION refuse_change()', name);
    EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
  END LOOP;
END $$;
