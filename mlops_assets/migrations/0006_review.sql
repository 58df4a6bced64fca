-- Which label of a comment holds, the review queue, and what dataset versions were cut from the ledger.

-- What the champion had said when a person was asked; a person who says the same needs no second opinion.
ALTER TABLE comment_label ADD COLUMN predicted text[];

-- What the current champion says of comments that nobody has labelled.
CREATE TABLE comment_score (
  system text NOT NULL,
  source text NOT NULL,
  id bigint NOT NULL,
  content_hash bigint NOT NULL,
  bundle_sha256 text NOT NULL,
  labels text[] NOT NULL,
  probabilities jsonb NOT NULL,
  uncertainty double precision NOT NULL CHECK (uncertainty BETWEEN 0 AND 1),
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (system, source, id)
);
CREATE INDEX comment_score_uncertain ON comment_score (system, uncertainty DESC, source, id);

-- The order in which the random arm takes comments: as good as random, the same everywhere, and new comments fall anywhere in it.
CREATE FUNCTION sample_order(source text, id bigint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN md5('20261121/' || source || '/' || id::text);
CREATE INDEX comment_sample ON comment (sample_order(source, id));

-- One comment (one content of it) that people are asked about, or that the random order reached when its label was known already.
CREATE TABLE review_task (
  task bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  system text NOT NULL,
  source text NOT NULL,
  id bigint NOT NULL,
  content_hash bigint NOT NULL,
  arm text NOT NULL CHECK (arm IN ('uncertain', 'random', 'known')),
  sampled boolean NOT NULL,              -- the random order has reached it: these rows alone say how often a label truly is
  predicted text[],
  uncertainty double precision,
  bundle_sha256 text,
  drawn_at timestamptz NOT NULL DEFAULT now(),
  closed_at timestamptz,
  leased_to text,
  leased_until timestamptz,
  skipped_by text[] NOT NULL DEFAULT '{}',
  UNIQUE (system, source, id, content_hash)
);
CREATE INDEX review_task_open ON review_task (system, task) WHERE closed_at IS NULL;

-- Dataset versions cut from the ledger. state: cut (what it holds is settled) -> landed (its objects are there, _READY last).
CREATE TABLE comment_cut (
  system text NOT NULL,
  version text NOT NULL,
  parent text NOT NULL,
  sequence_from bigint NOT NULL,         -- of comment_label; they name the cut and say when another is due, they do not decide what it holds
  sequence_to bigint NOT NULL,
  rows bigint NOT NULL,
  reason text NOT NULL,
  state text NOT NULL DEFAULT 'cut' CHECK (state IN ('cut', 'landed')),
  at timestamptz NOT NULL DEFAULT now(),
  landed_at timestamptz,
  PRIMARY KEY (system, version)
);

-- Whether comments arrive at this moment; costs the ledger's writers nothing.
CREATE INDEX comment_ledger_seen ON comment_ledger USING brin (seen_at) WITH (pages_per_range = 16);

-- What a cut says of each comment. The next cut holds what is otherwise now.
CREATE TABLE comment_cut_row (
  system text NOT NULL,
  version text NOT NULL,
  source text NOT NULL,
  id bigint NOT NULL,
  content_hash bigint NOT NULL,
  text text NOT NULL,
  labels text[] NOT NULL,
  created_at timestamptz NOT NULL,
  deleted boolean NOT NULL,
  PRIMARY KEY (system, version, source, id),
  FOREIGN KEY (system, version) REFERENCES comment_cut
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON comment_cut_row FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON comment_cut_row FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Labels in one order and without repeats, so that sets compare.
CREATE FUNCTION label_set(labels text[]) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN (SELECT array_agg(DISTINCT one COLLATE "C" ORDER BY one COLLATE "C") FROM unnest(labels) one);

-- What is said about the current content of each comment: of each person the latest, and the latest of what data sets and moderators say.
CREATE VIEW comment_opinion AS
SELECT DISTINCT ON (source, id, voter)
  source, id, content_hash, sequence, origin, actor, at, label_set(labels) AS labels, label_set(predicted) AS predicted
FROM (
  SELECT l.*, CASE origin WHEN 'review' THEN 'person ' || actor ELSE 'given' END AS voter
  FROM comment_label l JOIN comment c USING (source, id, content_hash)
) said
ORDER BY source, id, voter, sequence DESC;

-- The label that holds, if one does. ingest/labels.py has the rule in words and as a function; a test holds the two together.
CREATE VIEW comment_standing AS
SELECT source, id, content_hash, coalesce(agreed, given, alone)::text[] AS labels,
  CASE WHEN agreed IS NOT NULL THEN 'review' WHEN given IS NOT NULL THEN given_by WHEN alone IS NOT NULL THEN 'review' END AS origin,
  persons, persons > 0 AND agreed IS NULL AND NOT confirmed AS contested, sequence
FROM (
  SELECT source, id, max(content_hash) AS content_hash, max(persons) AS persons, max(sequence) AS sequence,
    CASE WHEN max(top) >= 2 AND count(DISTINCT labels::text) FILTER (WHERE origin = 'review' AND votes = top) = 1
      THEN max(labels::text) FILTER (WHERE origin = 'review' AND votes = top) END AS agreed,
    max(labels::text) FILTER (WHERE origin <> 'review') AS given,
    max(origin) FILTER (WHERE origin <> 'review') AS given_by,
    CASE WHEN max(persons) = 1 THEN max(labels::text) FILTER (WHERE origin = 'review' AND labels = predicted) END AS alone,
    -- One person who says what was said or predicted before.
    max(persons) = 1 AND coalesce(
      max(labels::text) FILTER (WHERE origin = 'review')
        = coalesce(max(labels::text) FILTER (WHERE origin <> 'review'), max(predicted::text) FILTER (WHERE origin = 'review')), false
    ) AS confirmed
  FROM (
    SELECT v.*, max(votes) OVER (PARTITION BY source, id) AS top
    FROM (
      SELECT o.*, count(*) FILTER (WHERE origin = 'review') OVER (PARTITION BY source, id, labels) AS votes,
        count(*) FILTER (WHERE origin = 'review') OVER (PARTITION BY source, id) AS persons
      FROM comment_opinion o
    ) v
  ) w
  GROUP BY source, id
) x;
