-- Holes are ranges: neighbouring gaps are one, with the comments between them. Texts of what is deleted go.

-- What the source has within a hole, as of the last look: a look asks for these two alone. The holes of before had nothing in them.
ALTER TABLE comment_hole ADD COLUMN rows bigint NOT NULL DEFAULT 0;
ALTER TABLE comment_hole ADD COLUMN ids bigint NOT NULL DEFAULT 0;  -- sum of the ids' checksums

-- undecodable: its bytes are not in the encoding that the configuration names.
ALTER TABLE comment DROP CONSTRAINT comment_quarantined_check;
ALTER TABLE comment ADD CONSTRAINT comment_quarantined_check CHECK (quarantined IN ('too_large', 'no_text', 'no_time', 'undecodable'));

-- A comment that its author or the application deleted leaves no text here; if it comes back it is read again.
UPDATE comment SET text = '' WHERE deleted_at IS NOT NULL;
